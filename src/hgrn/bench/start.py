"""What a process pays before it computes: the import, the compilation of kernels; and for memory that is given back.

Each reading is that of a process of its own.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from statistics import median

import torch

from hgrn.bench.measure import Tell, Times
from hgrn.bench.models import hgrn_model
from hgrn.bench.results import Row
from hgrn.bench.training import training_step
from hgrn.errors import UserError

# width, depth, time steps, batch
_STEP = (128, 4, 512, 8)
_QUICK_STEP = (32, 2, 64, 2)
_REPEATS = 7  # steps of one process
# Programs that print seconds; the first must not have imported anything of ours before.
_IMPORT = (
    "import time; began = time.perf_counter(); import hgrn; print(time.perf_counter() - began)"
)
_HERE = "from hgrn.bench import start; start."


def measure(quick: bool, tell: Tell) -> list[Row]:
    """Raises UserError if one of the processes fails."""
    rounds = 1 if quick else 5
    progress = tell("start")
    step = _QUICK_STEP if quick else _STEP
    readings: dict[str, list[float]] = {}
    for number in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            calls = {
                "import": (_IMPORT, {}),
                "cold": (_HERE + "report_kernels()", {"NUMBA_CACHE_DIR": folder}),
                "disk": (_HERE + "report_kernels()", {"NUMBA_CACHE_DIR": folder}),
                "kept": (_HERE + f"report_step(True, {step})", {}),
                "returned": (_HERE + f"report_step(False, {step})", {}),
            }
            for name in ("import", "kept") if quick else calls:  # quick: the others take a minute
                readings.setdefault(name, []).append(_child(*calls[name]))
        progress(number + 1, rounds)

    label = "D={}, {} layers, T={}, B={}".format(*step)
    named = {
        "import": ("import hgrn", "", ""),
        "cold": (
            "kernels of training and decoding, compiled",
            "",
            "above the same calls with kernels at hand",
        ),
        "disk": (
            "kernels of training and decoding, read from disk",
            "",
            "above the same calls with kernels at hand",
        ),
        "kept": (
            "training step, freed memory kept",
            label,
            "as hgrn train, quickstart and bench run",
        ),
        "returned": (
            "training step, freed memory given back",
            label,
            "as a process runs by itself",
        ),
    }
    return [
        Row.timed(Times.of(seconds), name=named[key][0], shape=named[key][1], note=named[key][2])
        for key, seconds in readings.items()
    ]


def _child(program: str, variables: dict[str, str]) -> float:
    """The seconds that a program prints in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=os.environ | variables
    )
    if done.returncode:
        raise UserError(
            f"a process that measures failed (status {done.returncode}, {program!r}): {done.stderr.strip()[-300:]}"
        )
    return json.loads(done.stdout)


def report_kernels() -> None:
    """Prints what a first training step and two first generated tokens take above the second ones."""

    def calls() -> float:
        began = time.perf_counter()
        model.train()
        step()
        model.eval()
        model.model.generate(torch.ones(1, 4, dtype=torch.long), max_new_tokens=3, do_sample=False)
        return time.perf_counter() - began

    model = hgrn_model(64, 2)
    step = training_step(model, 4, 256)
    first = calls()
    print(first - median(calls() for _ in range(3)))


def report_step(keep: bool, shape: tuple[int, int, int, int]) -> None:
    """Prints the median time of a training step."""
    from hgrn.memory import keep_freed_memory

    if keep:
        keep_freed_memory()
    width, depth, steps, batch = shape
    step = training_step(hgrn_model(width, depth), batch, steps)
    step()
    seconds = []
    for _ in range(_REPEATS):
        began = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - began)
    print(median(seconds))
