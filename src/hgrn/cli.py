"""The command line: the only place that parses arguments, prints errors and decides exit codes."""

import argparse
import difflib
import logging
import os
import sys
from pathlib import Path

from hgrn import __version__
from hgrn.errors import UserError

_DESCRIPTION = "Hierarchically Gated Recurrent Networks: train, evaluate and use them."
_EPILOG = """start here:
  hgrn quickstart                                  a language model in minutes, no network, no arguments
  hgrn train lm/text --data.files my.txt           train on your own text
  hgrn generate runs/text --prompt "Once upon"     write with what was trained
"""


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns the exit status: 0 done, 2 something to mend, 130 interrupted."""
    arguments = sys.argv[1:] if argv is None else argv
    logging.basicConfig(format="hgrn: %(message)s")
    logging.getLogger("hgrn").setLevel(logging.INFO)
    parser = _parser()
    known, rest = parser.parse_known_args(arguments)
    try:
        known.overrides = _overrides(rest) if known.takes_overrides else _nothing_left(rest, parser)
        return known.command(known) or 0
    except UserError as error:
        print(f"hgrn: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("hgrn: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output is gone, as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hgrn", description=_DESCRIPTION, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"hgrn {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name: str, command, about: str, detail: str = "", takes_overrides: bool = False, to=commands):
        made = to.add_parser(
            name, help=about, description=f"{about[0].upper()}{about[1:]}.", epilog=detail,
            formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
        )  # fmt: skip
        made.set_defaults(command=command, takes_overrides=takes_overrides)
        return made

    quickstart = add("quickstart", _quickstart, "train a small language model on Shakespeare and show what it learned",
                     "Takes minutes on two CPU cores and needs no network.")  # fmt: skip
    quickstart.add_argument("--out", type=Path, help="run folder (default: runs/quickstart, or the next free name)")

    train = add("train", _train, "train what a recipe describes", _train_detail(), takes_overrides=True)
    train.add_argument("recipe", help="a shipped recipe's name, or the path of a .yaml file")
    train.add_argument("--out", type=Path, help="run folder (default: runs/ and the recipe's name)")
    train.add_argument("--resume", action="store_true", help="go on from the newest whole checkpoint of the run folder")

    evaluate = add("eval", _eval, "measure a model in bits per byte",
                   "The whole split is read once, in order, with the state carried.")  # fmt: skip
    evaluate.add_argument("checkpoint", type=Path, help="a run folder, one of its checkpoints, or a saved model")
    evaluate.add_argument("--data", nargs="+", metavar="PATH",
                          help="text to read (default: the split of the recipe that the model was trained with)")  # fmt: skip
    evaluate.add_argument("--split", default="test", help="split of the recipe's data (default: test)")

    generate = add("generate", _generate, "continue a prompt, printing as it goes")
    generate.add_argument("checkpoint", type=Path, help="a run folder, one of its checkpoints, or a saved model")
    generate.add_argument("--prompt", required=True, help="the text to continue")
    generate.add_argument("--max-new-tokens", type=int, default=300, metavar="N", help="length of the continuation (default: 300)")
    generate.add_argument("--temperature", type=float, default=0.8, metavar="X",
                          help="0 takes the likeliest token every time, 1 samples as the model says (default: 0.8)")  # fmt: skip
    generate.add_argument("--top-k", type=int, metavar="K", help="sample from the K likeliest tokens only")
    generate.add_argument("--top-p", type=float, metavar="P", help="sample from the likeliest tokens of total probability P only")
    generate.add_argument("--seed", type=int, help="make the sample repeatable")
    for command in (evaluate, generate):
        command.add_argument("--int8", action="store_true", help="round the weights to 8 bits: a quarter of the memory to read, "
                             "so faster one token at a time")  # fmt: skip

    tokenizer = add("tokenizer", None, "make tokenizers")
    kinds = tokenizer.add_subparsers(title="commands", metavar="COMMAND", required=True)
    fit = add("train", _tokenizer_train, "train a byte-level BPE tokenizer on text", to=kinds)
    fit.add_argument("files", nargs="+", metavar="PATH", help="text files, folders, JSONL, also compressed")
    fit.add_argument("--vocab-size", type=int, required=True, metavar="N", help="tokens, with the 256 bytes and 3 special ones")
    fit.add_argument("--out", type=Path, required=True, help="a new folder; use it as data.tokenizer in a recipe")
    fit.add_argument("--text-field", default="text", metavar="NAME", help="field of JSONL records (default: text)")

    data = add("data", None, "make the two synthetic tasks of Long Range Arena")
    makers = data.add_subparsers(title="commands", metavar="COMMAND", required=True)
    listops = add("listops", _data_listops, "write new ListOps files as the release has them", to=makers)
    listops.add_argument("out", type=Path, help="a new folder")
    pathfinder = add("pathfinder", _data_pathfinder, "draw new Pathfinder images as the release has them", to=makers)
    pathfinder.add_argument("out", type=Path, help="folder, in which the one for this difficulty must be new")
    pathfinder.add_argument("--size", type=int, default=32, help="pixels: 32, 64, 128 (Path-X) or 256 (default: 32)")
    for maker, numbers in ((listops, {"train": 96_000, "validation": 2_000, "test": 2_000, "min-length": 500, "max-length": 2_000,
                                      "max-depth": 10, "max-args": 10}),
                           (pathfinder, {"number": 200_000, "contour-length": 14})):  # fmt: skip
        for name, default in numbers.items():
            maker.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"default, as the release: {default:,}")
        maker.add_argument("--seed", type=int, default=0, help="other seeds make other data (default: 0)")
        maker.add_argument("--processes", type=int, metavar="N", help="default: one a core; the data does not depend on it")
    pathfinder.add_argument("--distractors", type=int, metavar="N", help="short contours of an image (default: as the release)")
    pathfinder.add_argument("--no-crossings", action="store_true", help="no image whose two long contours cross")

    convert = add("convert", _convert, "turn a published checkpoint into one of ours, or one of ours into a published layout",
                  "Published are: a folder of flash-linear-attention (fla) or OpenNLPLab (opennlplab), or a file of tensors, also of\n"
                  "fairseq (fairseq-lm) and of the authors' image (vit) and Long Range Arena (lra) models.\n"
                  "docs/checkpoints.md says what is known of each.")  # fmt: skip
    convert.add_argument("source", type=Path, help="a folder or a file")
    convert.add_argument("out", type=Path, help="a new folder")
    convert.add_argument("--to", choices=("fla", "opennlplab", "fairseq-lm", "vit", "lra"),
                         help="the published layout to write (default: ours)")  # fmt: skip
    convert.add_argument("--glu-act", choices=("silu", "identity"),
                         help="the activation inside the GLU, where the source says nothing, or something unclear")  # fmt: skip

    bench = add("bench", _bench, "measure speed and memory against the limits of the machine and against other packages",
                "names: limits, scan, train, decode, length, start, quality; without one, all but quality (about two hours).\n"
                "Peers that are not installed are left out: pip install 'hgrn[bench]'")  # fmt: skip
    bench.add_argument("names", nargs="*", metavar="NAME", help="what to measure (default: all but quality)")
    bench.add_argument("--quick", action="store_true", help="small shapes and few repeats: half a minute, numbers not to be quoted")
    bench.add_argument("--out", type=Path, metavar="FOLDER",
                       help="where the CSV files go (default: benchmarks/results, with --quick benchmarks/quick)")  # fmt: skip
    bench.add_argument("--plots", type=Path, metavar="FOLDER",
                       help="where the plots go (default: docs/images if it is there, with --quick as --out)")  # fmt: skip

    add("doctor", _doctor, "say what is installed, which engines work here, and why the others do not")
    return parser


def _train_detail() -> str:
    from importlib.resources import files

    root = files("hgrn") / "recipes"
    names = [file.name for file in root.iterdir()] + [f"lm/{file.name}" for file in (root / "lm").iterdir()]
    shipped = "\n".join(f"  {name.removesuffix('.yaml')}" for name in sorted(names) if name.endswith(".yaml"))
    return f"""Any value of the recipe can be set on the command line by its dotted name:
  hgrn train quickstart --optimizer.lr 1e-3 --training.steps 2000 --model.hidden_size 256

shipped recipes:
{shipped}

On several processes: torchrun --nproc-per-node 4 -m hgrn train RECIPE
  --parallel.mode fsdp     every process holds a part of the weights and of the optimizer
  --parallel.context 4     four processes share each sequence"""


def _overrides(rest: list[str]) -> dict[str, str]:
    """`--a.b value` and `--a.b=value` as a dictionary."""
    found, left = {}, list(rest)
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
            value = values[0] if len(values) == 1 else f"[{', '.join(values)}]"
        found[key.removeprefix("--")] = value
    return found


def _nothing_left(rest: list[str], parser: argparse.ArgumentParser) -> dict:
    if rest:
        near = difflib.get_close_matches(rest[0], sorted(_options(parser)), 1)
        raise UserError(f"unknown argument {rest[0]!r}{f'; did you mean {near[0]}?' if near else ''} (see --help)")
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


# ---------------------------------------------------------------------------------------------------------------------
# The commands. Each imports what it needs, so that `hgrn --help` is quick.


def _quickstart(arguments: argparse.Namespace) -> int:
    from hgrn import quickstart
    from hgrn.memory import keep_freed_memory

    keep_freed_memory()
    out = arguments.out or quickstart.free_folder(Path("runs/quickstart"))
    if quickstart.run(out) is None:
        print(f"stopped; go on with: hgrn train quickstart --out {out} --resume")
        return 130
    return 0


def _train(arguments: argparse.Namespace) -> int:
    from hgrn.memory import keep_freed_memory
    from hgrn.training.loop import train
    from hgrn.training.recipe import load_recipe
    from hgrn.training.runlog import Console

    keep_freed_memory()
    recipe = load_recipe(arguments.recipe, arguments.overrides)
    out = arguments.out or Path("runs") / recipe.name
    with Console() as console:
        outcome = train(recipe, out, resume=arguments.resume, on_event=console)
    if int(os.environ.get("RANK", 0)) > 0:  # under torchrun, one process speaks
        return 130 if outcome.interrupted else 0
    if outcome.interrupted:
        repeated = "".join(f" --{key} {value}" for key, value in arguments.overrides.items())
        print(f"go on with: hgrn train {arguments.recipe} --out {out} --resume{repeated}")
        return 130
    print(f"done: {outcome.checkpoint}\nmeasure it with: hgrn eval {out}")
    return 0


def _eval(arguments: argparse.Namespace) -> None:
    from hgrn import inference
    from hgrn.data.text import TextData, TextSplit
    from hgrn.data.tokens import prepare
    from hgrn.training.recipe import recipe_from_yaml
    from hgrn.training.tasks.language import evaluate

    model, _, folder = inference.load(arguments.checkpoint, int8=arguments.int8)
    if arguments.data:
        split = "test"
        data = TextData(files=arguments.data, tokenizer=str(folder), splits={split: TextSplit()})
    elif (folder / "recipe.yaml").is_file():
        split, data = arguments.split, recipe_from_yaml(folder / "recipe.yaml").data
    else:
        raise UserError(f"{folder} was saved without a recipe, so its data is not known: give the text with --data PATH")
    with _Bar("evaluating") as bar:
        result = evaluate(model, prepare(data, split), on_progress=bar)
    print(f"{result.tokens:,} tokens, {result.bytes:,} bytes, {result.nats:.1f} nats")
    print(f"{split} bits per byte: {result.bits_per_byte:.3f}")


def _generate(arguments: argparse.Namespace) -> None:
    from hgrn import inference

    def write(text: str) -> None:
        print(text, end="", flush=True)

    if arguments.max_new_tokens < 1:
        raise UserError(f"--max-new-tokens must be at least 1, got {arguments.max_new_tokens}")
    model, tokenizer, _ = inference.load(arguments.checkpoint, int8=arguments.int8)
    inference.generate(
        model, tokenizer, arguments.prompt, write, max_new_tokens=arguments.max_new_tokens,
        temperature=arguments.temperature, top_k=arguments.top_k, top_p=arguments.top_p, seed=arguments.seed,
    )  # fmt: skip
    print()


def _tokenizer_train(arguments: argparse.Namespace) -> None:
    from hgrn.data.encoding import read_text
    from hgrn.data.text import SplitText, TextData, TextSplit
    from hgrn.data.tokenizer import train_tokenizer

    data = TextData(files=arguments.files, text_field=arguments.text_field, splits={"train": TextSplit()})
    units = SplitText(data, "train").units(whole_characters=True)
    train_tokenizer(read_text(units), arguments.vocab_size, arguments.out)
    print(f"saved {arguments.out}; use it with: hgrn train RECIPE --data.tokenizer {arguments.out}")


def _data_listops(arguments: argparse.Namespace) -> None:
    from hgrn.data.lra.listops_generator import Grammar, generate

    grammar = Grammar(arguments.max_depth, arguments.max_args, arguments.min_length, arguments.max_length)
    numbers = {split: getattr(arguments, split) for split in ("train", "validation", "test")}
    report = generate(arguments.out, arguments.seed, **numbers, grammar=grammar, processes=arguments.processes)
    for split in numbers:
        length = report[split].get("length", {}).get("50%", 0)
        print(f"{split}: {report[split]['number']:,} expressions, half of them longer than {length:,.0f} tokens")
    print(f"wrote {arguments.out}; its report.json has lengths, depths, operators and answers")


def _data_pathfinder(arguments: argparse.Namespace) -> None:
    from hgrn.data.lra.pathfinder_generator import generate
    from hgrn.data.lra.pathfinder_settings import arena_settings

    settings = arena_settings(arguments.size, arguments.contour_length, arguments.distractors, not arguments.no_crossings)
    with _Bar("drawing") as bar:
        report = generate(arguments.out, settings, arguments.seed, arguments.number, processes=arguments.processes, progress=bar)
    print(f"{report['number']:,} images, {report['label_1']:,} of them with both marks on one contour; every label found again by a flood")
    print(f"wrote {arguments.out / settings.difficulty}")


def _convert(arguments: argparse.Namespace) -> None:
    from hgrn.models.published import convert_checkpoint
    from hgrn.training.checkpointing import find_checkpoint, without_bars

    source, out = arguments.source, arguments.out
    if (source / "checkpoints").is_dir():
        source = find_checkpoint(source)
    fields = {} if arguments.glu_act is None else {"glu_act": arguments.glu_act}
    with without_bars():
        for line in convert_checkpoint(source, out, arguments.to, **fields):
            print(line)


def _bench(arguments: argparse.Namespace) -> None:
    from hgrn.bench import runner
    from hgrn.memory import keep_freed_memory

    kept = keep_freed_memory()
    print("freed memory is kept by this process, as when hgrn trains" if kept else "freed memory goes back to the system")
    out = arguments.out or Path("benchmarks") / ("quick" if arguments.quick else "results")
    documents = Path("docs/images")
    pictures = arguments.plots or (documents if documents.is_dir() and not arguments.quick else out)
    runner.run(arguments.names, out, pictures, quick=arguments.quick)


def _doctor(arguments: argparse.Namespace) -> int:
    from hgrn import doctor

    findings = doctor.examine()
    marks = {True: "ok", False: "!!", None: "  "}
    for finding in findings:
        print(f"{marks[finding.works]} {finding.name:26} {finding.value}")
        if finding.works is False:
            print(f"   {'':26} -> {finding.remedy}")
    return 0 if all(finding.works is not False for finding in findings) else 1


class _Bar:
    """A progress bar on a terminal, nothing elsewhere; called with (done, total)."""

    def __init__(self, title: str):
        from rich.console import Console
        from rich.progress import Progress

        self._bar = Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())
        self._task = self._bar.add_task(title)

    def __call__(self, done: int, total: int | None) -> None:
        self._bar.update(self._task, completed=done, total=total)

    def __enter__(self):
        self._bar.start()
        return self

    def __exit__(self, *exception):
        self._bar.stop()
