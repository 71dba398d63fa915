"""`gla_scan`, the recurrence of HGRN2, in all forms: definition, gradients, contract, tools."""

import math
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from hgrn.ops import available_engines, chunked, gla_scan
from hgrn.ops.decompositions import DECOMPOSITIONS
from hgrn.ops.gla import gla_scan_operator
from hgrn.ops.gla_arguments import checked
from tests.tolerances import assert_close

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
SMALLEST = math.log(1e-4)
LARGEST = math.log(0.9999)


@dataclass(frozen=True)
class Case:
    """Shapes and options of one scan; the numbers are drawn by `inputs`."""

    batch: int = 2
    steps: int = 9
    heads: int = 3
    keys: int = 5
    values: int = 7
    lengths: tuple[int, ...] = ()
    extreme: bool = False
    mask: bool = False
    reverse: bool = False
    initial: bool = True
    zero: bool = False
    options: dict = field(default_factory=dict)

    def inputs(self, dtype: torch.dtype = torch.float64) -> tuple[list[Tensor], dict]:
        """q, k, v, log_f and perhaps the initial state, rounded to dtype; and the options."""
        generator = torch.Generator().manual_seed(5)
        steps = sum(self.lengths) if self.lengths else self.steps
        batch = 1 if self.lengths else self.batch
        sequences = len(self.lengths) or batch

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        q = normal(batch, steps, self.heads, self.keys)
        k = normal(batch, steps, self.heads, self.keys)
        v = normal(batch, steps, self.heads, self.values)
        log_f = torch.nn.functional.logsigmoid(normal(*q.shape) + 1)
        if self.extreme:
            # Gates that forget at once, and gates that keep all, side by side.
            small = torch.rand(q.shape, generator=generator) < 0.5
            log_f = torch.where(small, SMALLEST, LARGEST).double()
        if self.zero:
            log_f[:, ::4] = -math.inf
        tensors = [q, k, v, log_f]
        if self.initial:
            tensors.append(normal(sequences, self.heads, self.keys, self.values))
        options: dict = {"reverse": self.reverse} if self.reverse else {}
        if self.mask:
            options["mask"] = torch.rand(batch, steps, generator=generator) < 0.6
        if self.lengths:
            lengths = torch.tensor([0, *self.lengths])
            options["cu_seqlens"] = lengths.cumsum(0)
        return [x.to(dtype) for x in tensors], options


CASES = {
    "plain": Case(),
    "one step": Case(steps=1),
    "no time": Case(steps=0),
    "no state": Case(steps=33, initial=False),
    "several chunks": Case(steps=150, heads=2),
    "extreme": Case(steps=150, heads=2, extreme=True),
    "mask, reverse": Case(steps=70, mask=True, reverse=True),
    "gates of zero": Case(steps=70, zero=True, initial=False),
    "packed": Case(lengths=(5, 0, 40, 1, 70)),
    "packed, extreme, mask, reverse": Case(
        lengths=(0, 33, 64, 2, 0), extreme=True, mask=True, reverse=True
    ),
    "packed, all empty": Case(lengths=(0, 0)),
    "wide": Case(steps=40, heads=1, keys=64, values=33),
}
cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


@pytest.fixture(params=(*available_engines("cpu"), "products"))
def form(request) -> str:
    return request.param


def run(form: str, tensors: list[Tensor], options: dict) -> tuple[Tensor, Tensor]:
    """The scan by an engine, or as products of matrices, which any device can compute."""
    if form != "products":
        return gla_scan(*tensors, **options, engine=form)
    reverse = options.get("reverse", False)
    cu = options.get("cu_seqlens")
    mask = options.get("mask")
    initial = tensors[4] if len(tensors) == 5 else None
    moving = tensors[:4]
    if reverse:
        moving = [x.flip(1) for x in moving]
        mask = None if mask is None else mask.flip(1)
        initial = initial.flip(0) if cu is not None and initial is not None else initial
        cu = None if cu is None else cu[-1] - cu.flip(0)
    y, final = chunked.gla_scan(checked(*moving, initial, cu, mask))
    if not reverse:
        return y, final
    return y.flip(1), final if cu is None else final.flip(0)


def by_definition(tensors: list[Tensor], options: dict) -> tuple[Tensor, Tensor]:
    """y and final states, one outer product at a time. It shares nothing with the package."""
    q, k, v, log_f, *initial = (x.double() for x in tensors)
    batch, steps, heads, keys = q.shape
    cu = options.get("cu_seqlens")
    spans = [(b, 0, steps) for b in range(batch)]
    if cu is not None:
        spans = [(0, a, b) for a, b in pairwise(cu.tolist())]
    y = torch.zeros(v.shape, dtype=torch.float64)
    finals = []
    for n, (row, a, b) in enumerate(spans):
        states = []
        for h in range(heads):
            state = torch.zeros(keys, v.shape[3], dtype=torch.float64)
            state = initial[0][n, h].clone() if initial else state
            for t in reversed(range(a, b)) if options.get("reverse") else range(a, b):
                if "mask" not in options or options["mask"][row, t]:
                    state = torch.diag(log_f[row, t, h].exp()) @ state
                    state = state + torch.outer(k[row, t, h], v[row, t, h])
                y[row, t, h] = q[row, t, h] @ state
            states.append(state)
        finals.append(torch.stack(states))
    return y, torch.stack(finals)


@cases
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_is_its_definition(case, dtype, form):
    tensors, options = case.inputs(dtype)
    expected_y, expected_final = by_definition(tensors, options)
    y, final = run(form, tensors, options)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert y.dtype == dtype and final.dtype == wide
    assert_close(y, expected_y, name="y")
    assert_close(final, expected_final, name="final state")


def gradients(form: str, case: Case, dtype: torch.dtype) -> list[Tensor]:
    tensors, options = case.inputs(dtype)
    leaves = [x.requires_grad_() for x in tensors]
    y, final = run(form, leaves, options)
    generator = torch.Generator().manual_seed(6)
    weights = [torch.rand(x.shape, generator=generator).to(x.dtype) for x in (y, final)]
    return list(torch.autograd.grad((y, final), leaves, weights))


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize(
    "case", [case for case in CASES.values() if not case.zero], ids=[*CASES][:7] + [*CASES][8:]
)
def test_gradients_are_those_of_the_loop(case, dtype, form):
    """Autograd derives the reference's loop in float64."""
    for found, expected in zip(
        gradients(form, case, dtype), gradients("reference", case, DTYPES[0])
    ):
        assert_close(found, expected)


def test_a_gate_of_zero_forgets_and_has_finite_gradients(form):
    case = CASES["gates of zero"]
    for found in gradients(form, case, torch.float32):
        assert found.isfinite().all()


@pytest.mark.parametrize("name", ["plain", "mask, reverse"])
def test_numerical_gradients_of_first_and_second_order(name):
    case = {"plain": Case(batch=1, steps=3, keys=2, values=2, heads=1)}.get(
        name, Case(batch=1, steps=4, keys=2, values=2, heads=1, mask=True, reverse=True)
    )
    tensors, options = case.inputs()
    leaves = [x.requires_grad_() for x in tensors]
    assert gradcheck(lambda *x: gla_scan(*x, **options), leaves)
    assert gradgradcheck(lambda *x: gla_scan(*x, **options), leaves)


def test_step_equals_chunks_equals_full(form):
    tensors, _ = Case(steps=65).inputs(torch.float32)
    y, final = run(form, tensors, {})
    for size in (1, 7, 64):
        state = tensors[4]
        pieces = []
        for a in range(0, 65, size):
            piece, state = run(form, [x[:, a : a + size] for x in tensors[:4]] + [state], {})
            pieces.append(piece)
        assert_close(torch.cat(pieces, 1), y)
        assert_close(state, final)


def test_masked_positions_may_hold_anything(form):
    tensors, options = Case(steps=20, mask=True).inputs()
    hidden = ~options["mask"][..., None, None]
    y, final = run(form, tensors, options)
    broken = [torch.where(hidden, math.nan, x) for x in tensors[1:4]]
    found_y, found_final = run(form, [tensors[0], *broken, tensors[4]], options)
    assert torch.equal(found_y, y)
    assert torch.equal(found_final, final)


def test_views_are_read_where_they_are(form):
    """Inputs as slices of one projection, and inputs whose strides no kernel can read."""
    tensors, _ = Case().inputs(torch.float32)
    expected, _ = run(form, tensors, {})
    q, k, v, log_f, state = tensors
    joined = torch.cat([q, k, v], -1)
    slices = [*joined.split([5, 5, 7], -1), log_f, state]
    turned = [x.transpose(1, 3).contiguous().transpose(1, 3) for x in tensors[:4]]
    assert torch.equal(run(form, slices, {})[0], expected)
    assert torch.equal(run(form, [*turned, state], {})[0], expected)


def test_no_output_is_an_input(form):
    tensors, _ = Case(steps=0).inputs()
    _, final = run(form, tensors, {})
    assert torch.equal(final, tensors[4])
    assert final.data_ptr() != tensors[4].data_ptr()


def test_wrong_arguments_are_named():
    (q, k, v, log_f, state), _ = Case().inputs()
    wrong = [
        ((q[0], k, v, log_f), {}, ValueError, r"q must have shape \[B, T, H, K\], got \(9, 3, 5\)"),
        ((q, k[..., :2], v, log_f), {}, ValueError, "k must have q's shape"),
        ((q, k, v[:1], log_f), {}, ValueError, r"v must have shape \(2, 9, 3, V\)"),
        ((q, k, v, log_f[:, :3]), {}, ValueError, "log_f must have q's shape"),
        ((q, k.float(), v, log_f), {}, TypeError, "k must have q's dtype torch.float64"),
        ((q, k, v, log_f, state[:1]), {}, ValueError, r"initial_state must have shape \(2, 3, 5"),
        ((q, k, v, log_f), {"mask": torch.ones(2, 9)}, TypeError, "mask must be a bool tensor"),
        ((q, k, v, log_f), {"mask": torch.ones(2, 8) > 0}, ValueError, "mask must have the first"),
        ((q, k, v, log_f), {"cu_seqlens": torch.tensor([0, 9])}, ValueError, "packed sequences"),
        ((q, k, v, log_f), {"engine": "numpy"}, ValueError, "engine must be one of"),
        ((q.long(), k, v, log_f), {}, TypeError, "q must be float16"),
    ]
    for arguments, options, kind, message in wrong:
        with pytest.raises(kind, match=message):
            gla_scan(*arguments, **options)
    with pytest.raises(ValueError, match="cu_seqlens must start at 0, never fall"):
        gla_scan(q[:1], k[:1], v[:1], log_f[:1], cu_seqlens=torch.tensor([0, 12, 9]))


def operator_arguments(case: Case, dtype: torch.dtype = torch.float32) -> tuple:
    tensors, options = case.inputs(dtype)
    leaves = [x.requires_grad_() for x in tensors]
    state = leaves[4] if len(leaves) == 5 else None
    return (*leaves[:4], state, options.get("cu_seqlens"), "auto")


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("name", ["plain", "no state", "packed"])
def test_opcheck(name):
    torch.library.opcheck(torch.ops.hgrn.gla_scan.default, operator_arguments(CASES[name]))


def test_compiled_is_eager_in_one_graph():
    """Forward and backward, over changing lengths."""
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda *x: gla_scan(*x)[0].square().sum(), fullgraph=True, backend="aot_eager", dynamic=True
    )
    for steps in (12, 17, 40):
        tensors, _ = Case(steps=steps).inputs()
        leaves = [x.requires_grad_() for x in tensors]
        grads = torch.autograd.grad(compiled(*leaves), leaves)
        eager = torch.autograd.grad(gla_scan(*leaves)[0].square().sum(), leaves)
        for found, expected in zip(grads, eager):
            assert_close(found, expected)


@pytest.mark.filterwarnings(
    "ignore:`torch.jit.(script|trace|trace_method)`:DeprecationWarning"
)  # of PyTorch's rules for jvp
def test_vmap_and_forward_mode():
    tensors, _ = Case().inputs()
    several = [torch.stack([x, 2 * x, x - 1]) for x in tensors]
    several[3] = -several[3].abs()
    found = torch.vmap(gla_scan)(*several)
    for n in range(3):
        for one, other in zip(found, gla_scan(*(x[n] for x in several))):
            assert_close(one[n], other)
    # The derivative of y along q is the scan of that direction, because y is linear in q.
    direction = torch.randn_like(tensors[0])
    _, tangent = torch.func.jvp(lambda q: gla_scan(q, *tensors[1:])[0], (tensors[0],), (direction,))
    assert_close(tangent, gla_scan(direction, *tensors[1:])[0])


@pytest.mark.parametrize("name", ["plain", "one step", "no state", "extreme"])
def test_decomposition(name):
    arguments = [
        x.detach() if isinstance(x, Tensor) else x for x in operator_arguments(CASES[name])
    ]
    found = DECOMPOSITIONS[gla_scan_operator.overload](*arguments)
    for one, other in zip(found, gla_scan_operator(*arguments), strict=True):
        assert one.dtype == other.dtype and one.is_contiguous()
        assert_close(one, other)


def test_a_packed_scan_has_no_decomposition():
    with pytest.raises(NotImplementedError, match="gla_scan with cu_seqlens has no decomposition"):
        DECOMPOSITIONS[gla_scan_operator.overload](*operator_arguments(CASES["packed"]))
