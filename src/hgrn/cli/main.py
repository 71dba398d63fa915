"""The command line: the only place that parses arguments, prints errors and decides exit codes."""

import argparse
import difflib
import errno
import json
import logging
import math
import re
import sys
from pathlib import Path

from hgrn import __version__, commands, console
from hgrn.errors import ToldElsewhere, UserError
from hgrn.files import refusal

_DESCRIPTION = "Hierarchically Gated Recurrent Networks: train, evaluate and use them."
_EPILOG = """start here:
  hgrn quickstart                                  a language model in minutes, no network, no arguments
  hgrn train lm/text --data.files my.txt           train on your own text
  hgrn generate runs/text --prompt "Once upon"     write with what was trained
  hgrn train image/fashion-mnist                   classify images (--help of train lists all recipes)
"""


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns the exit status: 0 done, 2 something to mend, 130 interrupted."""
    arguments = sys.argv[1:] if argv is None else argv
    console.prepare()
    logging.basicConfig(format="hgrn: %(message)s")
    logging.getLogger("hgrn").setLevel(logging.INFO)
    try:
        status = _run(arguments)
    except ToldElsewhere:
        status = 2
    except UserError as error:
        print(f"hgrn: error: {error}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print("hgrn: interrupted", file=sys.stderr)
        status = 130
    except BrokenPipeError:  # the reader of our output is gone, as with `| head`
        console.drop_output()
        status = 0
    except SystemExit:  # of --help and --version
        if not console.flush():
            return 2
        raise
    except Exception as error:
        said = _explained(error)
        if said is None:
            raise
        if said:
            print(f"hgrn: error: {said}", file=sys.stderr)
        status = 2
    return status if console.flush() else status or 2


def _run(arguments: list[str]) -> int:
    for argument in arguments:
        try:
            argument.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError as error:
            raise UserError(
                f"the argument {argument!r} holds half of a surrogate pair at character {error.start}, which is no text"
            ) from None
    parser = _parser()
    known, rest = parser.parse_known_args(arguments)
    known.words = arguments
    known.overrides = _overrides(rest) if known.takes_overrides else _nothing_left(rest, parser)
    commands.check_processes(known.command)
    return known.command(known) or 0


def _explained(error: Exception) -> str | None:
    """One line for what the system refuses, wherever no better message was made of it.

    None for a fault of ours, which keeps its traceback; empty if nobody can read our output,
    which `console.flush` tells.
    """
    if _is_out_of_memory(error):
        reason = str(error).strip().partition("\n")[0]
        return f"there is not enough memory ({reason}): make the model, the batch or its sequences smaller"
    if isinstance(error, OSError) and error.filename is None and not console.takes_output():
        return ""
    refused = refusal(error)
    if refused is None or refused.errno == errno.ENOENT:
        return None
    where = f"{refused.filename}: " if refused.filename else ""
    return f"{where}{refused.strerror}"


def _is_out_of_memory(error: Exception) -> bool:
    """Whether an error of Python, NumPy or PyTorch says that memory is short, or could never be enough."""
    words = ("can't allocate memory", "Storage size calculation overflowed", "out of memory")
    return isinstance(error, MemoryError) or any(text in str(error) for text in words)


class _Parser(argparse.ArgumentParser):
    """Its complaints are UserErrors, as all others of the command line."""

    def error(self, message: str):
        if message.endswith("expected one argument"):
            option = message.removeprefix("argument ").partition(":")[0]
            message += f"; a value that begins with a dash is written as {option}=VALUE"
        raise UserError(f"{message} (see {self.prog} --help)")


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number, got {text[:40]!r}") from None


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"must be a finite number, got {text[:40]!r}")
    return number


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="hgrn",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"hgrn {__version__}")
    groups = {"title": "commands", "metavar": "COMMAND", "required": True}
    all_commands = parser.add_subparsers(**groups)

    def add(
        name: str,
        command,
        about: str,
        detail: str = "",
        takes_overrides: bool = False,
        to=all_commands,
    ):
        made = to.add_parser(
            name,
            help=about,
            description=f"{about[0].upper()}{about[1:]}.",
            epilog=detail,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        made.set_defaults(command=command, takes_overrides=takes_overrides)
        return made

    quickstart = add(
        "quickstart",
        commands.quickstart,
        "train a small language model on Shakespeare and show what it learned",
        "Takes minutes on two CPU cores and needs no network.",
    )
    quickstart.add_argument(
        "--out", type=Path, help="run folder (default: runs/quickstart, or the next free name)"
    )

    train = add(
        "train",
        commands.train,
        "train what a recipe describes",
        _train_detail(),
        takes_overrides=True,
    )
    train.add_argument("recipe", help="a shipped recipe's name, or the path of a .yaml file")
    train.add_argument("--out", type=Path, help="run folder (default: runs/ and the recipe's name)")
    train.add_argument(
        "--resume",
        action="store_true",
        help="go on from the newest whole checkpoint of the run folder",
    )

    evaluate = add(
        "eval",
        commands.evaluate,
        "measure a model: bits per byte of text, accuracy of classes",
        "A language model reads the whole split once, in order, with the state carried. A classifier answers every\n"
        "example once, and its confusion matrix is drawn.\n"
        "`hgrn eval lra` makes one table of all runs of Long Range Arena.",
    )
    evaluate.add_argument(
        "checkpoint",
        type=Path,
        help="a run folder, one of its checkpoints, or a saved model; or lra",
    )
    evaluate.add_argument(
        "--runs",
        type=Path,
        default=Path("runs"),
        metavar="FOLDER",
        help="where `hgrn eval lra` looks for runs, and writes arena.md (default: runs)",
    )
    evaluate.add_argument(
        "--data",
        nargs="+",
        metavar="PATH",
        help="text to read, or the folder of labelled data (default: what the recipe of the run names)",
    )
    evaluate.add_argument(
        "--split", default="test", help="split of the recipe's data (default: test)"
    )

    generate = add("generate", commands.generate, "continue a prompt, printing as it goes")
    generate.add_argument(
        "checkpoint", type=Path, help="a run folder, one of its checkpoints, or a saved model"
    )
    generate.add_argument("--prompt", required=True, help="the text to continue")
    generate.add_argument(
        "--max-new-tokens",
        type=_whole,
        default=300,
        metavar="N",
        help="length of the continuation (default: 300)",
    )
    generate.add_argument(
        "--temperature",
        type=_number,
        default=0.8,
        metavar="X",
        help="0 takes the likeliest token every time, 1 samples as the model says (default: 0.8)",
    )
    generate.add_argument(
        "--top-k", type=_whole, metavar="K", help="sample from the K likeliest tokens only"
    )
    generate.add_argument(
        "--top-p",
        type=_number,
        metavar="P",
        help="sample from the likeliest tokens of total probability P only",
    )
    generate.add_argument("--seed", type=_whole, help="make the sample repeatable")
    for command in (evaluate, generate):
        command.add_argument(
            "--tokenizer",
            metavar="NAME",
            help="bytes, a name on the Hugging Face hub, or a path "
            "(default: the one that is saved with the model)",
        )
        command.add_argument(
            "--int8",
            action="store_true",
            help="round the weights to 8 bits: a quarter of the memory to read, "
            "so faster one token at a time",
        )

    tokenizer = add("tokenizer", None, "make tokenizers")
    kinds = tokenizer.add_subparsers(**groups)
    fit = add(
        "train", commands.tokenizer_train, "train a byte-level BPE tokenizer on text", to=kinds
    )
    fit.add_argument(
        "files", nargs="+", metavar="PATH", help="text files, folders, JSONL, also compressed"
    )
    fit.add_argument(
        "--vocab-size",
        type=_whole,
        required=True,
        metavar="N",
        help="tokens, with the 256 bytes and 3 special ones",
    )
    fit.add_argument(
        "--out", type=Path, required=True, help="a new folder; use it as data.tokenizer in a recipe"
    )
    fit.add_argument(
        "--text-field",
        default="text",
        metavar="NAME",
        help="field of JSONL records (default: text)",
    )

    predict = add("predict", commands.predict, "say what is in images")
    predict.add_argument(
        "checkpoint",
        type=Path,
        help="a run folder, one of its checkpoints, or a saved model of images",
    )
    predict.add_argument(
        "images", nargs="+", type=Path, metavar="IMAGE", help="files that Pillow reads"
    )
    predict.add_argument(
        "--top", type=_whole, default=3, metavar="N", help="how many classes to name (default: 3)"
    )

    data = add(
        "data", None, "look at training data, and make the two synthetic tasks of Long Range Arena"
    )
    makers = data.add_subparsers(**groups)
    preview = add(
        "preview",
        commands.data_preview,
        "draw what a recipe's augmentation does to its images",
        "Writes a contact sheet for each augmentation: the images as they are in the first row, a draw in each other.",
        takes_overrides=True,
        to=makers,
    )
    preview.add_argument(
        "recipe", help="a shipped recipe's name, or the path of a .yaml file; of images"
    )
    preview.add_argument(
        "--out",
        type=Path,
        default=Path("preview"),
        help="folder for the pictures (default: preview)",
    )
    listops = add(
        "listops",
        commands.data_listops,
        "write new ListOps files as the release has them",
        to=makers,
    )
    listops.add_argument("out", type=Path, help="a new folder")
    pathfinder = add(
        "pathfinder",
        commands.data_pathfinder,
        "draw new Pathfinder images as the release has them",
        to=makers,
    )
    pathfinder.add_argument(
        "out", type=Path, help="folder, in which the one for this difficulty must be new"
    )
    pathfinder.add_argument(
        "--size", type=_whole, default=32, help="pixels: 32, 64, 128 (Path-X) or 256 (default: 32)"
    )
    for maker, numbers in (
        (
            listops,
            {
                "train": 96_000,
                "validation": 2_000,
                "test": 2_000,
                "min-length": 500,
                "max-length": 2_000,
                "max-depth": 10,
                "max-args": 10,
            },
        ),
        (pathfinder, {"number": 200_000, "contour-length": 14}),
    ):
        for name, default in numbers.items():
            maker.add_argument(
                f"--{name}",
                type=_whole,
                default=default,
                metavar="N",
                help=f"default, as the release: {default:,}",
            )
        maker.add_argument(
            "--seed", type=_whole, default=0, help="other seeds make other data (default: 0)"
        )
        maker.add_argument(
            "--processes",
            type=_whole,
            metavar="N",
            help="default: one a core; the data does not depend on it",
        )
    pathfinder.add_argument(
        "--distractors",
        type=_whole,
        metavar="N",
        help="short contours of an image (default: as the release)",
    )
    pathfinder.add_argument(
        "--no-crossings", action="store_true", help="no image whose two long contours cross"
    )

    convert = add(
        "convert",
        commands.convert,
        "turn a published checkpoint into one of ours, or one of ours into a published layout",
        "Published are: a folder of flash-linear-attention (fla) or OpenNLPLab (opennlplab), or a file of tensors, also of\n"
        "fairseq (fairseq-lm) and of the authors' image (vit) and Long Range Arena (lra) models.\n"
        "docs/checkpoints.md says what is known of each.",
    )
    convert.add_argument("source", type=Path, help="a folder or a file")
    convert.add_argument("out", type=Path, help="a new folder")
    convert.add_argument(
        "--to",
        choices=("fla", "opennlplab", "fairseq-lm", "vit", "lra"),
        help="the published layout to write (default: ours)",
    )
    convert.add_argument(
        "--glu-act",
        choices=("silu", "identity"),
        help="the activation inside the GLU, where the source says nothing, or something unclear",
    )

    add(
        "doctor",
        commands.doctor,
        "say what is installed, which engines work here, and why the others do not",
    )
    return parser


def _train_detail() -> str:
    from importlib.resources import files

    names = []
    for entry in (files("hgrn") / "recipes").iterdir():
        names += (
            [f"{entry.name}/{file.name}" for file in entry.iterdir()]
            if entry.is_dir()
            else [entry.name]
        )
    shipped = "\n".join(
        f"  {name.removesuffix('.yaml')}" for name in sorted(names) if name.endswith(".yaml")
    )
    return f"""Any value of the recipe can be set on the command line by its dotted name:
  hgrn train quickstart --optimizer.lr 1e-3 --training.steps 2000 --model.hidden_size 256

shipped recipes:
{shipped}

On several processes: torchrun --nproc-per-node 4 -m hgrn train RECIPE
  --parallel.mode fsdp     every process holds a part of the weights and of the optimizer
  --parallel.context 4     four processes share each sequence"""


def _overrides(rest: list[str]) -> dict[str, str]:
    """`--a.b value` and `--a.b=value` as a dictionary."""
    found = {}
    left = list(rest)
    while left:
        key, equals, value = left.pop(0).partition("=")
        if not key.startswith("--") or "." not in key:
            raise UserError(
                f"unknown argument {key!r}; values of the recipe are set by their dotted names, such as --optimizer.lr 1e-3"
            )
        if not equals:
            values = []
            while left and not (left[0].startswith("--") and "." in left[0].partition("=")[0]):
                values.append(left.pop(0))
            if not values:
                raise UserError(f"{key} needs a value: {key} VALUE")
            value = values[0] if len(values) == 1 else f"[{', '.join(map(_item, values))}]"
        found[key.removeprefix("--")] = value
    return found


def _item(text: str) -> str:
    """A word as an item of a YAML list: quoted if it holds what would end the item, such as a comma."""
    is_plain = re.fullmatch(r"[\w./~+-][\w./~+:=@%-]*", text) or (
        text[:1] in "[\"'" and text[-1:] in "]\"'"
    )
    return text if is_plain else json.dumps(text, ensure_ascii=False)


def _nothing_left(rest: list[str], parser: argparse.ArgumentParser) -> dict:
    if rest:
        near = difflib.get_close_matches(rest[0], sorted(_options(parser)), 1)
        raise UserError(
            f"unknown argument {rest[0]!r}{f'; did you mean {near[0]}?' if near else ''} (see --help)"
        )
    return {}


def _options(parser: argparse.ArgumentParser) -> set[str]:
    """The long options of a parser and of all commands below it."""
    found = set()
    for action in parser._actions:
        found |= {option for option in action.option_strings if option.startswith("--")}
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                found |= _options(below)
    return found
