"""Quality for time: models of equal size learn one text for the same time; bits per byte.

Every model tries the same learning rates for a short while. The one with the fewest bits per byte
on the validation split then trains for long, and reads the test split at several points in time.
The training loop and the evaluation are those of `hgrn train` and `hgrn eval`.
"""

import math
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from benchmarks.cpu.models import KINDS, SIZES, build, loss_of, parameters
from benchmarks.cpu.training import training_step
from benchmarks.rows import Cells, Results
from benchmarks.telling import telling
from hgrn.data.sampling import Batch
from hgrn.data.tokens import TokenFile, prepare
from hgrn.errors import UserError
from hgrn.progress import OnProgress
from hgrn.training.loop import train
from hgrn.training.recipe import Recipe, load_recipe
from hgrn.training.tasks.language import LanguageModelTask, evaluate

COLUMNS = (
    *("model", "run", "lr", "budget_s", "seconds", "steps", "tokens", "parameters"),
    *("bits_per_byte", "split", "block", "batch", "note"),
)
KEY = ("model", "run", "lr", "budget_s", "steps")
_SIZE = "0.9M"
_WARM_UP = 0.03  # of the steps
_LAST = 0.01  # of the peak learning rate
_PACE = 0.02  # of the time: how long the pace of a model is measured
_TOGETHER = 8192  # tokens of one call that reads in windows


@dataclass(frozen=True)
class Contestant:
    """A model of `KINDS`, the blocks it learns from, and how it reads a split.

    window: None reads the split once with the state carried. Otherwise the model reads so many
    tokens at a time, half of which it has seen before.
    """

    name: str
    kind: str
    block: int = 128
    batch: int = 8
    window: int | None = None
    note: str = ""


CONTESTANTS = (
    # Its speed does not depend on the length of a block; that of nn.GRU and nn.LSTM falls with it.
    Contestant("HGRN", "HGRN", 512, 2),
    # Learned positions reach as far as the blocks do, so a context of 512 needs blocks of 512.
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
    """How long everything takes, in seconds of training; evaluations are not counted.

    points: fractions of a final run at which it reads the test split. tokens: how many tokens of a
    split are read; None is all.
    """

    search_s: float
    final_s: float
    rates: tuple[float, ...]
    points: tuple[float, ...]
    tokens: int | None = None
    contestants: tuple[Contestant, ...] = CONTESTANTS


FULL = Plan(90, 600, (1e-3, 3e-3, 1e-2), (0.025, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0))
QUICK = Plan(0.5, 1, (3e-3,), (0.5, 1.0), tokens=4097)


@dataclass(frozen=True)
class Run:
    """One training of a contestant, and when and where it reads."""

    contestant: Contestant
    kind: str  # "search" or "final"
    rate: float
    budget: float
    points: tuple[float, ...]
    split: str

    @property
    def cells(self) -> Cells:
        """The cells by which its rows are known."""
        return {
            "model": self.contestant.name,
            "run": self.kind,
            "lr": f"{self.rate:g}",
            "budget_s": f"{self.budget:g}",
        }


def measure(results: Results, plan: Plan = FULL, again: bool = False) -> None:
    """Do the runs that have no rows yet; a run's rows are written when it ends."""
    budgets = (f"{plan.search_s:g}", f"{plan.final_s:g}")
    results.forget(lambda row: again or row["budget_s"] not in budgets)
    for contestant in plan.contestants:
        searches = [
            Run(contestant, "search", rate, plan.search_s, (1.0,), "validation")
            for rate in plan.rates
        ]
        for run in searches:
            _do(run, results, plan.tokens)
        tried = [row for row in results.rows() if any(_is_of(run, row) for run in searches)]
        best = min(tried, key=lambda row: float(row["bits_per_byte"]))
        rate = float(best["lr"])
        final = Run(contestant, "final", rate, plan.final_s, plan.points, "test")
        _do(final, results, plan.tokens)


def _is_of(run: Run, row: Cells) -> bool:
    return run.cells.items() <= row.items()


def _do(run: Run, results: Results, tokens: int | None) -> None:
    """Train and read, unless the rows are there already."""
    title = f"{run.contestant.name}, {run.kind}, learning rate {run.rate:g}"
    if results.has(**run.cells):
        print(f"{title}: measured before", flush=True)
        return
    contestant = run.contestant
    shared = run.cells | {
        "parameters": str(parameters(build(contestant.kind, _SIZE, contestant.block))),
        "split": run.split,
        "block": str(contestant.block),
        "batch": str(contestant.batch),
        "note": "; ".join(filter(None, (KINDS[contestant.kind].note, contestant.note))),
    }
    with telling(title) as tell:
        readings = _readings(run, tokens, tell)
    results.add(*(shared | reading for reading in readings))


def _readings(run: Run, tokens: int | None, tell: OnProgress) -> list[Cells]:
    """Train for the budget, and read the split at each point.

    A run whose loss is not finite ends at once, and all that it has not read yet costs infinity.
    """
    recipe = _recipe(run)
    text = prepare(recipe.data, run.split)
    steps = recipe.training.steps
    wanted = [max(1, round(point * steps)) for point in run.points]
    readings: dict[int, Cells] = {}
    models: list[PreTrainedModel] = []

    def note(step: int, seconds: float, bits: float) -> None:
        readings[step] = {
            "seconds": f"{seconds:.2f}",
            "steps": str(step),
            "tokens": str(step * run.contestant.block * run.contestant.batch),
            "bits_per_byte": f"{bits:.4f}",
        }

    seconds = 0.0

    def listen(event: dict[str, Any]) -> None:
        nonlocal seconds
        if event["kind"] == "train":
            seconds = event["elapsed"]
            tell(event["step"], steps)
            if event["step"] in wanted:
                bits = bits_per_byte(models[0], text, run.contestant.window, tokens)
                note(event["step"], seconds, bits)

    def make_task(*arguments: Any) -> "ContestTask":
        task = ContestTask(run.contestant, *arguments)
        models.append(task.model)
        return task

    with tempfile.TemporaryDirectory() as folder:
        try:
            outcome = train(recipe, Path(folder) / "run", on_event=listen, make_task=make_task)
        except UserError:
            if not models or _has_finite_gradients(models[0]):
                raise
            for step in wanted:
                if step not in readings:
                    note(step, seconds, math.inf)
        else:
            if outcome.interrupted:
                raise KeyboardInterrupt
    return list(readings.values())


def _has_finite_gradients(model: nn.Module) -> bool:
    gradients = [each.grad for each in model.parameters() if each.grad is not None]
    return all(bool(gradient.isfinite().all()) for gradient in gradients)


def _recipe(run: Run) -> Recipe:
    """The recipe of a run: the text of the quick start, and as many steps as fit into the time.

    The cosine of the learning rate ends with the steps. So every model ends its schedule, however
    fast it is.
    """
    contestant = run.contestant
    steps = max(len(run.points), round(run.budget / _seconds_per_step(contestant, run.budget)))
    changes = {
        "name": "quality",
        "batch.block_size": contestant.block,
        "batch.batch_size": contestant.batch,
        "optimizer.name": "adamw",
        "optimizer.lr": run.rate,
        "optimizer.betas": [0.9, 0.98],
        "optimizer.weight_decay": 0.1,
        "optimizer.clip_norm": 1.0,
        "schedule.warmup_steps": round(_WARM_UP * steps),
        "schedule.warmup_init_lr": _LAST * run.rate,
        "schedule.min_lr": _LAST * run.rate,
        "training.steps": steps,
        "training.seed": 0,
        "training.eval_every": None,
        "training.eval_tokens": None,
        "training.save_every": steps,
        "training.log_every": 1,
    }
    return load_recipe("quickstart", changes)


def _seconds_per_step(contestant: Contestant, budget: float) -> float:
    """The pace of a contestant, from steps for a small part of the time, without compilation."""
    model = build(contestant.kind, _SIZE, contestant.block)
    step = training_step(model, contestant.batch, contestant.block)
    step()
    began = time.perf_counter()
    taken = 0
    while taken < 1 or time.perf_counter() - began < _PACE * budget:
        step()
        taken += 1
    return (time.perf_counter() - began) / taken


class ContestTask(LanguageModelTask):
    """Next-byte prediction by a contestant's model."""

    def __init__(self, contestant: Contestant, *arguments: Any):
        self.contestant = contestant
        super().__init__(*arguments)

    def _build_model(self) -> Any:
        kind = self.contestant.kind
        return KINDS[kind].build(*SIZES[_SIZE][kind], self.contestant.block)

    def loss(self, model: nn.Module, index: int, batch: Batch, counted: int) -> Tensor:
        return loss_of(model, batch.input_ids, batch.labels)


def bits_per_byte(
    model: PreTrainedModel, text: TokenFile, window: int | None, tokens: int | None = None
) -> float:
    """What a split (or its first `tokens` tokens) costs; infinity if the output is not finite."""
    reader = model if window is None else InWindows(model, window)
    was_training = model.training
    try:
        return evaluate(reader, text, limit_tokens=tokens).bits_per_byte
    except UserError:
        # The text and the vocabulary are ours and fit; only an output can be wrong.
        model.train(was_training)
        return math.inf


class InWindows(nn.Module):
    """Lets a model without a state that it can carry read a long text, chunk after chunk.

    It reads `window` tokens at a time, of which it has seen half before, so every token but the
    first ones is predicted from at least half a window. What it carries is the last half window.
    """

    def __init__(self, model: PreTrainedModel, window: int):
        super().__init__()
        self.model = model
        self.config = model.config
        self.window = window

    def forward(
        self, input_ids: Tensor, past_key_values: Any = None, use_cache: bool = True
    ) -> CausalLMOutputWithPast:
        """input_ids `[1, T]`, and the tokens before them; logits `[1, T, V]`."""
        seen = input_ids[:, :0] if past_key_values is None else past_key_values
        ids = torch.cat([seen, input_ids], 1)[0]
        window = min(self.window, len(ids))
        # The last window ends with the text, wherever that is.
        starts = [*range(0, len(ids) - window, max(1, window // 2)), len(ids) - window]
        together = max(1, _TOGETHER // window)
        scored = seen.shape[1]
        logits = []
        for first in range(0, len(starts), together):
            group = starts[first : first + together]
            windows = torch.stack([ids[start : start + window] for start in group])
            found = self.model(input_ids=windows, use_cache=False).logits
            for start, each in zip(group, found):
                logits.append(each[scored - start :])  # without what the window before has scored
                scored = start + window
        carried: Any = ids[None, -max(1, self.window // 2) :]
        return CausalLMOutputWithPast(logits=torch.cat(logits)[None], past_key_values=carried)


def table(rows: list[Cells]) -> dict[str, list[str]]:
    """The last reading of every run, by the headings of a table."""
    last = list({tuple(row[name] for name in KEY[:4]): row for row in rows}.values())
    shown = ("model", "run", "lr", "seconds", "steps", "tokens", "parameters", "split")
    columns = {name: [row[name] for row in last] for name in shown}
    return columns | {"bits per byte": [row["bits_per_byte"] for row in last]}
