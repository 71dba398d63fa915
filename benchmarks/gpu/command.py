"""Measures the GPU kernels, training steps and decoding on one GPU.

    python -m benchmarks gpu              at most 8 minutes; names the rest and measures it when
                                          the command is given again
    python -m benchmarks gpu --rehearse   every path at tiny shapes on a CPU, in Triton's
                                          interpreter; its numbers mean nothing

What is compared, and with what:

- Scans, with a copy of as many bytes in the same loop. A scan can do no better. Forward it reads
  candidate and forget gate and writes h; backward it reads these, h and its gradient, and writes
  two gradients. A "kernel" is replayed from a CUDA graph, so it is the GPU's time alone. An "op" is
  the call as a program makes it, with launches and allocations, and at small shapes that is what a
  program waits for. Between two calls a buffer larger than any L2 is written, so nothing is read
  from a cache. flash-linear-attention's scans start from log gates, so the operations that make
  these belong to their time.
- Models: ours and flash-linear-attention's HGRN of equal shapes (real state, no biases, SwiGLU),
  and a Transformer (RMSNorm, SwiGLU, rotary positions, PyTorch's fused attention) of about as many
  parameters. All weights are bfloat16. A step is forward, backward and fused AdamW. Decoding
  continues a prompt, one token a step, as called and from a CUDA graph.

Nothing is timed before its result was compared. Our scans are compared with float64 at the very
shape that is timed (a sample of channels, which do not mix), all options of the public functions at
small ones; our model's loss and gradients with float64 on the CPU; whatever was compiled or
captured with the plain call. What of ours differs or fails gets no number, and the exit status is
1. A peer that is absent, fails or differs is named and left out. A missed target is no failure: the
table says so. First calls, which compile, have rows of their own.
"""

import argparse
import os
import tempfile
from pathlib import Path

import torch

from benchmarks.gpu import models, options, report, scans, steps
from benchmarks.gpu.session import Session, interpreted
from benchmarks.machine import environment, version
from benchmarks.rows import IMAGES, RESULTS, Results

PARTS = ("check", "scans", "train", "decode")
REHEARSAL = "REHEARSAL, no GPU: these numbers mean nothing"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument(
        "--rehearse", action="store_true", help="tiny shapes on a CPU, in Triton's interpreter"
    )
    parser.add_argument(
        "--only", nargs="+", choices=PARTS, default=PARTS, help="these parts (default: all)"
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=8,
        help="then what is left is skipped and named (default: 8)",
    )
    parser.add_argument("--again", action="store_true", help="measure anew what has rows already")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="of gpu.csv (default: benchmarks/results; of a rehearsal, a new folder)",
    )
    parser.add_argument(
        "--plots",
        type=Path,
        metavar="FOLDER",
        help="of bench_gpu.png (default: docs/images; in a rehearsal, as --out)",
    )


def run(given: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Measure, print the targets, and draw; 1 if something of ours is wrong."""
    _check(given, parser)
    out = given.out
    if out is None:
        out = Path(tempfile.mkdtemp(prefix="hgrn-gpu-")) if given.rehearse else RESULTS
    plots = given.plots or (out if given.rehearse else IMAGES)
    hardware = REHEARSAL if given.rehearse else torch.cuda.get_device_name()
    print(hardware, flush=True)

    packages = {package: version(package) for package in ("triton", "flash-linear-attention")}
    where = environment() | packages | {"gpu": hardware}
    results = Results(out / "gpu.csv", where=where)
    session = Session(results, given.rehearse, given.minutes, given.again)
    # What has been measured before an error is printed and drawn all the same.
    with session.guarded(name="the run"), session.stream(), interpreted(given.rehearse):
        _measure(session, given.only)
    rows = session.rows
    print(report.table(rows, session.failures, given.rehearse))
    if rows:
        picture = report.draw(rows, hardware, plots / "bench_gpu.png")
        print(f"written: {results.path}, {picture}")
    print(hardware)
    return 1 if session.failures else 0


def _check(given: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Refuse what cannot be measured, or would put a rehearsal's numbers where they are read."""
    is_interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if given.rehearse:
        for name, kept in (("out", RESULTS), ("plots", IMAGES)):
            folder = getattr(given, name)
            if folder is not None and folder.resolve().is_relative_to(kept):
                parser.error(
                    f"--{name} {folder}: a rehearsal's numbers mean nothing, "
                    f"none goes into {kept}; give another folder"
                )
        if not is_interpreted:
            parser.error(
                "a rehearsal runs the kernels in Triton's interpreter; "
                "start it with TRITON_INTERPRET=1"
            )
    elif is_interpreted:
        parser.error(
            "TRITON_INTERPRET=1 is set, so no kernel would run on the GPU; "
            "unset it, or give --rehearse"
        )
    elif not torch.cuda.is_available():
        parser.error("no GPU is here; --rehearse runs all of it on a CPU")
    if not given.minutes > 0:
        parser.error(f"--minutes must be above 0, got {given.minutes}")


def _measure(session: Session, parts: tuple[str, ...]) -> None:
    """What matters most comes first, so that it is there when the time is used up."""
    if "check" in parts:
        options.check(session)
    if {"check", "scans"} & set(parts):
        scans.run(session, time="scans" in parts)
    if not {"check", "train", "decode"} & set(parts):
        return
    passed = models.passing(session)
    # All sizes eagerly before any is compiled, which takes long for the large ones.
    small, *large = models.sizes(session.rehearse)
    if "train" in parts:
        for size in (small, *large):
            steps.train(session, size, passed, compiled=False)
        steps.train(session, small, passed, compiled=True)
    if "decode" in parts:
        for size in (small, *large):
            steps.decode(session, size, passed)
    if "train" in parts:
        for size in large:
            steps.train(session, size, passed, compiled=True)
