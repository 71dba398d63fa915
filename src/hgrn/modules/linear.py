"""The linear map of all HGRN modules."""

import warnings

from torch import Tensor, nn

from hgrn.ops import linear


class Linear(nn.Linear):
    """`nn.Linear`, with the product that `hgrn.ops.linear` picks: decoding on a CPU reads its weights at the speed of memory."""

    def _load_from_state_dict(
        self, state_dict, prefix, metadata, strict, missing, unexpected, errors
    ):
        weight = state_dict.get(f"{prefix}weight")
        if weight is not None and not weight.is_floating_point():
            errors.append(
                f"{prefix}weight holds {weight.dtype}, the integers of a quantized weight, which mean another one without their scale; "
                "load the weights that were saved before quantize_int8, or load into a model that was quantized first"
            )
            return
        super()._load_from_state_dict(
            state_dict, prefix, metadata, strict, missing, unexpected, errors
        )

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)

    def __setattr__(self, name: str, value) -> None:
        if (
            name == "qconfig"
        ):  # with which torch.ao.quantization marks every module, and then replaces those of nn.Linear itself
            warnings.warn(
                "torch.ao.quantization (quantize_dynamic, prepare) looks for torch.nn.Linear exactly, and leaves hgrn.modules.Linear "
                "as it is; for 8-bit weights call hgrn.modules.quantize_int8(model)",
                stacklevel=2,
            )
        super().__setattr__(name, value)
