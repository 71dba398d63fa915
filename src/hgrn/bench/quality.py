"""Quality for time: models of equal size learn the same text for the same wall time; bits per byte against seconds.

Every model tries the same learning rates for a short while; the one with the fewest bits per byte on the validation
split then trains for long, and reads the test split at several points in time. Runs that are in the CSV file already
are not run again.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from hgrn.bench.measure import Tell
from hgrn.bench.models import KINDS, LanguageModel, build
from hgrn.bench.results import read_csv, write_csv
from hgrn.errors import UserError

if TYPE_CHECKING:
    from hgrn.data.sampling import BlockSampler
    from hgrn.data.tokens import TokenFile

# of the time; of the peak learning rate
_WARMUP = 0.03
_LAST = 0.01
_CHUNK = 8192  # tokens of one call of an evaluation
_FINISHED_BY = ("model", "run", "lr", "budget_s")


@dataclass(frozen=True)
class Contestant:
    """A model of `models.KINDS`, the blocks it learns from, and how it reads a split.

    window: None reads the split once with the state carried; otherwise so many tokens at a time, half of them seen
    before, so that all but the first are predicted from at least half a window.
    """

    name: str
    kind: str
    block: int = 128
    batch: int = 8
    window: int | None = None
    note: str = ""


CONTESTANTS = (
    # Its speed does not depend on the length of a block, that of nn.GRU and nn.LSTM falls with it.
    Contestant("HGRN", "HGRN", 512, 2),
    # Learned positions reach as far as the blocks do, so a context of 512 needs blocks of 512; as many tokens a step.
    Contestant(
        "Transformer, context 512", "Transformer", 512, 2, 512, "blocks of its whole context"
    ),
    Contestant("Transformer, context 128", "Transformer", window=128),
    Contestant("GRU", "GRU"),
    Contestant("LSTM", "LSTM"),
    # In transformers its state starts anew with every call that is not a single step.
    Contestant(
        "Mamba",
        "Mamba",
        window=512,
        note="read in windows: its state cannot be carried from chunk to chunk",
    ),
)


@dataclass(frozen=True)
class Plan:
    """How long: seconds of training, evaluations not counted.

    points: fractions of final_s at which the test split is read.
    tokens: read only so many of a split; None is all.
    """

    search_s: float
    final_s: float
    rates: tuple[float, ...]
    points: tuple[float, ...]
    tokens: int | None = None
    contestants: tuple[Contestant, ...] = CONTESTANTS


FULL = Plan(90, 600, (1e-3, 3e-3, 1e-2), (0.025, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0))
QUICK = Plan(0.5, 1, (3e-3,), (0.5, 1.0), tokens=4097)


def run(path: Path, where: dict[str, str], tell: Tell, plan: Plan) -> list[dict[str, str]]:
    """Runs what is not in `path` yet, adds its rows as each run ends, and returns all rows.

    Raises UserError for a file that another version wrote.
    """
    rows = read_csv(path)
    for contestant in plan.contestants:
        for rate in plan.rates:
            _run_once(rows, path, where, tell, contestant, "search", rate, plan)
        tried = [
            row
            for row in rows
            if _key(row)[:2] == (contestant.name, "search")
            and row["budget_s"] == f"{plan.search_s:g}"
        ]
        best = min(tried, key=lambda row: float(row["bits_per_byte"]))
        _run_once(rows, path, where, tell, contestant, "final", float(best["lr"]), plan)
    return rows


def _key(row: dict[str, str]) -> tuple[str, ...]:
    return tuple(row[name] for name in _FINISHED_BY)


def _run_once(
    rows, path, where, tell, contestant: Contestant, kind: str, rate: float, plan: Plan
) -> None:
    """Adds a run's rows to `rows` and to the file, unless they are there."""
    budget = plan.search_s if kind == "search" else plan.final_s
    shared = {"model": contestant.name, "run": kind, "lr": f"{rate:g}", "budget_s": f"{budget:g}"}
    if _key(shared) in map(_key, rows):
        return
    points = (1.0,) if kind == "search" else plan.points
    split = "validation" if kind == "search" else "test"
    progress = tell(f"{contestant.name}, {kind}, learning rate {rate:g}")
    notes = "; ".join(filter(None, (KINDS[contestant.kind].note(), contestant.note)))
    fresh = [
        shared
        | reading
        | {
            "split": split,
            "block": str(contestant.block),
            "batch": str(contestant.batch),
            "note": notes,
        }
        | where
        for reading in _readings(contestant, rate, budget, points, split, plan.tokens, progress)
    ]
    if rows and list(rows[0]) != list(fresh[0]):
        raise UserError(
            f"{path} has other columns than this version writes; move it away, or give another folder with --out"
        )
    rows += fresh
    write_csv(path, rows)


def _readings(
    contestant: Contestant,
    rate: float,
    budget: float,
    points: tuple[float, ...],
    split: str,
    tokens: int | None,
    progress: Callable[[int, int], None],
) -> Iterator[dict[str, str]]:
    """Trains for `budget` seconds and yields a reading of the split at each point."""
    from hgrn.data.sampling import BlockSampler
    from hgrn.data.tokens import prepare

    data = _text()
    sampler = BlockSampler(
        prepare(data, "train"), contestant.block, contestant.batch, "reset", seed=0
    )
    text = prepare(data, split)
    model = build(contestant.kind, "0.9M", contestant.block)
    for seconds, steps in _train(model, sampler, rate, budget, points, progress):
        bits = bits_per_byte(model, text, contestant.window, tokens)
        yield {
            "seconds": f"{seconds:.2f}",
            "steps": str(steps),
            "tokens": str(steps * contestant.block * contestant.batch),
            "parameters": str(model.size),
            "bits_per_byte": f"{bits:.4f}",
        }


def _text():
    """The text and the splits of the quick start."""
    from hgrn.training.recipe import load_recipe

    return load_recipe("quickstart").data


def _train(
    model: LanguageModel,
    sampler: "BlockSampler",
    peak: float,
    budget: float,
    points: tuple[float, ...],
    progress: Callable[[int, int], None],
) -> Iterator[tuple[float, int]]:
    """AdamW for `budget` seconds; yields (seconds, steps) at each point, where its clock stands still.

    The learning rate follows the time and not the steps, so that every model ends its schedule. A run whose loss is not
    finite ends at once: it goes on to yield its remaining points.
    """
    model.train()
    matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.98), fused=True)
    batch = sampler.next()
    model.loss(batch.input_ids, batch.labels).backward()  # compilation is not part of the time
    optimizer.zero_grad()
    seconds = 0.0
    steps = 0
    finite = True
    for point in points:
        while finite and seconds < point * budget:
            began = time.perf_counter()
            for group in optimizer.param_groups:
                group["lr"] = peak * schedule(seconds / budget)
            batch = sampler.next()
            loss = model.loss(batch.input_ids, batch.labels)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            finite = math.isfinite(loss.item())
            seconds = seconds + time.perf_counter() - began
            steps = steps + 1
            progress(round(min(seconds, budget)), round(budget))
        yield seconds, steps


def schedule(progress: float) -> float:
    """The learning rate over its peak, by the fraction of the time that has passed: a rise, then half a cosine."""
    if progress < _WARMUP:
        return max(progress, _WARMUP / 100) / _WARMUP
    through = min(1.0, (progress - _WARMUP) / (1 - _WARMUP))
    return _LAST + (1 - _LAST) * 0.5 * (1 + math.cos(math.pi * through))


@torch.no_grad()
def bits_per_byte(
    model: LanguageModel, text: "TokenFile", window: int | None, tokens: int | None = None
) -> float:
    """The split (or its first `tokens` bytes) once, in order: nats of all bytes but the first, over ln 2.

    Infinite if the model's output is not finite.
    """
    ids = torch.from_numpy(text.read(0, min(len(text), tokens or len(text))))
    was_training = model.training
    model.eval()
    nats = sum((_carried if window is None else _windows)(model, ids, window))
    model.train(was_training)
    return nats / math.log(2) / (len(ids) - 1) if math.isfinite(nats) else math.inf


def _carried(model: LanguageModel, ids: Tensor, window: None) -> Iterator[float]:
    state = None
    for start in range(0, len(ids) - 1, _CHUNK):
        chunk = ids[start : start + _CHUNK + 1]
        logits, state = model(chunk[None, :-1], state)
        yield _nats(logits[0], chunk[1:])


def _windows(model: LanguageModel, ids: Tensor, window: int) -> Iterator[float]:
    total = len(ids) - 1
    window = min(window, total)
    starts = [*range(0, total - window, max(1, window // 2)), total - window]
    scored = 0
    together = max(1, _CHUNK // window)
    for first in range(0, len(starts), together):
        group = starts[first : first + together]
        logits = model.logits(torch.stack([ids[start : start + window] for start in group]))
        for start, found in zip(group, logits):
            new = scored - start  # what the windows before have not scored
            yield _nats(found[new:], ids[scored + 1 : start + window + 1])
            scored = start + window


def _nats(logits: Tensor, labels: Tensor) -> float:
    return F.cross_entropy(logits.double(), labels, reduction="sum").item()
