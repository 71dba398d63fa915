"""What the tasks that classify share: the loss, and an evaluation that counts every answer."""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hgrn.training.tasks.base import Task, not_finite

TOP = 5


@dataclass(frozen=True, eq=False)
class Examples:
    """The examples of a split, to be read once.

    batches: each with `inputs()`, `labels` and `to(device)`. size: how many examples there are.
    classes: their names. fingerprint: that of the whole data, as in checkpoints; None if only the
    split was opened.
    """

    batches: Iterable[Any]
    size: int
    classes: list[str]
    fingerprint: str | None = None


@dataclass(frozen=True, eq=False)
class Classification:
    """How a model answered on a split.

    confusion: int64 `[K, K]`, true classes in rows and answers in columns. in_top: examples whose
    class was among the `TOP` likeliest answers. nats: the summed cross-entropy.
    """

    confusion: Tensor
    in_top: int
    nats: float

    @property
    def examples(self) -> int:
        """How many examples were answered."""
        return int(self.confusion.sum())

    @property
    def loss(self) -> float:
        """Nats an example."""
        return self.nats / self.examples

    @property
    def accuracy(self) -> float:
        """The share of examples whose likeliest answer was right (top-1), in [0, 1]."""
        return int(self.confusion.trace()) / self.examples

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the accuracy, for the chance in the draw of the examples."""
        z = 1.959964  # the 97.5 % quantile of the normal distribution
        n = self.examples
        p = self.accuracy
        centre = p + z * z / (2 * n)
        half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        scale = 1 + z * z / n
        return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)

    @property
    def top_accuracy(self) -> float:
        """The share of examples whose class was among the `TOP` likeliest answers."""
        return self.in_top / self.examples

    @property
    def class_accuracies(self) -> list[float | None]:
        """Top-1 accuracy for each class; None for a class without examples."""
        rows = zip(self.confusion.diagonal().tolist(), self.confusion.sum(1).tolist())
        return [right / total if total else None for right, total in rows]


class ClassificationTask(Task):
    """A model of inputs with one class each."""

    unit = "examples"
    metric = "accuracy"
    lower_is_better = False

    def loss(self, model: nn.Module, index: int, batch: Any, counted: int) -> Tensor:
        batch = batch.to(self.ranks.device)
        with self._precision():
            logits = model(**batch.inputs()).logits
        return F.cross_entropy(logits.float(), batch.targets, reduction="sum") / counted

    def next_batches(self) -> tuple[list[Any], int]:
        batch = self.next_batch()
        return batch.split(self.recipe.batch.accumulation), len(batch)

    @abstractmethod
    def next_batch(self) -> Any:
        """This rank's share of the next step, with `inputs()`, `targets`, `to(device)`,
        `split(count)` and a length."""

    @abstractmethod
    def examples(self) -> Examples:
        """The validation split."""

    def validate(self) -> dict[str, float]:
        with self._validating():
            result = evaluate(self.model, self.examples().batches)
        return {"accuracy": result.accuracy, "loss": result.loss}


@torch.no_grad()
def evaluate(
    model: Any, batches: Iterable[Any], on_progress: Callable[[int], None] | None = None
) -> Classification:
    """Let a model answer every example once; on_progress gets the number of answers so far.

    Raises UserError for an output that is not finite.
    """
    device = next(model.parameters()).device
    classes = model.config.num_labels
    confusion = torch.zeros(classes * classes, dtype=torch.int64, device=device)
    in_top = torch.zeros((), dtype=torch.int64, device=device)
    nats = torch.zeros((), dtype=torch.float64, device=device)
    done = 0
    # The caller may evaluate in the middle of training.
    was_training = model.training
    model.eval()
    for batch in batches:
        batch = batch.to(device)
        logits = model(**batch.inputs()).logits.float()
        labels = batch.labels
        nats += F.cross_entropy(logits, labels, reduction="sum")
        answers = logits.topk(min(TOP, classes)).indices
        in_top += (answers == labels[:, None]).sum()
        # One count for each pair of true class and answer.
        confusion += torch.bincount(labels * classes + answers[:, 0], minlength=classes * classes)
        done += len(labels)
        if on_progress is not None:
            on_progress(done)
    model.train(was_training)
    if not torch.isfinite(nats):
        raise not_finite(model, "this data")
    return Classification(confusion.view(classes, classes).cpu(), int(in_top), nats.item())
