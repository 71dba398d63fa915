"""python -m tests.fuzz [--mutants 100000] [--seed 0] [--only NAME ...] [--keep FOLDER]"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch

from tests.fuzz.run import fuzz, table
from tests.fuzz.targets import make_targets


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Damage files of every kind and see how they are read."
    )
    parser.add_argument("--mutants", type=int, default=100_000, metavar="N")
    parser.add_argument("--seed", type=int, default=0, help="other seeds make other mutants")
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", help="targets whose name has this in it"
    )
    parser.add_argument(
        "--keep",
        type=Path,
        default=Path("fuzz-faults"),
        help="folder for mutants that fail (default: fuzz-faults)",
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as work:
        targets = make_targets(Path(work) / "whole")
        chosen = [
            target
            for target in targets
            if not options.only or any(name in target.name for name in options.only)
        ]
        began = time.monotonic()
        counts = fuzz(chosen, options.mutants, options.seed, Path(work), options.keep)
    print(table(counts))
    print(f"{time.monotonic() - began:.0f} s")
    for name, fault in counts.faults.items():
        print(f"{name}: {fault.strip().splitlines()[-1][:200]}")
    return 1 if counts.faults else 0


if __name__ == "__main__":
    sys.exit(main())
