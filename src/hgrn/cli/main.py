"""Run one command: find it, parse its arguments, print its errors, decide its exit status.

Each command is a file beside this one, which imports what it needs only when it runs: so
`hgrn --help` and all other help is quick. It has

    ABOUT                    one line for the list of commands
    MORE                     what its help says below the arguments, with an example
    add_arguments(parser)
    run(arguments)           the exit status, or None for 0

Only this file prints errors and knows exit statuses.
"""

import errno
import json
import logging
import re
import sys
from itertools import pairwise

from hgrn import __version__
from hgrn.cli import (
    arena,
    console,
    convert,
    data_listops,
    data_pathfinder,
    data_preview,
    doctor,
    generate,
    plot_gates,
    predict,
    quickstart,
    recipes,
    tokenizer_train,
    train,
)
from hgrn.cli import eval as evaluate
from hgrn.cli.options import Parser, import_modules
from hgrn.errors import ToldElsewhere, UserError, near
from hgrn.files import refusal

COMMANDS = {
    "quickstart": quickstart,
    "recipes": recipes,
    "train": train,
    "eval": evaluate,
    "generate": generate,
    "predict": predict,
    "plot gates": plot_gates,
    "arena": arena,
    "tokenizer train": tokenizer_train,
    "data preview": data_preview,
    "data listops": data_listops,
    "data pathfinder": data_pathfinder,
    "convert": convert,
    "doctor": doctor,
}
GROUPS = {
    "tokenizer": "make tokenizers",
    "plot": "draw what a model does",
    "data": "look at training data, and make the synthetic tasks of Long Range Arena",
}
_UNDER_TORCHRUN = ("train", "doctor")

_DESCRIPTION = "Hierarchically Gated Recurrent Networks: train, evaluate and use them."
_START_HERE = """start here:
  hgrn quickstart                                  a language model in minutes, without a network
  hgrn train lm/text --data.files my.txt           train on your own text
  hgrn generate runs/text --prompt "Once upon"     write with what was trained
  hgrn recipes                                     all that can be trained
  hgrn COMMAND --help                              what a command does, with an example
"""


def main(argv: list[str] | None = None) -> int:
    """Run one command; return the exit status: 0 done, 2 something to mend, 130 interrupted."""
    words = sys.argv[1:] if argv is None else argv
    console.prepare()
    logging.basicConfig(format="hgrn: %(message)s")
    logging.getLogger("hgrn").setLevel(logging.INFO)
    try:
        status = _run(words)
    except ToldElsewhere:
        status = 2
    except UserError as error:
        print(f"hgrn: error: {error}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print("hgrn: interrupted", file=sys.stderr)
        status = 130
    except BrokenPipeError:
        # Whoever read our output is gone, as with `| head`. That is no error.
        console.drop_output()
        status = 0
    except SystemExit:
        # argparse has printed --help or --version.
        if not console.flush():
            return 2
        raise
    except Exception as error:
        explanation = _explained(error)
        if explanation is None:
            raise
        if explanation:
            print(f"hgrn: error: {explanation}", file=sys.stderr)
        status = 2
    return status if console.flush() else status or 2


def _run(words: list[str]) -> int:
    _check_text(words)
    top, parsers = _parsers()

    # Without a command there is nothing to do but to say which there are.
    if " ".join(words) in ("", *GROUPS):
        words = [*words, "--help"]
    name = " ".join(words[: 2 if words[0] in GROUPS else 1])
    if name not in COMMANDS:
        _refuse_command(name, top)
        # Only --help and --version are left, at which argparse prints and leaves.
        top.parse_args(words)

    parser = parsers[name]
    given = words[len(name.split()) :]
    _check_options(given, parser)
    arguments, rest = parser.parse_known_args(given)
    if rest and not parser.takes_overrides:
        parser.refuse(rest[0])
    arguments.overrides = _overrides(rest, parser)
    arguments.words = words
    _check_processes(name)
    import_modules(getattr(arguments, "imports", []))
    return COMMANDS[name].run(arguments) or 0


def _parsers() -> tuple[Parser, dict[str, Parser]]:
    """The parser of `hgrn` itself, which prints the list of commands, and that of each command."""
    top = Parser(prog="hgrn", description=_DESCRIPTION, epilog=_START_HERE)
    top.add_argument("--version", action="version", version=f"hgrn {__version__}")
    # Group -> its list of commands; the commands of no group stand in the list of `hgrn`.
    listed = {"": top.add_subparsers(title="commands", metavar="COMMAND")}
    parsers = {}
    for name, command in COMMANDS.items():
        group, _, last = name.rpartition(" ")
        if group not in listed:
            about = GROUPS[group]
            made = listed[""].add_parser(group, help=about, description=_sentence(about))
            listed[group] = made.add_subparsers(title="commands", metavar="COMMAND")
        parser = listed[group].add_parser(
            last, help=command.ABOUT, description=_sentence(command.ABOUT), epilog=command.MORE
        )
        command.add_arguments(parser)
        parsers[name] = parser
    return top, parsers


def _sentence(about: str) -> str:
    return f"{about[0].upper()}{about[1:]}."


def _check_text(words: list[str]) -> None:
    """Raise UserError for an argument that no file name and no encoding can hold."""
    for word in words:
        try:
            word.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError as error:
            raise UserError(
                f"the argument {word!r} holds half of a surrogate pair at character "
                f"{error.start}, which is no text"
            ) from None


def _refuse_command(name: str, top: Parser) -> None:
    """Raise UserError for a name that is no command, unless it ends in --help or --version."""
    last = name.split(" ")[-1]
    if not last.startswith("-"):
        raise UserError(f"unknown command {name!r}{near(name, COMMANDS)} (see hgrn --help)")
    if last.partition("=")[0] not in ("-h", *top.options):
        top.refuse(last)


def _check_options(words: list[str], parser: Parser) -> None:
    """Raise UserError for an option that the command does not have, with the name that is near.

    argparse would first complain of a required option that is missing, which may be this one. A
    word behind an option may be its value, so it is left to argparse.
    """
    # Pairs of neighbours, the first word with nothing before it.
    for before, word in pairwise(["", *words]):
        if word == "--":
            return
        name = word.partition("=")[0]
        if not name.startswith("--") or " " in name or name in parser.options:
            continue
        is_value = before in parser.options
        if not is_value and not (parser.takes_overrides and _is_field(name)):
            parser.refuse(word)


def _overrides(rest: list[str], parser: Parser) -> dict[str, str]:
    """The fields in `--a.b value`, `--a.b=value` and `--a.b value value`, by their dotted names."""
    found = {}
    left = list(rest)
    while left:
        key, equals, value = left.pop(0).partition("=")
        if not _is_field(key):
            parser.refuse(key)
        if not equals:
            # Several words are one list; it ends at the next field.
            values = []
            while left and not _is_field(left[0].partition("=")[0]):
                values.append(left.pop(0))
            if not values:
                raise UserError(f"{key} needs a value: {key} VALUE")
            value = values[0] if len(values) == 1 else f"[{', '.join(map(_item, values))}]"
        found[key.removeprefix("--")] = value
    return found


def _is_field(word: str) -> bool:
    return word.startswith("--") and "." in word


def _item(text: str) -> str:
    """A word as an item of a YAML list: in quotes if it holds a comma or the like."""
    is_plain = re.fullmatch(r"[\w./~+-][\w./~+:=@%-]*", text)
    is_quoted = text[:1] in "[\"'" and text[-1:] in "]\"'"
    return text if is_plain or is_quoted else json.dumps(text, ensure_ascii=False)


def _check_processes(name: str) -> None:
    """Raise UserError if torchrun has started a command that every process would do again."""
    world = train.processes()
    if world > 1 and train.is_under_torchrun() and name not in _UNDER_TORCHRUN:
        raise UserError(
            "only `hgrn train` shares its work out over the processes of torchrun, and there are "
            f"{world}: start this command without torchrun"
        )


def _explained(error: Exception) -> str | None:
    """One line for what the system refuses, wherever no better message was made of it.

    None for a fault of ours, which keeps its traceback; empty if our output cannot be written,
    because `console.flush` says that.
    """
    if _is_out_of_memory(error):
        reason = str(error).strip().partition("\n")[0]
        return (
            f"there is not enough memory ({reason}): make the model, the batch or its sequences "
            "smaller"
        )
    # Only standard output has no file name; whether it is the one at fault shows when it is tried.
    if isinstance(error, OSError) and error.filename is None and not console.takes_output():
        return ""
    refused = refusal(error)
    if refused is None or refused.errno == errno.ENOENT:
        return None
    where = f"{refused.filename}: " if refused.filename else ""
    return f"{where}{refused.strerror}"


def _is_out_of_memory(error: Exception) -> bool:
    """Whether Python, NumPy or PyTorch says that memory is short, or could never be enough."""
    words = ("can't allocate memory", "Storage size calculation overflowed", "out of memory")
    return isinstance(error, MemoryError) or any(text in str(error) for text in words)
