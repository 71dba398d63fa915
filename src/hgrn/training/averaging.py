"""An exponential moving average of a model's weights, which evaluates better than the weights of any one step."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from hgrn.training.sharding import saved_buffers


class WeightAverage:
    """`average = decay * average + (1 - decay) * weight` after every step, the decay growing from 0 to `decay`.

    The decay of step n is min(decay, n / (n + 9)), so that the random weights of the start are soon forgotten. Running statistics
    of batch norms are averaged as weights are; integers are taken as they are.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self._model = model
        self._other = {name: tensor.clone() for name, tensor in self._tensors().items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after step number `step` (1, 2, ...)."""
        decay = min(self.decay, step / (step + 9))
        for name, tensor in self._tensors().items():
            average = self._other[name]
            if tensor.is_floating_point():
                average.lerp_(tensor.to(average.dtype), 1 - decay)
            else:
                average.copy_(tensor)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the model has the averages, and `state_dict` the weights that train."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange what the model has for what this holds."""
        for name, tensor in self._tensors().items():
            kept = tensor.clone()
            tensor.copy_(self._other[name])
            self._other[name] = kept

    def state_dict(self) -> dict[str, Tensor]:
        """What the model does not have now."""
        return self._other

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Hold what `state_dict` gave."""
        self._other = {
            name: state[name].to(tensor.device) for name, tensor in self._tensors().items()
        }

    def _tensors(self) -> dict[str, Tensor]:
        """Every parameter and every saved buffer, each once."""
        return dict(self._model.named_parameters()) | saved_buffers(self._model)
