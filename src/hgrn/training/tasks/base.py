"""What the training loop asks of whatever it trains."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hgrn.data.position import Positioned
from hgrn.errors import UserError
from hgrn.training.checkpointing import load_weights
from hgrn.training.distributed import Ranks
from hgrn.training.recipe import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Tell = Callable[[int, int | None], None]


class Task(ABC):
    """Data, model, batches and loss of a recipe, for one rank.

    unit: what is counted, "tokens" or "examples". metric: the number of a validation that says which is best; `lower_is_better`
    says how. model: on the ranks' device, with the weights that the recipe's seed gives, or those that it names. sampler: where the data is read.
    fingerprint: identifies the training data. processor: what turns a user's input into the model's, saved beside it with
    `save_pretrained(folder)`; None if there is none. size: how many units there are to train on. data_name: where they are from, and what they are read with.
    """

    unit: str
    metric: str
    lower_is_better: bool
    model: "PreTrainedModel"
    sampler: Positioned
    fingerprint: str
    processor: Any
    size: int
    data_name: str

    def __init__(self, recipe: Recipe, ranks: Ranks, progress: Tell | None = None):
        """Prepare the data and build the model; `progress` gets (done, in all or None) meanwhile.

        Raises UserError for data that the recipe cannot be trained with, and weights that do not fit.
        """
        self.recipe = recipe
        self.ranks = ranks
        self._open(progress)
        torch.manual_seed(recipe.training.seed)
        self.model = self._build_model()
        if recipe.model.weights is not None:
            load_weights(self.model, Path(recipe.model.weights))
        self.model.to(ranks.device)

    @abstractmethod
    def _open(self, progress: Tell | None) -> None:
        """Set everything but the model."""

    @abstractmethod
    def _build_model(self) -> "PreTrainedModel":
        """The model, with weights drawn from torch's generator as it is."""

    @abstractmethod
    def next_batches(self) -> tuple[list[Any], int]:
        """This rank's micro-batches of the next step, and how many of their units count for the loss."""

    @abstractmethod
    def loss(self, model: nn.Module, index: int, batch: Any, counted: int) -> Tensor:
        """The summed nats of micro-batch `index`, over `counted`: the units that count in the whole step."""

    @abstractmethod
    def validate(self) -> dict[str, float]:
        """The numbers of the validation split, `metric` among them."""

    def figures(self, loss: float) -> dict[str, float]:
        """What else a row of the log says of a mean training loss."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """The position in the data and what else goes on after a resume, as plain data and tensors."""
        return {"sampler": self.sampler.state_dict()}

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Go on at the position that `state_dict` gave in each of the shares of a batch, however many there are now."""
        self.sampler.load_state_dict(states[0]["sampler"])

    def is_better(self, value: float, than: float) -> bool:
        """Whether a value of the metric is."""
        return value < than if self.lower_is_better else value > than

    def _precision(self) -> AbstractContextManager:
        if self.recipe.training.precision == "bf16":
            return torch.autocast(self.ranks.device.type, torch.bfloat16)
        return nullcontext()

    def _validating(self) -> AbstractContextManager:
        """Inside, the model validates: in fp32, but a sharded one in the precision in which it gathers its matrices to train."""
        return self._precision() if self.ranks.is_sharded else nullcontext()


def not_finite(model: nn.Module, what: str) -> UserError:
    """The error for an output on `what` that is not finite; it says which weights are to blame."""
    names = [
        name for name, parameter in model.named_parameters() if not torch.isfinite(parameter).all()
    ]
    if names:
        more = ", ..." if len(names) > 3 else ""
        reason = f"{', '.join(names[:3])}{more} hold NaN or infinity. Use another checkpoint."
    else:
        reason = "its weights are finite, so a hidden value overflowed. Evaluate in fp32, or another checkpoint."
    return UserError(f"the model's output on {what} is not finite: {reason}")
