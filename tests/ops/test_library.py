"""The operators as PyTorch's tools see them: opcheck, compile, export with a free length, vmap."""

import pytest
import torch

from hgrn.ops import available_engines, gated_scan, hgru_carry, hgru_scan
from tests.ops.cases import CASES, make
from tests.tolerances import assert_close

pytestmark = pytest.mark.skipif(
    "numba" not in available_engines("cpu"), reason="no registered engine works here"
)
CHOSEN = {
    name: CASES[name] for name in ("real", "complex", "64 steps, mask", "packed, mask, reverse")
}


def canonical(case):
    """The arguments of the registered operator: `[O, T, I, C]`."""
    candidate, forget, bound, theta, initial = case.inputs(torch.float32)
    mask = case.options.get("mask")
    return (
        candidate.detach().unsqueeze(2).requires_grad_(),
        forget.detach().unsqueeze(2).requires_grad_(),
        bound,
        theta,
        None if initial is None else initial.detach().unsqueeze(1).requires_grad_(),
        case.options.get("cu_seqlens"),
        None if mask is None else mask.unsqueeze(2),
        case.options.get("reverse", False),
        "numba",
    )


# opcheck itself reads .grad of tensors that are not leaves.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("case", CHOSEN.values(), ids=CHOSEN.keys())
def test_opcheck(case):
    candidate, forget, bound, theta, initial, cu_seqlens, mask, reverse, engine = canonical(case)
    ops = torch.ops.hgrn
    torch.library.opcheck(
        ops.hgru_scan.default,
        (candidate, forget, bound, theta, initial, cu_seqlens, mask, reverse, engine),
    )
    torch.library.opcheck(
        ops.hgru_carry.default, (candidate, forget, bound, theta, cu_seqlens, mask, reverse, engine)
    )
    log_f = torch.nn.functional.logsigmoid(forget.detach()).requires_grad_()
    torch.library.opcheck(
        ops.gated_scan.default,
        (candidate, log_f, theta, initial, cu_seqlens, mask, reverse, engine),
    )


@pytest.mark.parametrize("function", [hgru_scan, hgru_carry], ids=lambda f: f.__name__)
def test_compiled_is_eager_in_one_graph(function):
    """Forward and backward, over changing lengths, with mask, packing and state."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    def loss(*inputs, **options):
        first, second = function(*inputs, **options)
        return first.square().sum() + second.sum()

    takes_state = function is hgru_scan
    for kind in ({"mask": True}, {"lengths": [3, 9]}):
        torch._dynamo.reset()
        graphs.clear()
        compiled = torch.compile(loss, fullgraph=True, backend=backend, dynamic=True)
        for steps in (12, 17, 40):
            kind = {"lengths": [3, steps - 3]} if "lengths" in kind else kind
            case = make(steps=steps, channels=4, **kind)
            grads = []
            for run in (loss, compiled):
                inputs = case.inputs(torch.float64)[: 5 if takes_state else 4]
                grads.append(torch.autograd.grad(run(*inputs, **case.options), inputs))
            for eager, other in zip(*grads):
                assert_close(other, eager)
        assert len(graphs) == 1


def test_export_with_a_free_length():
    class Scan(torch.nn.Module):
        def forward(self, x, gate, theta):
            return hgru_scan(x, gate, None, theta)

    example = torch.randn(2, 9, 8), torch.randn(2, 9, 4), torch.ones(4)
    free = {1: torch.export.Dim("T", min=1, max=4096)}
    program = torch.export.export(Scan(), example, dynamic_shapes=(free, free, None))
    for steps in (1, 2, 33):
        inputs = torch.randn(2, steps, 8), torch.randn(2, steps, 4), torch.ones(4)
        for exported, eager in zip(program.module()(*inputs), Scan()(*inputs)):
            assert torch.equal(exported, eager)


@pytest.mark.parametrize("options", [{}, {"reverse": True}], ids=["forward", "reverse"])
def test_vmap_folds_the_mapped_axis(options):
    x = torch.randn(3, 2, 5, 8)
    gate = torch.randn(3, 2, 5, 4)
    state = torch.randn(2, 8)
    bound = torch.rand(4)
    theta = torch.randn(4)
    found = torch.vmap(lambda x, g: hgru_scan(x, g, bound, theta, state, **options))(x, gate)
    each = [hgru_scan(x[n], gate[n], bound, theta, state, **options) for n in range(3)]
    for n, one in enumerate(each):
        assert torch.equal(found[0][n], one[0]) and torch.equal(found[1][n], one[1])
    real = torch.vmap(lambda x, g: gated_scan(x, g, **options), in_dims=(1, 1), out_dims=1)(
        gate, -gate.abs()
    )
    assert torch.equal(
        real[0],
        torch.stack([gated_scan(gate[:, n], -gate[:, n].abs(), **options)[0] for n in (0, 1)], 1),
    )


def test_vmap_over_parameters_and_packing():
    """What cannot share one call runs sample by sample."""
    x = torch.randn(1, 6, 4)
    gate = torch.randn(1, 6, 4)
    bounds = torch.rand(3, 4)
    cu_seqlens = torch.tensor([0, 2, 6])
    found = torch.vmap(lambda b: hgru_scan(x, gate, b, cu_seqlens=cu_seqlens)[0])(bounds)
    for n in range(3):
        assert torch.equal(found[n], hgru_scan(x, gate, bounds[n], cu_seqlens=cu_seqlens)[0])


def test_gradients_through_vmap():
    x = torch.randn(4, 1, 5, 3).double()
    gate = torch.randn(4, 1, 5, 3).double()
    bound = torch.rand(3).double().requires_grad_()
    mapped = torch.vmap(lambda x, g: hgru_scan(x, g, bound)[0])(x, gate)
    each = torch.stack([hgru_scan(x[n], gate[n], bound)[0] for n in range(4)])
    assert_close(*(torch.autograd.grad(h.square().sum(), bound)[0] for h in (mapped, each)))


def test_no_output_aliases_an_input():
    case = make(steps=0)
    inputs = [x.detach() for x in case.inputs(torch.float32)]
    _, final = hgru_scan(*inputs)
    assert torch.equal(final, inputs[4])
    final.zero_()
    assert inputs[4].abs().sum() > 0
