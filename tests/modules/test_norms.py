"""Batch norms against PyTorch's, and the norm without weights."""

import pytest
import torch
from torch import nn

from hgrn.modules import HGRN, BatchNorm, SimpleRMSNorm, no_decay_names
from tests.tolerances import assert_close


@pytest.mark.parametrize("shape", [(6, 5), (3, 4, 5), (2, 3, 4, 5)])
def test_a_batch_norm_is_pytorchs_over_all_positions(shape):
    torch.manual_seed(0)
    ours = BatchNorm(5, eps=1e-3).double()
    theirs = nn.BatchNorm1d(5, eps=1e-3).double()
    with torch.no_grad():
        for tensor in ours.state_dict().values():
            tensor.copy_(torch.rand_like(tensor) + 0.5 if tensor.is_floating_point() else 4)
    theirs.load_state_dict(ours.state_dict())
    for training in (True, True, False):
        ours.train(training)
        theirs.train(training)
        x = (3 * torch.randn(shape, dtype=torch.float64) + 1).requires_grad_()
        weight = torch.randn_like(x)
        y = ours(x)
        expected = theirs(x.reshape(-1, 5)).reshape(shape)
        assert_close(y, expected)
        inputs = (x, ours.weight, ours.bias)
        for found, wanted in zip(
            torch.autograd.grad((y * weight).sum(), inputs),
            torch.autograd.grad((expected * weight).sum(), (x, theirs.weight, theirs.bias)),
            strict=True,
        ):
            assert_close(found, wanted)
        for name, tensor in theirs.state_dict().items():
            assert_close(ours.state_dict()[name].double(), tensor.double(), name=name)
    assert ours.num_batches_tracked == 6


def test_statistics_stay_float32_and_so_do_the_sums():
    norm = BatchNorm(3).to(torch.bfloat16)
    assert (
        norm.weight.dtype == torch.bfloat16
        and norm.running_var.dtype == norm.running_mean.dtype == torch.float32
    )
    x = (torch.randn(4, 500, 3) + 40).bfloat16()
    assert norm(x).dtype == torch.bfloat16
    assert_close(norm.running_mean, 0.1 * x.double().mean((0, 1)), torch.float32)
    assert_close(norm.running_var, 0.9 + 0.1 * x.double().flatten(0, 1).var(0), torch.float32)
    assert norm.double().running_var.dtype == torch.float64


def test_frozen_statistics_are_not_updated():
    norm = BatchNorm(3)
    x = torch.randn(5, 3)
    y = norm(x)
    before = {name: tensor.clone() for name, tensor in norm.state_dict().items()}
    norm.updates = False
    assert torch.equal(norm(x), y)
    assert all(torch.equal(tensor, before[name]) for name, tensor in norm.state_dict().items())


def test_a_norm_without_weights_by_hand():
    x = torch.randn(2, 3, 7, dtype=torch.float64)
    assert_close(SimpleRMSNorm()(x), x / (x.pow(2).sum(-1, keepdim=True).sqrt() / 7**0.5 + 1e-8))
    zeros = torch.zeros(1, 7, requires_grad=True)
    y = SimpleRMSNorm()(zeros)
    y.sum().backward()
    assert torch.equal(y, zeros) and zeros.grad.isfinite().all()
    # The square of 10,000 is beyond float16.
    narrow = SimpleRMSNorm()(torch.full((1, 7), 1e4, dtype=torch.float16))
    assert narrow.dtype == torch.float16 and narrow.eq(1).all()


def test_a_stack_with_batch_norms_keeps_layer_norms_inside():
    rnn = HGRN(4, 2, norm_type="batch", bidirectional=True)
    assert isinstance(rnn.norm, BatchNorm)
    for block in rnn.blocks:
        assert isinstance(block.mixer_norm, BatchNorm) and isinstance(block.glu_norm, BatchNorm)
        assert isinstance(block.mixer.norm, nn.LayerNorm)
    assert {"norm.weight", "norm.bias", "blocks.0.glu_norm.weight"} <= no_decay_names(rnn)
    with pytest.raises(ValueError, match="norm_type must be one of .*, got 'group'"):
        HGRN(4, 2, norm_type="group")


@pytest.mark.parametrize(
    "options",
    [dict(), dict(norm_type="rms", complex_state=False), dict(gate_position="before_norm")],
)
@pytest.mark.parametrize("grid", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_hooks_of_every_module_are_called_and_change_no_number(options, grid, dtype):
    torch.manual_seed(0)
    rnn = HGRN(16, 2, grid=grid, **options).to(dtype).eval()
    # The sequence is long enough for the operator of the norm.
    x = torch.randn(2, 5, 4, 16, dtype=dtype) if grid else torch.randn(2, 600, 16, dtype=dtype)
    expected = rnn(x)[0]
    called = set()
    for name, part in rnn.named_modules():
        part.register_forward_hook(lambda *_, name=name: called.add(name))
    assert torch.equal(rnn(x)[0], expected)
    assert called == {
        name for name, part in rnn.named_modules() if not isinstance(part, nn.ModuleList)
    }


def test_what_a_hook_on_the_inner_norm_returns_is_what_goes_on():
    rnn = HGRN(8, 1)
    x = torch.randn(1, 3, 8)
    mixer = rnn.blocks[0].mixer
    mixer.norm.register_forward_hook(lambda module, inputs, output: torch.zeros_like(output))
    assert torch.equal(mixer(x)[0], mixer.out_proj.bias.expand(1, 3, 8))
