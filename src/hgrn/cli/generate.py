"""`hgrn generate`: continue a prompt with a language model, printing as it goes."""

import argparse

from hgrn.cli.options import Parser, add_checkpoint, add_model_options, number, whole
from hgrn.errors import UserError

ABOUT = "continue a prompt, printing as it goes"
MORE = """examples:
  hgrn generate runs/quickstart --prompt "To be, or not to be"
  hgrn generate runs/text --prompt "Once upon" --temperature 0.5 --top-p 0.9 --seed 1"""


def add_arguments(parser: Parser) -> None:
    add_checkpoint(parser)
    parser.add_argument("--prompt", required=True, help="the text to continue")
    parser.add_argument(
        "--max-new-tokens",
        type=whole,
        default=300,
        metavar="N",
        help="length of the continuation (default: 300)",
    )
    parser.add_argument(
        "--temperature",
        type=number,
        default=0.8,
        metavar="X",
        help="0 takes the likeliest token every time, 1 samples as the model says (default: 0.8)",
    )
    parser.add_argument(
        "--top-k", type=whole, metavar="K", help="sample from the K likeliest tokens only"
    )
    parser.add_argument(
        "--top-p",
        type=number,
        metavar="P",
        help="sample from the likeliest tokens of total probability P only",
    )
    parser.add_argument("--seed", type=whole, help="make the sample repeatable")
    add_model_options(parser)


def run(arguments: argparse.Namespace) -> None:
    from hgrn.cli import inference
    from hgrn.training.manifests import find_checkpoint

    if arguments.max_new_tokens < 1:
        raise UserError(f"--max-new-tokens must be at least 1, got {arguments.max_new_tokens}")
    sampling = {
        name: getattr(arguments, name) for name in ("temperature", "top_k", "top_p", "seed")
    }
    # Before a model is loaded, which may take long.
    inference.check_sampling(**sampling)
    folder = find_checkpoint(arguments.checkpoint, for_inference=True)
    model, tokenizer = inference.load(folder, int8=arguments.int8, tokenizer=arguments.tokenizer)
    inference.generate(
        model,
        tokenizer,
        arguments.prompt,
        lambda piece: print(piece, end="", flush=True),
        max_new_tokens=arguments.max_new_tokens,
        **sampling,
    )
    # A model seldom ends its text with a new line.
    print()
