"""An exponential moving average of a model's weights, which is often better than the last weights.

`torch.optim.swa_utils.AveragedModel` keeps a second model and replaces the average at its first
update. Here the average trades places with the weights, and starts from the first weights.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from hgrn.training.sharding import saved_buffers


class WeightAverage:
    """`average = decay * average + (1 - decay) * weight` after every step.

    The decay of step n is min(decay, n / (n + 9)), so the random weights of the start are soon
    forgotten. Running statistics of batch norms are averaged like weights; integers are copied.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self._model = model
        # The weights that the model does not have now: the average while it trains.
        self._other = {name: tensor.clone() for name, tensor in self._tensors().items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after step number `step` (1, 2, ...)."""
        # Small at first, so that the weights of the start are forgotten.
        decay = min(self.decay, step / (step + 9))
        for name, tensor in self._tensors().items():
            average = self._other[name]
            if tensor.is_floating_point():
                average.lerp_(tensor.to(average.dtype), 1 - decay)
            else:
                average.copy_(tensor)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the model has the averages, and `state_dict` gives the weights that train."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the weights of the model for those that this holds."""
        for name, tensor in self._tensors().items():
            kept = tensor.clone()
            tensor.copy_(self._other[name])
            self._other[name] = kept

    def state_dict(self) -> dict[str, Tensor]:
        """The weights that are swapped out: the average while training, the training weights inside
        `in_place`."""
        return self._other

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Hold the weights that `state_dict` gave."""
        self._other = {
            name: state[name].to(tensor.device) for name, tensor in self._tensors().items()
        }

    def _tensors(self) -> dict[str, Tensor]:
        """Every parameter and every saved buffer, each once."""
        return dict(self._model.named_parameters()) | saved_buffers(self._model)
