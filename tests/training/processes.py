"""Runs in processes of their own, as scripts for the tests that kill them or need several.

    python -m tests.training.processes kills FOLDER     every named point of a save, and random moments
    python -m tests.training.processes ranks FOLDER     one process and two, which talk through gloo

Everything is imported once and every run is a fork, so that a run takes tenths of a second instead of many.
The results are printed as one JSON object.
"""

import json
import os
import random
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from hgrn.training import checkpointing
from hgrn.training.loop import train
from hgrn.training.recipe import Recipe
from tests.training.tiny_runs import tiny_recipe


def start(work: Callable[[], object]) -> int:
    """Do `work` in a fork; its process id."""
    child = os.fork()
    if child:
        return child
    try:
        work()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def wait(child: int) -> int:
    """The exit status of a fork; minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def final_weights(run: Path) -> str:
    """The checksum of the weights in the newest checkpoint, and its step."""
    checkpoint, _ = checkpointing.latest_valid(run)
    files = {file.name: file.sha256 for file in checkpointing.Manifest.read(checkpoint).files}
    return f"{checkpoint.name} {files['model.safetensors']}"


def train_and_die(recipe: Recipe, run: Path, point: str, nth: int) -> None:
    """Train until a save has passed `point` for the nth time, and be killed there."""
    passed = 0

    def done(name: str) -> None:
        nonlocal passed
        passed += name == point
        if passed == nth:
            os.kill(os.getpid(), signal.SIGKILL)

    checkpointing._done = done
    train(recipe, run)


def kills(folder: Path) -> dict:
    """For each kill: how the killed run ended, and the weights of the run that was resumed after it."""
    results = {}
    for state in ("carry", "documents"):
        recipe = tiny_recipe(folder / state, batch__state=state, batch__accumulation=2, training__keep=1)
        # 12 steps, saved at 4, 8 and 12; an epoch is 5.
        run = folder / state / "whole"
        began = time.monotonic()
        assert wait(start(lambda: train(recipe, run))) == 0
        seconds = time.monotonic() - began
        results[f"{state}: whole"] = [0, final_weights(run)]
        for point in checkpointing.SAVE_POINTS:
            run = folder / state / point
            killed = wait(start(lambda: train_and_die(recipe, run, point, nth=2)))
            assert wait(start(lambda: train(recipe, run, resume=True))) == 0
            results[f"{state}: {point}"] = [killed, final_weights(run)]
        choose = random.Random(state)
        for number in range(4):  # each run is killed again and again, a little later every time
            run, life, ends = folder / state / f"random {number}", choose.uniform(0, seconds), []
            while 0 not in ends:
                child = start(lambda: train(recipe, run, resume=True))
                time.sleep(life)
                os.kill(child, signal.SIGKILL)
                ends.append(wait(child))
                life += seconds / 4
            results[f"{state}: random {number}"] = [ends[0], final_weights(run)]
    return results


def in_ranks(world: int, work: Callable[[], object]) -> list[int]:
    """Do `work` in so many processes, with the environment that torchrun gives them; their exit statuses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def as_rank(rank: int) -> None:
        names = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": world,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        os.environ.update({name: str(value) for name, value in names.items()})
        work()

    return [wait(child) for child in [start(lambda rank=rank: as_rank(rank)) for rank in range(world)]]


def ranks(folder: Path) -> dict:
    """The first rows of the log of one process and of two; and two ranks stopped and resumed."""
    folder.mkdir(parents=True)
    (folder / "tiny.txt").write_text("ab\n" * 60 + "a long line without any border in it " * 18)
    recipe = tiny_recipe(
        folder,
        batch__state="documents",
        batch__accumulation=2,
        data__documents="line",
        model__dropout=0,
        # far above the gradients, so that a step is in proportion to them and does not amplify last digits
        optimizer__eps=1.0,
        training__log_every=1,
        training__steps=6,
    )
    results = {}
    for world in (1, 2):
        ended = in_ranks(world, lambda: train(recipe, folder / f"world {world}"))
        results[f"world {world}"] = ended
    dropout = tiny_recipe(folder, batch__state="carry", training__save_every=3)
    results["whole"] = in_ranks(2, lambda: train(dropout, folder / "whole"))

    def interrupt(event: dict) -> None:
        if event["kind"] == "train" and event["step"] == 6:
            os.kill(os.getpid(), signal.SIGTERM)  # rank 0 alone; the other must stop at the same step

    results["stopped"] = in_ranks(2, lambda: train(dropout, folder / "stopped", on_event=interrupt))
    results["stopped at"] = final_weights(folder / "stopped").split()[0]
    results["alone"] = in_ranks(1, lambda: train(dropout, folder / "stopped", resume=True))
    results["resumed"] = in_ranks(2, lambda: train(dropout, folder / "stopped", resume=True))
    results["weights"] = [final_weights(folder / "whole"), final_weights(folder / "stopped")]
    return results


if __name__ == "__main__":
    print(json.dumps({"kills": kills, "ranks": ranks}[sys.argv[1]](Path(sys.argv[2]))))
