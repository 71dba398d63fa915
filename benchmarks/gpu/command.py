"""Runs what `benchmarks.gpu` describes."""

import argparse
import os
import sys
import tempfile
from pathlib import Path

import torch

import benchmarks.gpu as package
from benchmarks.gpu import models, report, scans
from benchmarks.gpu.clock import Bench, interpreted

PARTS = ("check", "scans", "train", "decode")
_ROOT = Path(__file__).resolve().parents[2]
RESULTS = _ROOT / "benchmarks" / "results"
IMAGES = _ROOT / "docs" / "images"


def measure(bench: Bench, parts: tuple[str, ...]) -> None:
    """What matters most first, so that it is there when the time is used up."""
    if "scans" in parts:
        scans.announce(bench)
    if "train" in parts:
        models.announce(bench)
    if {"check", "scans"} & set(parts):
        scans.run(bench, check="check" in parts, time="scans" in parts)
    if not {"check", "train", "decode"} & set(parts):
        return
    passed = models.gates(bench)
    rates = {}
    sizes = models.sizes(bench)
    for size in sizes if "train" in parts else ():
        models.train(bench, size, passed, False, rates)
    for size in sizes[:1] if "train" in parts else ():
        models.train(bench, size, passed, True, rates)
    for size in sizes if "decode" in parts else ():
        models.decode(bench, size, passed)
    for size in sizes[1:] if "train" in parts else ():
        models.train(bench, size, passed, True, rates)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=package.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="folder of gpu.csv (default: benchmarks/results; of a rehearsal, a new one)",
    )
    parser.add_argument(
        "--plots",
        type=Path,
        help="folder of bench_gpu.png (default: docs/images; in a rehearsal, --out)",
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument(
        "--minutes",
        type=float,
        default=8,
        help="then what is left is skipped and named (default: 8)",
    )
    parser.add_argument(
        "--rehearse", action="store_true", help="tiny shapes on a CPU, in Triton's interpreter"
    )
    options = parser.parse_args(arguments)
    if options.rehearse:
        for name, kept in (("out", RESULTS), ("plots", IMAGES)):
            given = getattr(options, name)
            if given is not None and given.resolve().is_relative_to(kept):
                parser.error(
                    f"--{name} {given}: a rehearsal's numbers mean nothing, none goes into {kept}; give another folder"
                )
        if os.environ.get("TRITON_INTERPRET") != "1":
            parser.error(
                "a rehearsal runs the kernels in Triton's interpreter; start it with TRITON_INTERPRET=1"
            )
    elif os.environ.get("TRITON_INTERPRET") == "1":
        parser.error(
            "TRITON_INTERPRET=1 is set, so no kernel would run on the GPU; unset it, or give --rehearse"
        )
    elif not torch.cuda.is_available():
        parser.error("no GPU is here; --rehearse runs all of it on a CPU")
    if not options.minutes > 0:
        parser.error(f"--minutes must be above 0, got {options.minutes}")
    out = options.out or (
        Path(tempfile.mkdtemp(prefix="hgrn-gpu-")) if options.rehearse else RESULTS
    )
    plots = options.plots or (out if options.rehearse else IMAGES)
    hardware = (
        "REHEARSAL, no GPU: these numbers mean nothing"
        if options.rehearse
        else torch.cuda.get_device_name()
    )
    print(hardware, flush=True)
    bench = Bench(options.rehearse, options.minutes)
    with bench.guarded(name="the run"), bench.stream(), interpreted(options.rehearse):
        measure(bench, tuple(options.only))
    print(report.table(bench))
    for path in report.save(bench, hardware, out, plots) if bench.rows else ():
        print(f"written: {path}")
    print(hardware)
    return 1 if bench.failures else 0


if __name__ == "__main__":
    sys.exit(main())
