"""Tensors that are no plain memory: none is read as if it were.

What PyTorch can make plain tensors of gives the right numbers.
"""

import contextlib
import copy
import pickle

import numpy as np
import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.autograd.functional import hessian, jacobian

from hgrn.modules import HGRN
from hgrn.ops import (
    addresses,
    available_engines,
    gated_norm,
    gated_scan,
    gated_unit,
    hgru_carry,
    hgru_scan,
    int8_linear,
    linear,
    operators,
    quantize_rows,
)
from tests.tolerances import assert_close

pytestmark = pytest.mark.skipif(
    "numba" not in available_engines("cpu"), reason="numba is not installed"
)


def freed():
    x = torch.randn(3, 4)
    x.untyped_storage().resize_(0)
    return x


def fake():
    with FakeTensorMode():
        return torch.randn(3, 4)


class Labelled(torch.Tensor):
    """A subclass without any behaviour of its own."""


STRANGE = {
    "float64": (lambda: torch.randn(3, 4).double(), "torch.float64 on cpu"),
    "meta": (lambda: torch.randn(3, 4, device="meta"), "on meta"),
    "negated": (lambda: torch._neg_view(torch.randn(3, 4)), "negated lazily"),
    "zeros": (lambda: torch._efficientzerotensor(3, 4), "without memory"),
    "freed": (freed, "without memory"),
    "transposed": (lambda: torch.randn(4, 3).T, r"strides \(1, 3\)"),
    "expanded": (lambda: torch.randn(3, 1).expand(3, 4), r"strides \(1, 0\)"),
    "subclass": (lambda: torch.randn(3, 4).as_subclass(Labelled), "a Labelled"),
    "fake": (fake, "a FakeTensor"),
    "sparse": (lambda: torch.eye(4).to_sparse(), "torch.sparse_coo tensor"),
    "mkldnn": (lambda: torch.eye(4).to_mkldnn(), "torch._mkldnn tensor"),
}


@pytest.mark.parametrize("make, words", STRANGE.values(), ids=STRANGE)
def test_no_address_of_what_is_no_plain_memory(make, words):
    x = make()
    for take in (addresses.address, addresses.address_of_rows):
        with pytest.raises(ValueError, match=words):
            take(x, torch.float32)


def test_the_address_of_plain_memory():
    x = torch.randn(3, 4)
    assert addresses.address(x, torch.float32) == x.numpy().ctypes.data
    assert addresses.address_of_rows(x[:, 1:3], torch.float32) == x.numpy().ctypes.data + 4
    assert addresses.address(torch.nn.Parameter(x), torch.float32) == x.data_ptr()
    assert addresses.address(torch.empty(0, 4), torch.float32) == torch.empty(0, 4).data_ptr()
    assert addresses.optional(None, torch.float32) == 0


def large_norm(x, gate, weight, bias):
    return gated_norm(x, gate, weight, bias, engine="numba")


# Functions of tensors, and shapes of these.
CALLS = {
    "hgru_scan": (hgru_scan, [(2, 5, 8), (2, 5, 4), (4,), (4,), (2, 8)]),
    "hgru_carry": (hgru_carry, [(2, 5, 8), (2, 5, 4), (4,), (4,)]),
    "gated_scan": (
        lambda x, f, theta, s: gated_scan(x, f, s, theta=theta),
        [(2, 5, 8), (2, 5, 4), (4,), (2, 8)],
    ),
    "gated_norm": (large_norm, [(2, 5, 8), (2, 5, 8), (8,), (8,)]),
    "gated_unit": (lambda x: gated_unit(x, engine="numba"), [(2, 5, 8)]),
    "linear": (linear, [(64, 1024), (1024, 1024), (1024,)]),
    "linear of few rows": (linear, [(2, 512), (512, 512), (512,)]),
}
calls = pytest.mark.parametrize("call, shapes", CALLS.values(), ids=CALLS)


def positive(shapes):
    """Inputs in [0, 1], as bounds must be."""
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(shape, generator=generator) for shape in shapes]


def outputs(call, inputs):
    found = call(*inputs)
    return found if isinstance(found, tuple) else (found,)


@pytest.mark.parametrize(
    "call, shapes, place",
    [
        pytest.param(call, shapes, place, id=f"{name} {place}")
        for name, (call, shapes) in CALLS.items()
        for place in range(len(shapes))
    ],
)
def test_lazily_negated_inputs_and_gradients(call, shapes, place):
    plain = [x.requires_grad_() for x in positive(shapes)]
    found = {}
    for lazy in (False, True):
        inputs = list(plain)
        minus = -plain[place].detach()
        inputs[place] = torch._neg_view(minus) if lazy else minus.neg()
        assert inputs[place].is_neg() == lazy
        inputs[place] = inputs[place].detach().requires_grad_()
        assert inputs[place].is_neg() == lazy
        results = outputs(call, inputs)
        weights = [
            torch._neg_view(torch.full_like(y, -0.5)) if lazy else torch.full_like(y, 0.5)
            for y in results
        ]
        found[lazy] = [*results, *torch.autograd.grad(results, inputs, weights)]
    with torch.no_grad():
        found[True] += outputs(call, [x.detach() for x in inputs])
    for one, other in zip([*found[False], *found[False][: len(results)]], found[True], strict=True):
        assert_close(other, one)


@calls
def test_zeros_without_memory_are_zeros(call, shapes):
    inputs = positive(shapes)
    for place in range(len(inputs)):
        written = list(inputs)
        lazy = list(inputs)
        written[place], lazy[place] = (
            torch.zeros(shapes[place]),
            torch._efficientzerotensor(shapes[place]),
        )
        for one, other in zip(outputs(call, written), outputs(call, lazy), strict=True):
            assert_close(other, one)
    inputs = [x.requires_grad_() for x in inputs]
    results = outputs(call, inputs)
    lazy = [torch._efficientzerotensor(y.shape) for y in results[:1]]
    assert all(
        grad.abs().max() == 0
        for grad in torch.autograd.grad(results[:1], inputs, lazy, materialize_grads=True)
    )


def test_registered_operators_take_any_strides():
    x = torch.randn(2, 5, 1, 8)
    wanted = operators.hgru_scan(
        x[..., ::2].contiguous(), x[..., 1::2].contiguous(), *[None] * 5, False, "auto"
    )
    found = torch.ops.hgrn.hgru_scan(x[..., ::2], x[..., 1::2], *[None] * 5, False, "auto")
    assert all(torch.equal(one, other) for one, other in zip(found, wanted))
    constant = torch.tensor(0.3).expand(2, 5, 1, 4)
    found = torch.ops.hgrn.hgru_scan(constant, constant, *[None] * 5, False, "auto")
    assert torch.equal(
        found[0],
        operators.hgru_scan(
            constant.contiguous(), constant.contiguous(), *[None] * 5, False, "auto"
        )[0],
    )


def test_registered_operators_refuse_other_dtypes():
    x = torch.randn(2, 5, 1, 4)
    for given in ((x, x.half(), None), (x, x, torch.rand(4).double())):
        with pytest.raises(
            ValueError,
            match="a CPU kernel needs torch.float32 in plain contiguous memory of the CPU, "
            "got torch.float",
        ):
            torch.ops.hgrn.hgru_scan(*given, *[None] * 4, False, "auto")


@contextlib.contextmanager
def default_dtype(dtype):
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


DEFAULTS = {
    "meta device": lambda: torch.device("meta"),
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
}


@pytest.mark.parametrize("defaults", DEFAULTS.values(), ids=DEFAULTS)
@calls
def test_pytorchs_defaults_do_not_matter(call, shapes, defaults):
    inputs = [x.requires_grad_() for x in positive(shapes)]
    found = []
    for context in (contextlib.nullcontext, defaults):
        with context():
            results = outputs(call, inputs)
            found.append([*results, *torch.autograd.grad([y.sum() for y in results], inputs)])
            with torch.no_grad():
                found[-1] += outputs(call, inputs)
    assert all(
        torch.equal(one, other) and one.dtype == other.dtype
        for one, other in zip(*found, strict=True)
    )


@pytest.mark.parametrize("defaults", DEFAULTS.values(), ids=DEFAULTS)
def test_pytorchs_defaults_do_not_matter_to_masks_packing_and_8_bits(defaults):
    x = torch.randn(1, 9, 4)
    cu_seqlens = torch.tensor([0, 4, 9])
    mask = torch.arange(9)[None] % 3 > 0
    weight, scale = quantize_rows(torch.randn(6, 4))
    rnn = HGRN(16, 2, conv_size=4, norm_type="rms")
    long = torch.randn(1, 9, 16)
    found = []
    for context in (contextlib.nullcontext, defaults):
        with context():
            found.append(
                (
                    *hgru_scan(x, x, cu_seqlens=cu_seqlens, mask=mask),
                    *gated_scan(x, -x.abs(), cu_seqlens=cu_seqlens, reverse=True),
                    int8_linear(x[0, :3], weight, scale),
                    rnn(long, cu_seqlens=cu_seqlens)[0],
                    rnn(long, mask=mask)[0],
                )
            )
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@calls
def test_shapes_on_the_meta_device(call, shapes):
    real = [x.requires_grad_() for x in positive(shapes)]
    meta = [x.detach().to("meta").requires_grad_() for x in real]
    for inputs in (real, meta):
        results = outputs(call, inputs)
        grads = torch.autograd.grad([y.sum() for y in results], inputs)
        sizes = [(y.shape, y.dtype) for y in (*results, *grads)]
        if inputs is real:
            wanted = sizes
        else:
            assert sizes == wanted and all(y.is_meta for y in (*results, *grads))


STACKS = {
    "default": {},
    "both directions": dict(bidirectional=True),
    "convolution": dict(conv_size=4, norm_type="rms"),
    "batch norms": dict(norm_type="batch"),
    "low rank": dict(gate_rank=4),
    "grid": dict(grid=True),
}


@pytest.mark.parametrize("options", STACKS.values(), ids=STACKS)
@pytest.mark.parametrize(
    "where", [lambda: torch.device("meta"), FakeTensorMode], ids=["meta", "fake"]
)
def test_a_stack_that_is_only_shapes(options, where):
    with where():
        rnn = HGRN(16, 2, **options)
        x = torch.randn((2, 5, 6, 16) if "grid" in options else (2, 130, 16), requires_grad=True)
        y, state = rnn(x)
        y.sum().backward()
        assert y.shape == x.shape == x.grad.shape and all(
            p.grad.shape == p.shape for p in rnn.parameters()
        )
        if state is not None:
            y, state = rnn(x[:, :1], state)
            assert y.shape == (2, 1, 16)


@calls
def test_batches_of_gradients(call, shapes):
    inputs = [x.requires_grad_() for x in positive(shapes)]
    y = torch.cat([y.flatten()[:3] for y in outputs(call, inputs)])
    rows = torch.eye(len(y))
    batched = torch.autograd.grad(y, inputs, rows, is_grads_batched=True, retain_graph=True)
    each = zip(*(torch.autograd.grad(y, inputs, row, retain_graph=True) for row in rows))
    for one, other in zip(batched, each, strict=True):
        assert_close(one, torch.stack(other))


@pytest.mark.parametrize("derivative", [jacobian, hessian])
def test_jacobians_and_hessians_in_one_go(derivative):
    x = torch.randn(1, 3, 4, dtype=torch.float64)

    def function(x):
        h = hgru_scan(x, x, theta=None)[0] + gated_scan(x, -x.square())[0]
        return h if derivative is jacobian else h.sum()

    assert_close(derivative(function, x, vectorize=True), derivative(function, x))


def test_a_backward_under_vmap():
    x = torch.rand(2, 3, 8, requires_grad=True)
    y = hgru_scan(x, x)[0]
    rows = torch.randn(4, *y.shape)
    mapped = torch.func.vmap(lambda row: torch.autograd.grad(y, x, row, retain_graph=True)[0])(rows)
    assert_close(
        mapped, torch.stack([torch.autograd.grad(y, x, row, retain_graph=True)[0] for row in rows])
    )


@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy, pickle.dumps])
def test_what_holds_addresses_is_not_copied(way):
    from hgrn.ops.cpu.plans import Launch
    from hgrn.ops.cpu.program import Program

    for holder in (Program(), Launch(0, np.zeros(2, dtype=np.int64), 0, ())):
        with pytest.raises(TypeError, match=f"a {type(holder).__name__} holds addresses of memory"):
            way(holder)


def test_a_program_checks_what_it_is_given():
    from hgrn.ops.cpu.program import Program

    x = torch.zeros(1, 4)
    weight = torch.zeros(3, 4)
    y = torch.zeros(1, 3)
    with pytest.raises(ValueError, match=r"weight must have shape \(3, 4\), got \(4, 3\)"):
        Program().linear(x, weight.T, None, y)
    with pytest.raises(ValueError, match=r"bias must have shape \(4,\), got \(3,\)"):
        Program().norm(x, torch.ones(4), torch.zeros(3), 1e-5, torch.zeros(1, 4))
    with pytest.raises(ValueError, match="needs torch.int8 in plain contiguous memory"):
        Program().linear(x, weight, None, y, scale=torch.ones(3))
    with pytest.raises(ValueError, match="negated lazily"):
        Program().linear(x, torch._neg_view(weight), None, y)
