"""The decompositions that exporters get: the numbers of the operators themselves."""

import pytest
import torch

from hgrn.ops import available_engines
from hgrn.ops.decompositions import DECOMPOSITIONS
from tests.ops.cases import CASES, make
from tests.tolerances import assert_close

pytestmark = pytest.mark.skipif(
    "numba" not in available_engines("cpu"), reason="no registered engine works here"
)
HGRN = torch.ops.hgrn
# A scan needs a position; one with packed sequences is refused.
CHOSEN = {
    name: case
    for name, case in CASES.items()
    if "cu_seqlens" not in case.options and case.candidate.shape[1] > 0
}


def canonical(case, dtype):
    """The arguments of the registered operator: `[O, T, I, C]`."""
    candidate, forget, bound, theta, initial = (
        None if x is None else x.detach() for x in case.inputs(dtype)
    )
    mask = case.options.get("mask")
    return (
        candidate.unsqueeze(2),
        forget.unsqueeze(2),
        bound,
        theta,
        None if initial is None else initial.unsqueeze(1),
        case.options.get("cu_seqlens"),
        None if mask is None else mask.unsqueeze(2),
        case.options.get("reverse", False),
        "numba",
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CHOSEN.values(), ids=CHOSEN.keys())
def test_hgru_scan(case, dtype):
    arguments = canonical(case, dtype)
    for found, expected in zip(
        DECOMPOSITIONS[HGRN.hgru_scan.default](*arguments), HGRN.hgru_scan(*arguments), strict=True
    ):
        assert found.dtype == expected.dtype and found.is_contiguous()
        assert_close(found, expected)


def test_packed_sequences_are_refused():
    with pytest.raises(
        NotImplementedError,
        match="hgru_scan with cu_seqlens has no decomposition.*give padded sequences",
    ):
        DECOMPOSITIONS[HGRN.hgru_scan.default](*canonical(make(lengths=[3, 2]), torch.float64))


@pytest.mark.parametrize("gate_first", [False, True])
@pytest.mark.parametrize("activation", ["identity", "silu", "sigmoid"])
def test_the_rest_of_a_layer(activation, gate_first):
    x = torch.randn(3, 5, 16)
    gate = torch.randn(3, 5, 16)
    weight = torch.randn(16)
    bias = torch.randn(16)
    arguments = x, gate, weight, bias, 1e-5, activation, gate_first, "numba"
    for found, expected in zip(
        DECOMPOSITIONS[HGRN.gated_norm.default](*arguments),
        HGRN.gated_norm(*arguments),
        strict=True,
    ):
        assert_close(found, expected)
    assert_close(
        DECOMPOSITIONS[HGRN.gated_unit.default](x, activation, "numba"),
        HGRN.gated_unit(x, activation, "numba"),
    )
