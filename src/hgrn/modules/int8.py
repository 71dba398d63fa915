"""Linear maps with 8-bit weights, for decoding on a CPU in a quarter of the memory traffic."""

import torch
from torch import Tensor, nn

from hgrn.ops import int8_linear, quantize_rows


class Int8Linear(nn.Module):
    """An `nn.Linear` whose weight is 8-bit integers with a float32 scale for each output; for inference only.

    Args:
        linear: the map to take over; its weight is rounded, its bias kept in float32.

    Shape:
        `[..., in_features]` float32 -> `[..., out_features]` float32.
    """

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        weight, scale = quantize_rows(linear.weight)
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().float())

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"

    def _load_from_state_dict(
        self, state_dict, prefix, metadata, strict, missing, unexpected, errors
    ):
        weight = state_dict.get(f"{prefix}weight")
        if weight is not None and (
            weight.dtype != torch.int8 or f"{prefix}scale" not in state_dict
        ):
            errors.append(
                f"{prefix}weight is {weight.dtype}{'' if f'{prefix}scale' in state_dict else ' without a scale'}, but this model has "
                "8-bit weights; load into the model before quantize_int8"
            )
            return
        super()._load_from_state_dict(
            state_dict, prefix, metadata, strict, missing, unexpected, errors
        )

    def forward(self, x: Tensor) -> Tensor:
        return int8_linear(x, self.weight, self.scale, self.bias)


def quantize_int8(module: nn.Module) -> nn.Module:
    """Replaces every `nn.Linear` inside `module` by an `Int8Linear`, in place, and returns `module`.

    Embeddings, norms, angles and bounds stay as they are; a head that was tied to an embedding gets a copy of its own.
    """
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, Int8Linear(child))
        else:
            quantize_int8(child)
    return module
