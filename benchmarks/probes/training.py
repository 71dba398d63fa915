"""How a model learns here: from new questions at every step, so nothing is seen twice."""

import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import mean

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.probes.models import Answerer
from benchmarks.probes.questions import Questions
from hgrn.modules import no_decay_names
from hgrn.progress import OnProgress

_DECAY = 0.1
SOLVED = 0.99
_RECENT = 256  # answers whose share tells that a task is solved
_WARM_UP = 50  # steps
_TOGETHER = 64  # sequences of one call that tests


@dataclass(frozen=True)
class Step:
    """What a step of training told: its number from 1, seconds of a core since the start, and the
    share of right answers before the step."""

    number: int
    seconds: float
    right: float


def steps(
    model: Answerer, draw: Callable[[int], Questions], rate: Callable[[int], float]
) -> Iterator[Step]:
    """Train for as long as the caller asks for steps.

    Args:
        model: is changed by every step.
        draw: the questions of a step, by its number from 0.
        rate: the learning rate of a step, by its number from 1.
    """
    optimizer = torch.optim.AdamW(_groups(model), betas=(0.9, 0.98))
    # The time of the core, which other work on the machine changes least.
    began = time.process_time()
    for number in itertools.count(1):
        for group in optimizer.param_groups:
            group["lr"] = rate(number)
        asked = draw(number - 1)
        logits = model(asked.tokens, asked.places)
        F.cross_entropy(logits.flatten(0, 1), asked.values.flatten()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        right = (logits.detach().argmax(-1) == asked.values).double().mean().item()
        yield Step(number, time.process_time() - began, right)


@dataclass(frozen=True)
class End:
    """How a run ended: whether the task was solved, after how many steps and core seconds."""

    solved: bool
    steps: int
    seconds: float


def until_solved(
    model: Answerer, draw: Callable[[int], Questions], rate: float, most: int, tell: OnProgress
) -> End:
    """Train until 99 % of the last 256 answers are right, or for `most` steps.

    The answers are to new questions, so their share is that of a test. The rate rises for 50 steps.
    """
    # Shares of right answers, and how many answers each one is of.
    recent: deque[float] = deque()
    answers = draw(0).values.numel()
    enough = math.ceil(_RECENT / answers)
    for step in steps(model, draw, lambda number: rate * min(1.0, number / _WARM_UP)):
        recent.append(step.right)
        if len(recent) > enough:
            recent.popleft()
        solved = len(recent) == enough and mean(recent) >= SOLVED
        tell(step.number, most)
        if solved or step.number == most:
            return End(solved, step.number, step.seconds)
    raise AssertionError("steps never end")


def _groups(model: nn.Module) -> Iterator[dict]:
    """The parameters with weight decay and those without."""
    spared = no_decay_names(model)
    for decay in (_DECAY, 0.0):
        chosen = [
            parameter
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and (name in spared) == (decay == 0.0)
        ]
        yield {"params": chosen, "weight_decay": decay}


@torch.no_grad()
def right_answers(model: Answerer, asked: Questions, together: int = _TOGETHER) -> Tensor:
    """bool `[B, Q]`: which questions are answered rightly; so many sequences are read at a time."""
    parts = zip(*(part.split(together) for part in asked))
    return torch.cat(
        [model(tokens, places).argmax(-1) == values for tokens, places, values in parts]
    )
