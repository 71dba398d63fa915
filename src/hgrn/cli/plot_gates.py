"""`hgrn plot gates`: pictures of what a trained language model keeps and forgets."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from hgrn.cli.options import Parser, add_checkpoint
from hgrn.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

ABOUT = "draw the forget gates of a language model, layer by layer and over a text"
MORE = """\
Two pictures. gates.png: how many tokens the learned bounds keep at least in each layer, and how the
gates are distributed, before and after training. gates_text.png: the mean gate of each layer at
each token of the beginning of the text.

examples:
  hgrn plot gates runs/quickstart                          over the test split of the run's data
  hgrn plot gates runs/quickstart --prompt "To be, or not to be"
  hgrn plot gates runs/quickstart --text my.txt --out pictures"""

_MOST = 8192  # tokens that are read
_SHOWN = 80  # tokens of the picture over a text


def add_arguments(parser: Parser) -> None:
    add_checkpoint(parser, " of a language model")
    parser.add_argument("--text", type=Path, metavar="FILE", help="a text to read")
    parser.add_argument("--prompt", metavar="TEXT", help="the text itself")
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="of the pictures (default: the run folder)"
    )


def run(arguments: argparse.Namespace) -> None:
    import torch

    from hgrn.analysis import forget_gates, gate_plots, gate_statistics
    from hgrn.cli import inference
    from hgrn.files import writing
    from hgrn.training.manifests import find_checkpoint

    folder = find_checkpoint(arguments.checkpoint, for_inference=True)
    model, tokenizer = inference.load(folder)
    ids = _tokens(arguments, folder, tokenizer)[:_MOST]
    # Another seed would start from other weights, of the same distribution.
    torch.manual_seed(0)
    untrained = type(model)(model.config).eval()
    try:
        gates = forget_gates(untrained, ids), forget_gates(model, ids)
    except TypeError as error:
        raise UserError(f"{folder}: {error}") from error
    before, after = (gate_statistics(each, ids[None]) for each in (untrained, model))

    out = arguments.out or arguments.checkpoint
    with writing(out, "give another folder with --out"):
        out.mkdir(parents=True, exist_ok=True)
    shown = ids[:_SHOWN]
    gate_plots.memory_of_layers(before, after, gates, out / "gates.png")
    texts = [str(tokenizer.decode([token])) for token in shown.tolist()]
    gate_plots.gates_over_text(gates[1][:, : len(shown)], texts, out / "gates_text.png")

    print("layer   bound keeps, tokens   mean gate, before -> after training")
    for number, (start, end) in enumerate(zip(before, after, strict=True), 1):
        bound = end.lower_bound
        kept = "none" if bound is None else f"{gate_plots.horizons(bound).median().item():.1f}"
        print(f"{number:5}   {kept:>19}   {start.mean.mean():.2f} -> {end.mean.mean():.2f}")
    print(f"wrote {out / 'gates.png'} and {out / 'gates_text.png'}")


def _tokens(arguments: argparse.Namespace, folder: Path, tokenizer) -> "Tensor":
    """The tokens of the text that the arguments name."""
    import torch

    from hgrn.data.tokens import prepare
    from hgrn.files import reading
    from hgrn.training.recipe import LanguageRecipe, recipe_from_yaml

    if arguments.prompt is not None and arguments.text is not None:
        raise UserError("--prompt and --text are two texts: give one of them")
    text = arguments.prompt
    if arguments.text is not None:
        if not arguments.text.is_file():
            raise UserError(f"--text {arguments.text}: there is no such file; give one that is")
        with reading(arguments.text, "give another file with --text"):
            text = arguments.text.read_text(encoding="utf-8", errors="replace")
    if text is not None:
        ids = tokenizer(text)["input_ids"]
        if not ids:
            raise UserError("the text is empty: give one of at least one token")
        return torch.tensor(ids)
    saved = folder / "recipe.yaml"
    recipe = recipe_from_yaml(saved) if saved.is_file() else None
    if not isinstance(recipe, LanguageRecipe):
        raise UserError(
            f"{folder} was saved without a recipe, so its data is not known: give a text with "
            "--prompt TEXT or --text FILE"
        )
    test = prepare(recipe.data, "test")
    return torch.from_numpy(test.read(0, min(len(test), _MOST))).long()
