"""Runs in processes of their own, as scripts for the tests that kill them or need several.

    python -m tests.training.processes kills FOLDER     every named point of a save, and random moments
    python -m tests.training.processes ranks FOLDER     one process and two, which talk through gloo
    python -m tests.training.processes locks FOLDER     two processes that find the lock of a dead one
    python -m tests.training.processes refusals FOLDER  two processes of which one cannot write
    python -m tests.training.processes shares FOLDER    whole and sharded weights, whole and shared sequences, on 1, 2 and 4

Everything is imported once and every run is a fork, so that a run takes tenths of a second instead of many.
The results are printed as one JSON object.
"""

import errno
import fcntl
import json
import os
import random
import shutil
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import torch._dynamo  # noqa: F401  (what every fork would import)

import hgrn.models  # noqa: F401
from hgrn.cli import main
from hgrn.errors import UserError
from hgrn.training import checkpointing, manifests, runlog
from hgrn.training.distributed import Ranks
from hgrn.training.loop import train
from hgrn.training.peers import Process
from hgrn.training.recipe import Recipe, recipe_to_yaml
from hgrn.training.runfolder import locked
from hgrn.training.tasks.language import LanguageModelTask
from tests.training.tiny_runs import tiny_image_recipe, tiny_recipe

# Kind of run, the rank that finds no room, and for what.
REFUSALS = [("ddp", 1, "state"), ("ddp", 0, "model"), ("ddp", 0, "log"), ("fsdp", 1, "shards")]


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
    checkpoint, _ = manifests.latest_valid(run)
    files = {file.name: file.sha256 for file in manifests.Manifest.read(checkpoint).files}
    return f"{checkpoint.name} {files['model.safetensors']}"


def train_and_die(recipe: Recipe, run: Path, point: str, nth: int) -> None:
    """Train until a save has passed `point` for the nth time, and be killed there."""
    passed = 0

    def done(name: str) -> None:
        nonlocal passed
        passed += name == point
        if passed == nth:
            os.kill(os.getpid(), signal.SIGKILL)

    checkpointing.reached = done
    train(recipe, run)


def kills(folder: Path) -> dict:
    """For each kill: how the killed run ended, and the weights of the run that was resumed after it."""
    results = {}
    for state in ("carry", "documents"):
        recipe = tiny_recipe(
            folder / state, batch__state=state, batch__accumulation=2, training__keep=1
        )
        # 12 steps, saved at 4, 8 and 12; an epoch is 5.
        run = folder / state / "whole"
        began = time.monotonic()
        assert wait(start(lambda: train(recipe, run))) == 0
        seconds = time.monotonic() - began
        results[f"{state}: whole"] = [0, final_weights(run)]
        for point in get_args(checkpointing.SavePoint):
            run = folder / state / point
            killed = wait(start(lambda: train_and_die(recipe, run, point, nth=2)))
            assert wait(start(lambda: train(recipe, run, resume=True))) == 0
            results[f"{state}: {point}"] = [killed, final_weights(run)]
        choose = random.Random(state)
        for number in range(4):  # each run is killed again and again, a little later every time
            run = folder / state / f"random {number}"
            life = choose.uniform(0, seconds)
            ends = []
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

    return [
        wait(child) for child in [start(lambda rank=rank: as_rank(rank)) for rank in range(world)]
    ]


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
            os.kill(
                os.getpid(), signal.SIGTERM
            )  # rank 0 alone; the other must stop at the same step

    results["stopped"] = in_ranks(2, lambda: train(dropout, folder / "stopped", on_event=interrupt))
    results["stopped at"] = final_weights(folder / "stopped").split()[0]
    shutil.copytree(folder / "stopped", folder / "alone")
    results["alone"] = in_ranks(1, lambda: train(dropout, folder / "alone", resume=True))
    results["resumed"] = in_ranks(2, lambda: train(dropout, folder / "stopped", resume=True))
    results["weights"] = [final_weights(folder / "whole"), final_weights(folder / "stopped")]
    return results


def refusals(folder: Path) -> dict:
    """Two ranks, one of which finds no room after its first checkpoint.

    For each: how they end, what they print of errors, and the checkpoints left.
    """
    results = {}
    places = {
        "state": (checkpointing.torch, "save"),
        "model": (checkpointing, "_save_model"),
        "log": (runlog._Appended, "write"),
        "shards": (checkpointing.sharding.HuggingFaceStorageWriter, "write_data"),
    }
    for mode, rank, what in REFUSALS:
        made = recipe_to_yaml(tiny_recipe(folder, parallel__mode=mode, training__log_every=1))
        (folder / f"{mode}.yaml").write_text(made)
        case = f"{mode} {rank} {what}"
        run = folder / case
        output = folder / f"{case}.txt"
        owner, name = places[what]

        def work() -> None:
            write = getattr(owner, name)

            def full(*arguments: object, **named: object) -> object:
                if (
                    int(os.environ["RANK"]) == rank
                    and (run / "checkpoints" / "step-000004").exists()
                ):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return write(*arguments, **named)

            setattr(owner, name, full)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
            os._exit(main(["train", str(folder / f"{mode}.yaml"), "--out", str(run)]))

        ended = in_ranks(2, work)
        said = [
            line for line in output.read_text().splitlines() if "hgrn:" in line or "Error" in line
        ]
        results[case] = [ended, said, sorted(os.listdir(run / "checkpoints"))]
    return results


def locks(folder: Path) -> dict:
    """Two processes take over the lock of a dead one, the first slowly; with locks of files and without.

    For each: the processes, what each says, and what is left in the folder.
    """
    refusals = ("", "ENOSYS", "EOPNOTSUPP")
    return {
        f"locks {refusal}": _taken_over(folder / f"run{refusal}", refusal) for refusal in refusals
    }


def _taken_over(run: Path, refusal: str) -> list:
    run.mkdir()
    dead = start(lambda: None)
    wait(dead)
    (run / "run.lock").write_text(
        json.dumps({"host": socket.gethostname(), "pid": dead, "born": "1"})
    )
    if refusal:
        (run / "run.lock.marker").write_text(f"{dead}\n{socket.gethostname()}\n")
    said, told = os.pipe()
    leave, leaving = os.pipe()

    def flock(*_: object) -> None:
        raise OSError(getattr(errno, refusal), os.strerror(getattr(errno, refusal)))

    def take(delay: float) -> None:
        judge = Process.is_gone.fget

        def slowly(process: Process) -> bool:
            answer = judge(process)
            time.sleep(delay)
            return answer

        Process.is_gone = property(slowly)
        if refusal:
            fcntl.flock = flock
        os.close(leaving)
        try:
            with locked(run):
                os.write(told, f"{os.getpid()} holds\n".encode())
                os.read(leave, 1)  # until the other has said something too
        except UserError as error:
            os.write(told, f"{os.getpid()} {error}\n".encode())

    pids = [start(lambda: take(0.5)), start(lambda: take(0.0))]
    with open(said) as lines:
        heard = dict(next(lines).rstrip("\n").split(" ", 1) for _ in pids)
    os.close(leaving)
    assert [wait(pid) for pid in pids] == [0, 0]
    return [pids, [heard[str(pid)] for pid in pids], os.listdir(run)]


def shares(folder: Path) -> dict:
    """The same 30 steps on one process and in other ways; stopped on one number of ranks and gone on with on another."""
    folder.mkdir(parents=True)
    (folder / "tiny.txt").write_text(
        "some lines of text\n" * 60 + "a long line without any border in it " * 40
    )

    def recipe(**overrides: object) -> Recipe:
        fixed = dict(
            model__dropout=0,
            training__log_every=1,
            training__steps=30,
            training__save_every=15,
            training__eval_every="null",
            training__keep="null",
            batch__batch_size=8,
            batch__state="carry",
            parallel__mode="fsdp",
        )
        return tiny_recipe(folder, **fixed | overrides)

    def run(name: str, world: int, resume: bool = False, **overrides: object) -> None:
        made = recipe(**overrides)
        ended = in_ranks(world, lambda: train(made, folder / name, resume=resume))
        assert ended == [0] * world, (name, ended)

    def go_on(source: str, name: str, world: int) -> None:
        shutil.copytree(folder / source, folder / name)
        shutil.rmtree(folder / name / "checkpoints" / "step-000030")
        run(name, world, resume=True)

    run("one", 1)
    run("ddp 2", 2, parallel__mode="ddp")
    run("fsdp 4", 4, parallel__recompute=True, batch__accumulation=2)
    go_on("fsdp 4", "fsdp 4 to 2", 2)
    go_on("fsdp 4 to 2", "fsdp 2 to 1", 1)
    go_on("one", "one to 4", 4)
    go_on("ddp 2", "ddp 2 to fsdp 4", 4)
    short = dict(
        training__steps=6, training__save_every=6, batch__accumulation=2, batch__batch_size=4
    )
    run("muon one", 1, optimizer__name="muon", **short)
    run("muon fsdp", 4, optimizer__name="muon", **short | {"batch__accumulation": 1})
    run(
        "bf16 ddp",
        2,
        training__precision="bf16",
        training__eval_every=3,
        parallel__mode="ddp",
        **short,
    )
    run(
        "bf16 fsdp",
        2,
        training__precision="bf16",
        training__eval_every=3,
        parallel__recompute=True,
        **short,
    )
    for state in ("reset", "carry", "documents"):
        here = dict(data__documents="line", batch__state=state, **short)
        run(f"{state} one", 1, training__eval_every=3, **here)
        run(
            f"{state} context",
            4 if state == "documents" else 2,
            training__eval_every=3,
            parallel__context=2,
            parallel__mode="ddp",
            **here | {"batch__accumulation": 1},
        )
    run("carry context fsdp", 4, parallel__context=2, data__documents="line", **short)
    images = dict(
        model__dropout=0,
        mixing__probability=0,
        augmentation__flip=0,
        augmentation__erasing=0,
        augmentation__crop="centre",
        training__log_every=1,
        training__steps=8,
        training__eval_every=4,
        training__keep="null",
    )
    for name, world, changes in (
        ("images one", 1, {}),
        ("images ddp", 2, {"batch__accumulation": 1}),
        ("images fsdp", 2, {"parallel__mode": "fsdp"}),
        ("images bf16 ddp", 2, {"training__precision": "bf16"}),
        ("images bf16 fsdp", 2, {"training__precision": "bf16", "parallel__mode": "fsdp"}),
        ("batch norm ddp", 2, {"model__norm_type": "batch"}),
        ("batch norm fsdp", 2, {"model__norm_type": "batch", "parallel__mode": "fsdp"}),
    ):
        classifier = tiny_image_recipe(folder, **images | changes)
        assert in_ranks(world, lambda: train(classifier, folder / name)) == [0] * world, name
    for name, source, world in (
        ("batch norm again", "batch norm fsdp", 2),
        ("batch norm alone", "batch norm fsdp", 1),
    ):
        shutil.copytree(folder / source, folder / name)
        shutil.rmtree(folder / name / "checkpoints" / "step-000008")
        assert (
            in_ranks(world, lambda: train(classifier, folder / name, resume=True)) == [0] * world
        ), name
    made = recipe(**short, parallel__context=2)
    assert in_ranks(4, lambda: write_local_shapes(made, folder)) == [0] * 4
    return {}


def write_local_shapes(recipe: Recipe, folder: Path) -> None:
    """For each parameter: its shape, what this rank holds of it, and the dtypes of its values inside a bf16 model."""
    from torch.distributed.tensor import DTensor

    with Ranks.join(recipe.parallel) as ranks:
        model = LanguageModelTask(recipe, ranks).model
        ranks.wrap(model, "bf16")
        rows = {
            name: [isinstance(parameter, DTensor), parameter.shape, parameter.to_local().shape]
            for name, parameter in model.named_parameters()
        }
        model.unshard()
        for part in model.modules():
            if hasattr(part, "unshard"):
                part.unshard()
        for name, parameter in model.named_parameters():
            rows[name].append(str(parameter.dtype))
    (folder / f"shapes {ranks.rank}.json").write_text(json.dumps(rows))


if __name__ == "__main__":
    works = {work.__name__: work for work in (kills, ranks, refusals, locks, shares)}
    print(json.dumps(works[sys.argv[1]](Path(sys.argv[2]))))
