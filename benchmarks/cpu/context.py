"""Context parallelism: one process, and several that share each sequence, on lm/long-context.

A row for each process holds its losses against those of the single one, its peak memory, and what
its layers have sent. Memory is the peak of resident memory (VmHWM of Linux) above what was resident
when everything was imported. Sent are the bytes that a rank hands to the all-gathers of a layer in
one step, forward and backward; a second, shorter run shows that they do not depend on the length.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.machine import resident_bytes
from benchmarks.rows import ROOT, Cells, Results
from benchmarks.telling import telling

KEY = ("ranks", "rank", "tokens")
COLUMNS = (
    *KEY,
    *("steps", "largest_loss_difference", "imports_mb", "peak_mb", "peak_over_one_process"),
    *("bytes_sent_per_layer_and_step", "seconds"),
)
_CHILD = "benchmarks.cpu.context"


def measure(results: Results, quick: bool = False, again: bool = False) -> None:
    """The rows of one process, of four, and of four with a shorter text; about 15 minutes."""
    ranks = 2 if quick else 4
    steps = 2 if quick else 20
    tokens = 2048 if quick else 131_072
    short = tokens // 8
    plan = ((1, tokens, steps), (ranks, tokens, steps), (ranks, short, 1))
    kept = [(str(ranks), str(tokens)) for ranks, tokens, _ in plan]
    results.forget(lambda row: again or (row["ranks"], row["tokens"]) not in kept)
    if len(results.rows()) == 1 + 2 * ranks:
        print("context parallelism: measured before", flush=True)
        return
    # The losses of the single process are compared and not kept, so all is measured in one go.
    alone: dict[str, Any] = {}
    for number, (processes, length, taken) in enumerate(plan):
        with telling(f"context parallelism: {processes} processes, {length:,} tokens"):
            uses = _used_by(processes, taken, length)
        alone = alone or uses[0]
        # Only the first rank hears of losses, which are those of all ranks together.
        pairs = zip(uses[0]["losses"], alone["losses"])
        difference = max(abs(one - other) for one, other in pairs) if number == 1 else ""
        for rank, used in enumerate(uses):
            row = {
                "ranks": str(processes),
                "rank": str(rank),
                "tokens": str(length),
                "steps": str(taken),
            }
            row["largest_loss_difference"] = str(difference)
            results.add(row | _cells(used, alone["peak_mb"] if number < 2 else None))


def _cells(used: dict[str, Any], peak_of_one: float | None) -> Cells:
    """What a process has used; against the single process, where both read as many tokens."""
    share = "" if peak_of_one is None else f"{used['peak_mb'] / peak_of_one:.3f}"
    return {
        "imports_mb": f"{used['imports_mb']:.0f}",
        "peak_mb": f"{used['peak_mb']:.0f}",
        "peak_over_one_process": share,
        "bytes_sent_per_layer_and_step": f"{used['sent_per_layer']:.0f}",
        "seconds": f"{used['seconds']:.1f}",
    }


def _used_by(ranks: int, steps: int, tokens: int) -> list[dict[str, Any]]:
    """What each of so many ranks has used."""
    with tempfile.TemporaryDirectory() as folder:
        start = [sys.executable, "-m"]
        if ranks > 1:
            start += ["torch.distributed.run", "--nproc-per-node", str(ranks), "-m"]
        values = map(str, (folder, ranks, steps, tokens))
        variables = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run([*start, _CHILD, *values], check=True, env=variables, cwd=ROOT)
        files = [Path(folder) / f"rank-{rank}.json" for rank in range(ranks)]
        return [json.loads(file.read_text()) for file in files]


def _report_rank(folder: Path, ranks: int, steps: int, tokens: int) -> None:
    """One rank: train, and write what that has used into `folder`."""
    # Everything is imported before memory is read.
    import torch.distributed as dist
    import torch.utils.tensorboard  # noqa: F401

    import hgrn.models  # noqa: F401
    from hgrn.training.loop import train
    from hgrn.training.recipe import load_recipe

    sent = 0
    gather: Callable[..., Any] = dist.all_gather

    def counted(tensors: Any, tensor: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal sent
        sent += tensor.nbytes
        return gather(tensors, tensor, *args, **kwargs)

    changes = {
        "parallel.context": ranks,
        "training.steps": steps,
        "schedule.warmup_steps": min(10, steps),
        "batch.block_size": tokens,
        "training.threads": 1,
    }
    recipe = load_recipe("lm/long-context", changes)
    layers = recipe.model.config().num_hidden_layers
    losses: list[float] = []

    def listen(event: dict[str, Any]) -> None:
        if event["kind"] == "train":
            losses.append(event["loss"])

    resident = resident_bytes("VmRSS")
    began = time.perf_counter()
    with mock.patch.object(dist, "all_gather", counted):
        train(recipe, folder / "run", on_event=listen)
    used = {
        "losses": losses,
        "imports_mb": resident / 2**20,
        "peak_mb": (resident_bytes("VmHWM") - resident) / 2**20,
        "sent_per_layer": sent / steps / layers,
        "seconds": time.perf_counter() - began,
    }
    (folder / f"rank-{os.environ.get('RANK', 0)}.json").write_text(json.dumps(used))


if __name__ == "__main__":
    _report_rank(Path(sys.argv[1]), *map(int, sys.argv[2:]))
