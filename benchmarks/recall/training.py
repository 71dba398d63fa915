"""One run: a model learns to answer from new questions at every step, then takes a test."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.recall.data import KEYS, Questions, questions
from benchmarks.recall.models import Contestant, Recall
from hgrn.modules import no_decay_names
from hgrn.progress import OnProgress
from hgrn.training.schedules import cosine

_WARM_UP = 0.05  # of the steps
_DECAY = 0.1
_TOGETHER = 64  # sequences of one call that tests
# The first number of a generator's seed. The steps of a run are a third number, so nothing that is
# tested was trained on. All runs take the same tests.
_TRAINING = 0
_VALIDATION = 1
_TEST = 2


@dataclass(frozen=True)
class Plan:
    """What every contestant does.

    counts: numbers of pairs. All are learned at once, in equal parts of every batch, so that the
    easy ones lead to the hard ones. steps: of training. each: sequences of a batch for every
    number of pairs. rates: learning rates that the first seed tries. seeds: the others take the
    best rate. tested: sequences of each split for every number of pairs. length: positions of a
    sequence. asked: questions in it.
    """

    counts: tuple[int, ...]
    steps: int
    each: int
    rates: tuple[float, ...]
    seeds: tuple[int, ...]
    tested: int
    length: int
    asked: int

    @property
    def budget(self) -> str:
        """What a run learns from, in words; rows of other budgets are not comparable."""
        return (
            f"{self.steps} steps of {self.each * len(self.counts)} sequences, T={self.length}, "
            f"{self.asked} questions, {KEYS} keys"
        )

    def questions(self, each: int, *seed: int) -> Questions:
        """Sequences of all numbers of pairs."""
        return questions(self.counts, each, seed, length=self.length, asked=self.asked)


@dataclass(frozen=True)
class Outcome:
    """What came of a run: accuracies for every number of pairs, and seconds of a core in training."""

    validation: dict[int, float]
    test: dict[int, float]
    seconds: float
    parameters: int


def trained(
    contestant: Contestant, plan: Plan, rate: float, seed: int, tell: OnProgress
) -> Outcome:
    """Train a model, and test it."""
    torch.manual_seed(seed)
    model = Recall(contestant)
    optimizer = torch.optim.AdamW(_groups(model), lr=rate, betas=(0.9, 0.98))
    began = time.process_time()
    for step in range(plan.steps):
        for group in optimizer.param_groups:
            group["lr"] = cosine(step + 1, rate, plan.steps + 1, round(_WARM_UP * plan.steps))
        asked = plan.questions(plan.each, _TRAINING, seed, step)
        logits = model(asked.tokens, asked.places)
        F.cross_entropy(logits.flatten(0, 1), asked.values.flatten()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        tell(step + 1, plan.steps)
    seconds = time.process_time() - began
    return Outcome(
        accuracies(model, plan.questions(plan.tested, _VALIDATION)),
        accuracies(model, plan.questions(plan.tested, _TEST)),
        seconds,
        sum(parameter.numel() for parameter in model.parameters()),
    )


def _groups(model: nn.Module) -> Iterator[dict]:
    """The parameters with weight decay and those without."""
    spared = no_decay_names(model)
    for decay in (_DECAY, 0.0):
        chosen = [p for name, p in model.named_parameters() if (name in spared) == (decay == 0.0)]
        yield {"params": chosen, "weight_decay": decay}


@torch.no_grad()
def accuracies(model: nn.Module, asked: Questions) -> dict[int, float]:
    """The share of right answers for every number of pairs."""
    right = []
    for tokens, places, values in zip(*(part.split(_TOGETHER) for part in asked[:3])):
        right.append((model(tokens, places).argmax(-1) == values).double().mean(1))
    shares: Tensor = torch.cat(right)
    return {
        pairs: shares[asked.pairs == pairs].mean().item() for pairs in asked.pairs.unique().tolist()
    }
