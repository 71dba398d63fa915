"""`hgrn tokenizer train`: train a byte-level BPE tokenizer on text."""

import argparse
from pathlib import Path

from hgrn.cli.options import Parser, whole
from hgrn.errors import pasted

ABOUT = "train a byte-level BPE tokenizer on text"
MORE = """example:
  hgrn tokenizer train my.txt --vocab-size 8000 --out my-tokenizer
  hgrn train lm/text --data.files my.txt --data.tokenizer my-tokenizer"""


def add_arguments(parser: Parser) -> None:
    parser.add_argument(
        "files", nargs="+", metavar="PATH", help="text files, folders, JSONL, also compressed"
    )
    parser.add_argument(
        "--vocab-size",
        type=whole,
        required=True,
        metavar="N",
        help="tokens, with the 256 bytes and 3 special ones",
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="a new folder; use it as data.tokenizer in a recipe"
    )
    parser.add_argument(
        "--text-field",
        default="text",
        metavar="NAME",
        help="field of JSONL records (default: text)",
    )


def run(arguments: argparse.Namespace) -> None:
    from hgrn.data.encoding import read_text
    from hgrn.data.text import SplitText, TextData, TextSplit
    from hgrn.data.tokenizer import train_tokenizer

    data = TextData(
        files=arguments.files, text_field=arguments.text_field, splits={"train": TextSplit()}
    )
    text = SplitText(data, "train")
    text.check_content()
    pieces = read_text(text.units(whole_characters=True))
    train_tokenizer(pieces, arguments.vocab_size, arguments.out)
    use = pasted("hgrn", "train", "RECIPE", "--data.tokenizer", arguments.out)
    print(f"saved {arguments.out}; use it with: {use}")
