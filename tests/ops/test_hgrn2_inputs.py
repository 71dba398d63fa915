"""`hgrn2_inputs`: the kernel against its composition, with all gradients, and PyTorch's tools."""

import pytest
import torch
from torch import Tensor

from hgrn.ops import available_engines
from hgrn.ops.hgrn2 import _compose, hgrn2_inputs
from tests.tolerances import assert_close

pytestmark = pytest.mark.skipif(
    "numba" not in available_engines("cpu"), reason="no registered engine works here"
)
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
WIDTH = 10
ACTS = (("silu", "identity"), ("sigmoid", "silu"))
BOUNDS = {
    "none": None,
    "zero": torch.zeros(WIDTH, dtype=torch.float64),
    "some": torch.linspace(0, 0.9999, WIDTH, dtype=torch.float64),
}


def inputs(dtype: torch.dtype, spread: float = 3.0) -> Tensor:
    """Rows of projections, more than a task has; among them gates far in saturation."""
    generator = torch.Generator().manual_seed(4)
    return (torch.randn(2, 70, 3 * WIDTH, generator=generator) * spread).to(dtype)


def run(
    function, x: Tensor, bound: Tensor | None, acts: tuple[str, str], **options
) -> list[Tensor]:
    """The four results and the gradients of a weighted sum of them."""
    leaves = [x.detach().clone().requires_grad_()]
    if bound is not None:
        leaves.append(bound.detach().clone().requires_grad_())
    bound = leaves[1] if bound is not None else None
    outputs = function(leaves[0], bound, acts, **options)
    generator = torch.Generator().manual_seed(5)
    weights = [torch.rand(y.shape, generator=generator) for y in outputs]
    total = sum((y.double() * weight).sum() for y, weight in zip(outputs, weights))
    return [*outputs, *torch.autograd.grad(total, leaves)]


def kernel(x, bound, acts, **options):
    query, candidate = acts
    return hgrn2_inputs(
        x, bound, scale=0.3, query_act=query, candidate_act=candidate, engine="numba", **options
    )


def composition(x, bound, acts):
    return _compose(x, bound, 0.3, *acts)


@pytest.mark.parametrize("acts", ACTS, ids=str)
@pytest.mark.parametrize("bound", BOUNDS.values(), ids=BOUNDS.keys())
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_kernel_is_its_composition(dtype, bound, acts):
    x = inputs(dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    found = run(kernel, x, None if bound is None else bound.to(wide), acts)
    expected = run(composition, x.double(), bound, acts)
    for number, (one, other) in enumerate(zip(found, expected, strict=True)):
        kind = wide if number in (3, 5) else dtype
        assert one.dtype == kind
        assert_close(one, other, kind, f"result {number}")


def test_saturation_is_finite_and_nothing_is_lost_near_one():
    x = torch.zeros(1, 3, 3 * WIDTH)
    x[:, 0, WIDTH : 2 * WIDTH] = -300.0
    x[:, 1, WIDTH : 2 * WIDTH] = 300.0
    x[:, 2, WIDTH : 2 * WIDTH] = 9.2
    for found in run(kernel, x, torch.zeros(WIDTH), ACTS[0]):
        assert found.isfinite().all()
    _, write, _, log_f = kernel(x, torch.zeros(WIDTH), ACTS[0])
    exact = torch.sigmoid(torch.tensor(-9.2, dtype=torch.float64))
    assert_close(write[0, 2], exact.expand(WIDTH))
    assert (log_f[0, 1] == 0).all() and (log_f[0, 0] < -80).all()
    # A number that is none stays none.
    x[0, 0, WIDTH] = torch.nan
    assert kernel(x, None, ACTS[0])[3][0, 0, 0].isnan()


def test_rows_are_read_where_they_are():
    wide = inputs(torch.float32).repeat(1, 1, 2)
    view = wide[..., : 3 * WIDTH]
    for one, other in zip(kernel(view, None, ACTS[0]), kernel(view.contiguous(), None, ACTS[0])):
        assert torch.equal(one, other)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_pytorchs_tools():
    x = inputs(torch.float64)[:, :4].requires_grad_()
    bound = BOUNDS["some"].clone().requires_grad_()
    arguments = (x, bound, 0.3, "silu", "identity", "numba")
    torch.library.opcheck(torch.ops.hgrn.hgrn2_inputs.default, arguments)

    def function(x, bound):
        return kernel(x, bound, ACTS[0])

    assert torch.autograd.gradgradcheck(function, (x[:, :1, :].detach().requires_grad_(), bound))
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for one, other in zip(compiled(x, bound), function(x, bound)):
        assert_close(one, other)
