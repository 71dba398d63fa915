"""The one table of tolerances: the largest error allowed for each dtype.

Errors are relative to the largest value of the tensor.
"""

import torch
from torch import Tensor

# Equality with the authors' numbers and with the fp64 reference. In fp32 the authors' own layer
# shows errors of 3e-7 to 4e-6; we allow about ten times that. Half precisions allow a few units in
# the last place of what is stored.
RELATIVE = {torch.float64: 1e-10, torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def error(actual: Tensor, expected: Tensor) -> float:
    """The largest absolute difference over the largest expected magnitude.

    Infinite where shapes or NaNs differ.
    """
    if actual.shape != expected.shape or not torch.equal(actual.isnan(), expected.isnan()):
        return float("inf")
    if expected.numel() == 0:
        return 0.0
    expected = expected.detach().double()
    difference = (actual.detach().double() - expected).abs().nan_to_num(0).max().item()
    return difference / max(expected.abs().nan_to_num(0).max().item(), 1e-30)


def assert_close(
    actual: Tensor, expected: Tensor, dtype: torch.dtype | None = None, name: str = "tensor"
) -> None:
    """Fails if `error(actual, expected)` exceeds the entry for dtype (default: actual's)."""
    found = error(actual, expected)
    allowed = RELATIVE[dtype or actual.dtype]
    assert found <= allowed, f"{name}: relative error {found:.3g} exceeds {allowed:.3g}"
