"""What a process pays before it computes: the import, and kernels that are compiled or read.

Also what a training step costs if freed memory is given back. Each reading is one process.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from statistics import median

import torch

from benchmarks.cpu.models import hgrn_model
from benchmarks.cpu.training import training_step
from benchmarks.parts import Part
from benchmarks.rows import ROOT, Row
from hgrn.cli.speed import Times, wall_clock
from hgrn.errors import UserError
from hgrn.memory import keep_freed_memory
from hgrn.progress import OnProgress

# width, depth, time steps, batch
_STEP = (128, 4, 512, 8)
_QUICK_STEP = (32, 2, 64, 2)
_REPEATS = 7  # steps of one process
# A program that prints seconds. Nothing of ours may be imported before.
_IMPORT = (
    "import time; began = time.perf_counter(); import hgrn; print(time.perf_counter() - began)"
)
_HERE = "from benchmarks.cpu import start; start."
_COMPILED = "kernels of training and decoding, "


@dataclass(frozen=True)
class _Reading:
    """A row and the program that prints its seconds; own_cache: with a new folder for kernels."""

    name: str
    program: str
    shape: str = ""
    note: str = ""
    own_cache: bool = False


def parts(quick: bool) -> list[Part]:
    """One part: all readings in turn. Raises UserError, when measured, if a process fails."""
    sizes = _QUICK_STEP if quick else _STEP
    where = "D={}, {} layers, T={}, B={}".format(*sizes)
    above = "above the same calls with kernels at hand"
    kernels = _HERE + "report_kernels()"
    readings = [
        _Reading("import hgrn", _IMPORT),
        # The second process with the same folder finds there what the first has compiled.
        _Reading(_COMPILED + "compiled", kernels, note=above, own_cache=True),
        _Reading(_COMPILED + "read from disk", kernels, note=above, own_cache=True),
        _Reading(
            "training step, freed memory kept",
            _HERE + f"report_step(True, {sizes})",
            where,
            "as hgrn train, quickstart and the benchmarks run",
        ),
        _Reading(
            "training step, freed memory given back",
            _HERE + f"report_step(False, {sizes})",
            where,
            "as a process runs by itself",
        ),
    ]
    # The others take a minute.
    chosen = [readings[0], readings[3]] if quick else readings
    rounds = 1 if quick else 5

    def measure(tell: OnProgress) -> list[Row]:
        seconds: dict[str, list[float]] = {}
        for number in range(rounds):
            with tempfile.TemporaryDirectory() as folder:
                for one in chosen:
                    variables = {"NUMBA_CACHE_DIR": folder} if one.own_cache else {}
                    seconds.setdefault(one.name, []).append(_child(one.program, variables))
            tell(number + 1, rounds)
        return [
            Row.timed(Times.of(seconds[one.name]), name=one.name, shape=one.shape, note=one.note)
            for one in chosen
        ]

    return [Part("start of a process", lambda row: row.repeats == rounds, measure)]


def _child(program: str, variables: dict[str, str]) -> float:
    """The seconds that a program prints in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=os.environ | variables,
        cwd=ROOT,
    )
    if done.returncode:
        raise UserError(
            f"a process that measures failed (status {done.returncode}, {program!r}): "
            f"{done.stderr.strip()[-300:]}"
        )
    return json.loads(done.stdout)


def report_kernels() -> None:
    """Print what the first training step and first generated tokens take above later ones."""
    model = hgrn_model(64, 2)
    step = training_step(model, 4, 256)

    def calls() -> None:
        model.train()
        step()
        model.eval()
        model.generate(torch.ones(1, 4, dtype=torch.long), max_new_tokens=3, do_sample=False)

    first = wall_clock(calls)
    print(first - median(wall_clock(calls) for _ in range(3)))


def report_step(keep: bool, sizes: tuple[int, int, int, int]) -> None:
    """Print the median time of a training step."""
    if keep:
        keep_freed_memory()
    width, depth, steps, batch = sizes
    step = training_step(hgrn_model(width, depth), batch, steps)
    step()
    print(median(wall_clock(step) for _ in range(_REPEATS)))
