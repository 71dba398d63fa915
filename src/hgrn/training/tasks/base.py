"""What the training loop asks of whatever it trains."""

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from hgrn.data.position import Positioned
from hgrn.errors import UserError
from hgrn.progress import OnProgress
from hgrn.training.checkpointing import load_weights
from hgrn.training.distributed import Ranks
from hgrn.training.recipe import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Task(ABC):
    """Data, model, batches and loss of a recipe, for one rank.

    Attributes:
        unit: what is counted, such as "tokens" or "examples".
        metric: the number of a validation by which validations are compared.
        lower_is_better: whether the best metric is the lowest.
        model: on the device of the rank, with the weights that the recipe names, or random ones of
            its seed.
        sampler: where the data is read.
        fingerprint: identifies the training data.
        processor: turns a user's input into the model's, and is saved beside it with
            `save_pretrained(folder)`; None if there is none.
        size: how many units there are to train on.
        data_name: where they are from, and with what they are read.
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

    def __init__(self, recipe: Recipe, ranks: Ranks, on_progress: OnProgress | None = None):
        """Prepare the data, which `on_progress` hears of, and build the model.

        Raises UserError for data that does not suit the recipe, and for weights that do not fit.
        """
        self.recipe = recipe
        self.ranks = ranks
        self._open(on_progress)
        # Whatever `_open` has drawn, the weights depend on the seed alone.
        torch.manual_seed(recipe.training.seed)
        self.model = self._build_model()
        if recipe.model.weights is not None:
            load_weights(self.model, Path(recipe.model.weights))
        cast(nn.Module, self.model).to(ranks.device)

    @abstractmethod
    def _open(self, on_progress: OnProgress | None) -> None:
        """Set everything but the model."""

    @abstractmethod
    def _build_model(self) -> "PreTrainedModel":
        """The model, with weights drawn from torch's generator."""

    @property
    def validated(self) -> dict[str, int]:
        """How much of the split is read, as `runlog.part_of_split` takes it; {} for all of it."""
        return {}

    @abstractmethod
    def next_batches(self) -> tuple[list[Any], int]:
        """This rank's micro-batches of the next step, and how many units in them count for the
        loss."""

    @abstractmethod
    def loss(self, model: nn.Module, index: int, batch: Any, counted: int) -> Tensor:
        """The summed nats of micro-batch `index`, divided by `counted`.

        counted: the units that count in the whole step, over all micro-batches and ranks.
        """

    @abstractmethod
    def validate(self) -> dict[str, float]:
        """The numbers of the validation split, `metric` among them."""

    def figures(self, loss: float) -> dict[str, float]:
        """What else a row of the log says about a mean training loss."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """The position in the data, and what else a resumed run needs, as plain data and
        tensors."""
        return {"sampler": self.sampler.state_dict()}

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Go on at a saved position.

        states: what `state_dict` gave for each share of a batch; their number may have changed.
        """
        self.sampler.load_state_dict(states[0]["sampler"])

    def is_better(self, value: float, than: float) -> bool:
        """Whether a value of the metric is better than another one."""
        return value < than if self.lower_is_better else value > than

    def _precision(self) -> AbstractContextManager:
        """Inside, the model computes in the precision of the recipe."""
        # Weights stay in fp32; autocast makes bf16 copies for the products.
        if self.recipe.training.precision == "bf16":
            return torch.autocast(self.ranks.device.type, torch.bfloat16)
        return nullcontext()

    def _validating(self) -> AbstractContextManager:
        """Inside, the model validates in fp32; a sharded one in the precision in which it trains,
        because it gathers its matrices in that."""
        return self._precision() if self.ranks.is_sharded else nullcontext()


def not_finite(model: nn.Module, what: str) -> UserError:
    """The error for an output on `what` that is not finite; it names the weights to blame."""
    # Weights that are not finite are the usual reason.
    names = [
        name for name, parameter in model.named_parameters() if not torch.isfinite(parameter).all()
    ]
    if names:
        more = ", ..." if len(names) > 3 else ""
        reason = f"{', '.join(names[:3])}{more} hold NaN or infinity. Use another checkpoint."
    else:
        reason = (
            "its weights are finite, so a hidden value overflowed. Evaluate in fp32, or another "
            "checkpoint."
        )
    return UserError(f"the model's output on {what} is not finite: {reason}")
