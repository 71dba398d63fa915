"""The linear maps of all HGRN modules: `Linear`, and `Int8Linear` with 8-bit weights."""

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from hgrn.ops import int8_linear, linear, quantize_rows


class Linear(nn.Linear):
    """`nn.Linear` by way of `hgrn.ops.linear`: on a CPU it decodes at the speed of memory.

    Shape:
        `[..., in_features]` -> `[..., out_features]`.
    """

    def _load_from_state_dict(
        self, state_dict, prefix, metadata, strict, missing, unexpected, errors
    ):
        weight = state_dict.get(f"{prefix}weight")
        # PyTorch would convert the integers to floats without a word, and forget their scale.
        if weight is not None and not weight.is_floating_point():
            errors.append(
                f"{prefix}weight holds {weight.dtype}, the integers of a quantized weight, which "
                "mean another weight without their scale; load the weights that were saved before "
                "quantize_int8, or load into a model that was quantized first"
            )
            return
        super()._load_from_state_dict(
            state_dict, prefix, metadata, strict, missing, unexpected, errors
        )

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)

    def __setattr__(self, name: str, value: Any) -> None:
        # torch.ao.quantization marks every module with `qconfig`, then replaces exact nn.Linears.
        if name == "qconfig":
            warnings.warn(
                "torch.ao.quantization (quantize_dynamic, prepare) looks for torch.nn.Linear "
                "exactly, and leaves hgrn.modules.Linear as it is; for 8-bit weights call "
                "hgrn.modules.quantize_int8(model)",
                stacklevel=2,
            )
        super().__setattr__(name, value)


class Int8Linear(nn.Module):
    """An `nn.Linear` whose weight is 8-bit integers with a float32 scale for each output.

    It is for inference only. Decoding on a CPU reads a quarter of the bytes of float32 weights.

    Args:
        linear: the map to take over; its weight is rounded, its bias kept in float32.

    Shape:
        `[..., in_features]` float32 -> `[..., out_features]` float32.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        weight, scale = quantize_rows(linear.weight)
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().float())

    def extra_repr(self) -> str:
        has_bias = self.bias is not None
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={has_bias}"

    def _load_from_state_dict(
        self, state_dict, prefix, metadata, strict, missing, unexpected, errors
    ):
        weight = state_dict.get(f"{prefix}weight")
        # Floats must not be truncated to integers, nor integers be read with another scale.
        has_scale = f"{prefix}scale" in state_dict
        if weight is not None and (weight.dtype != torch.int8 or not has_scale):
            errors.append(
                f"{prefix}weight is {weight.dtype}{'' if has_scale else ' without a scale'}, but "
                "this model has 8-bit weights; load into the model before quantize_int8"
            )
            return
        super()._load_from_state_dict(
            state_dict, prefix, metadata, strict, missing, unexpected, errors
        )

    def forward(self, x: Tensor) -> Tensor:
        return int8_linear(x, self.weight, self.scale, self.bias)


def quantize_int8(module: nn.Module) -> nn.Module:
    """Replaces every `nn.Linear` inside `module` by an `Int8Linear`, in place; returns `module`.

    Embeddings, norms, angles and bounds stay as they are. A head that was tied to an embedding gets
    a weight of its own.

    Raises:
        ValueError: a token mixer inside reads its weights in another way; nothing is replaced.
    """
    for name, part in module.named_modules():
        # Any mixer says so; to import the class here would be a circle.
        why_not = getattr(part, "why_not", None)
        if why_not is not None and (reason := why_not("int8")):
            raise ValueError(f"{name or 'the module'} cannot have 8-bit weights: {reason}")
    return _quantized(module)


def _quantized(module: nn.Module) -> nn.Module:
    """`quantize_int8` of the modules inside."""
    for name, child in module.named_children():
        # Also subclasses and parametrized maps: `Int8Linear` reads the weight that they compute.
        if isinstance(child, nn.Linear):
            setattr(module, name, Int8Linear(child))
        else:
            _quantized(child)
    return module
