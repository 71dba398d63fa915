"""Measures what hgrn costs and what it learns. Run from a clone of the repository:

    python -m benchmarks cpu                    speed and memory on this CPU, about half an hour
    python -m benchmarks cpu scan train         some of it; all names: python -m benchmarks cpu -h
    python -m benchmarks cpu --quick            does it work here? half a minute, small shapes
    python -m benchmarks gpu                    the kernels for GPUs on one GPU, in 8 minutes
    python -m benchmarks gpu --rehearse         the same at tiny shapes on a CPU, in 2 minutes
    python -m benchmarks trained                trains the classifiers of docs/reproduction.md
    python -m benchmarks recall                 which mixers can look up what they have read
    python -m benchmarks memory                 over which distance models can remember
    python -m benchmarks probes                 parity, copying and recall, also at longer lengths
    python -m benchmarks ablations              what each part of HGRN is worth
    python -m benchmarks newsgroups OUT         makes the text that some of these learn from
    python -m benchmarks pathfinder FOLDER      compares our Pathfinder images with the originals

Every row goes into benchmarks/results as soon as it is measured. A command that was stopped goes on
where it was: what has a row is not measured again, unless --again asks for it. Packages that hgrn
is compared with are left out if they are not installed: pip install ".[bench]".

Each command has more to say: python -m benchmarks COMMAND -h
"""

import argparse
import sys
from importlib import import_module

from hgrn.errors import UserError, near

# A command -> the module that describes it, adds its arguments and runs it. Only the module that is
# asked for is imported, because most take seconds.
COMMANDS = {
    "cpu": "benchmarks.cpu.command",
    "gpu": "benchmarks.gpu.command",
    "trained": "benchmarks.trained.command",
    "recall": "benchmarks.probes.recall_command",
    "ablations": "benchmarks.ablations.command",
    "memory": "benchmarks.probes.memory_command",
    "probes": "benchmarks.probes.command",
    "newsgroups": "benchmarks.arena.newsgroups",
    "pathfinder": "benchmarks.arena.pathfinder",
}


def main(arguments: list[str] | None = None) -> int:
    """Run a command; the status to exit with."""
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help"):
        print(__doc__)
        return 0
    if name not in COMMANDS:
        known = near(name, COMMANDS) or f"; choose from {', '.join(COMMANDS)}"
        print(f"error: there is no command {name!r}{known}", file=sys.stderr)
        return 2
    module = import_module(COMMANDS[name])
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks {name}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(parser)
    try:
        return module.run(parser.parse_args(rest), parser)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on with what has no row yet", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
