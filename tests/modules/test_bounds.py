"""Lower bounds rise with depth, whatever the logits, and never leave float32."""

import pytest
import torch

from hgrn.modules import LowerBounds
from tests.tolerances import assert_close


def test_they_start_at_k_over_depth():
    assert_close(LowerBounds(4, 3)(), torch.tensor([0.0, 0.25, 0.5, 0.75])[:, None].expand(4, 3))


@pytest.mark.parametrize("scale", [1.0, 30.0])
@pytest.mark.parametrize("depth", [1, 2, 7])
def test_they_rise_from_exactly_zero_and_stay_in_range(depth, scale):
    bounds = LowerBounds(depth, 64)
    torch.nn.init.normal_(bounds.logits, std=scale, generator=torch.Generator().manual_seed(depth))
    table = bounds()
    assert table.shape == (depth, 64)
    assert (table[0] == 0).all() and (table.diff(dim=0) >= 0).all() and (table <= 1).all()


def test_they_are_the_exclusive_sum_of_the_softmax():
    bounds = LowerBounds(5, 8).double()
    torch.nn.init.normal_(bounds.logits, generator=torch.Generator().manual_seed(0))
    shares = bounds.logits.softmax(0)
    for k, row in enumerate(bounds()):
        assert_close(row, shares[:k].sum(0))


@pytest.mark.parametrize(
    "narrow", [torch.nn.Module.half, torch.nn.Module.bfloat16, lambda m: m.to(torch.bfloat16)]
)
def test_they_stay_float32(narrow):
    bounds = LowerBounds(400, 2)
    expected = bounds()
    narrow(bounds)
    assert bounds.logits.dtype == torch.float32
    assert torch.equal(bounds(), expected) and expected[-1].max() < 1  # 399 / 400 is 1 in bfloat16


def test_float64_stays_float64_unless_narrowed():
    bounds = LowerBounds(2, 2).double()
    assert bounds.logits.dtype == bounds().dtype == torch.float64
    assert bounds.to("cpu").logits.dtype == torch.float64
    assert bounds.float().logits.dtype == torch.float32


def test_they_are_made_wide_under_a_narrow_default():
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert LowerBounds(2, 2).logits.dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)
