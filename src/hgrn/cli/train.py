"""`hgrn train`: train what a recipe describes, in one process or as one of several."""

import argparse
import os
from pathlib import Path

from hgrn.cli.options import Parser, add_recipe
from hgrn.errors import pasted
from hgrn.recipes import shipped

ABOUT = "train what a recipe describes"
MORE = """\
Any field of the recipe can be set on the command line by its dotted name:
  hgrn train quickstart --optimizer.lr 1e-3 --training.steps 2000 --model.hidden_size 256

On several processes: torchrun --nproc-per-node 4 -m hgrn train RECIPE
  --parallel.mode fsdp     every process holds a part of the weights and of the optimizer
  --parallel.context 4     four processes share each sequence

shipped recipes (`hgrn recipes` says what they are, `hgrn recipes NAME` names every field):
  """ + "\n  ".join(shipped())


def add_arguments(parser: Parser) -> None:
    add_recipe(parser)
    parser.add_argument(
        "--out", type=Path, help="run folder (default: runs/ and the recipe's name)"
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on from the newest whole checkpoint of the run folder",
    )


def run(arguments: argparse.Namespace) -> int:
    from hgrn.memory import keep_freed_memory
    from hgrn.training import loop
    from hgrn.training.recipe import load_recipe
    from hgrn.training.runlog import Console

    # Before anything large is allocated.
    keep_freed_memory()
    recipe = load_recipe(arguments.recipe, arguments.overrides)
    out = arguments.out or Path("runs") / recipe.name
    with Console() as console:
        outcome = loop.train(recipe, out, resume=arguments.resume, on_event=console)

    # Under torchrun, one process speaks for all.
    if int(os.environ.get("RANK", 0)) > 0:
        return 130 if outcome.interrupted else 0
    if outcome.interrupted:
        print(f"go on with: {_resuming(arguments.words)}")
        return 130
    imports = [word for name in arguments.imports for word in ("--import", name)]
    print(f"done: {outcome.checkpoint}\nmeasure it with: {pasted('hgrn', 'eval', out, *imports)}")
    return 0


def _resuming(words: list[str]) -> str:
    """The command that goes on with the run that these words began."""
    here = processes("LOCAL_WORLD_SIZE")
    start = ("torchrun", "--nproc-per-node", here, "-m", "hgrn") if here > 1 else ("hgrn",)
    # The words are the user's own, so all that was set is set again.
    resume = () if "--resume" in words else ("--resume",)
    return pasted(*start, *words, *resume)


def is_under_torchrun() -> bool:
    """Whether torchrun has started this process."""
    return "RANK" in os.environ


def processes(name: str = "WORLD_SIZE") -> int:
    """How many processes torchrun says that it has started, in all or on this machine."""
    given = os.environ.get(name, "1")
    return int(given) if given.isdecimal() else 1
