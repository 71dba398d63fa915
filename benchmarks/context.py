"""Measures context parallelism: one process and several that share each sequence, on the recipe lm/long-context.

    python benchmarks/context.py [--ranks 4] [--steps 20] [--out benchmarks/results/context.csv]

Writes a row for each process: losses against those of the single one, peak memory, and what the layers have sent. Memory is the
peak of resident memory (VmHWM of Linux) less what was resident when everything was imported. Sent are the bytes that a rank hands
to the all-gathers of a layer in one step, forward and backward; a second, shorter run shows that they do not depend on the length.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "context.csv"


def worker(folder: Path, context: int, steps: int, block_size: int) -> None:
    """One rank: trains, and writes what it has used into `folder`."""
    import torch.distributed as dist
    import torch.utils.tensorboard  # noqa: F401  (before the memory is read)

    import hgrn.models  # noqa: F401
    from hgrn.bench.measure import resident_bytes
    from hgrn.training.loop import train
    from hgrn.training.recipe import load_recipe

    sent = 0
    gather = dist.all_gather

    def counted(tensors, tensor, *args, **kwargs):
        nonlocal sent
        sent += tensor.nbytes
        return gather(tensors, tensor, *args, **kwargs)

    dist.all_gather = counted
    changes = {
        "parallel.context": context,
        "training.steps": steps,
        "schedule.warmup_steps": min(10, steps),
        "batch.block_size": block_size,
        "training.threads": 1,
    }
    recipe = load_recipe("lm/long-context", changes)
    losses = []
    resident = resident_bytes("VmRSS")
    began = time.perf_counter()
    train(
        recipe,
        folder / "run",
        on_event=lambda event: event["kind"] == "train" and losses.append(event["loss"]),
    )
    used = {
        "losses": losses,
        "imports_mb": resident / 2**20,
        "peak_mb": (resident_bytes("VmHWM") - resident) / 2**20,
        "sent_per_layer": sent / steps / recipe.model.num_hidden_layers,
        "seconds": time.perf_counter() - began,
    }
    (folder / f"rank-{os.environ.get('RANK', 0)}.json").write_text(json.dumps(used))


def measured(ranks: int, steps: int, block_size: int) -> list[dict]:
    """What each of so many ranks has used."""
    with tempfile.TemporaryDirectory() as folder:
        start = [sys.executable]
        if ranks > 1:
            start += ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks)]
        subprocess.run(
            [
                *start,
                __file__,
                "--worker",
                folder,
                "--ranks",
                str(ranks),
                "--steps",
                str(steps),
                "--block-size",
                str(block_size),
            ],
            check=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        return [
            json.loads((Path(folder) / f"rank-{rank}.json").read_text()) for rank in range(ranks)
        ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--block-size", type=int, default=131072)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        worker(given.worker, given.ranks, given.steps, given.block_size)
        return

    from hgrn.bench.results import environment

    short = given.block_size // 8
    (alone,) = measured(1, given.steps, given.block_size)
    together = measured(given.ranks, given.steps, given.block_size)
    shorter = measured(given.ranks, 1, short)
    losses = [abs(a - b) for a, b in zip(alone["losses"], together[0]["losses"], strict=True)]
    rows = []
    for ranks, length, steps, uses in (
        (1, given.block_size, given.steps, [alone]),
        (given.ranks, given.block_size, given.steps, together),
        (given.ranks, short, 1, shorter),
    ):
        for rank, used in enumerate(uses):
            rows.append(
                {
                    "ranks": ranks,
                    "rank": rank,
                    "tokens": length,
                    "steps": steps,
                    "largest_loss_difference": max(losses) if uses is together else "",
                    "imports_mb": f"{used['imports_mb']:.0f}",
                    "peak_mb": f"{used['peak_mb']:.0f}",
                    "peak_over_one_process": f"{used['peak_mb'] / alone['peak_mb']:.3f}"
                    if length == given.block_size
                    else "",
                    "bytes_sent_per_layer_and_step": f"{used['sent_per_layer']:.0f}",
                    "seconds": f"{used['seconds']:.1f}",
                }
                | environment()
            )
            print({name: rows[-1][name] for name in list(rows[-1])[:10]})
    given.out.parent.mkdir(parents=True, exist_ok=True)
    with given.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
