"""`HGRN2Mixer`: its equations, states, compiled steps, 8-bit weights and errors."""

import pytest
import torch
from torch.nn import functional as F

from hgrn.modules import HGRN, HGRN2Mixer, Stepper, quantize_int8
from hgrn.ops import available_engines
from tests.tolerances import assert_close

ACTS = {"silu": F.silu, "sigmoid": torch.sigmoid, "identity": lambda x: x}


def plain(mixer: HGRN2Mixer, x: torch.Tensor, bound: torch.Tensor) -> torch.Tensor:
    """The equations of the class's docstring, position by position and head by head."""
    query, forget, candidate = F.linear(x, mixer.in_proj.weight, mixer.in_proj.bias).chunk(3, -1)
    query = ACTS[mixer.query_act](query) * mixer.scale
    candidate = ACTS[mixer.candidate_act](candidate)
    keep = bound + (1 - bound) * torch.sigmoid(forget)
    size = mixer.head_dim
    rows = []
    for sequence in range(len(x)):
        state = torch.zeros(mixer.heads, size, size, dtype=x.dtype)
        read = []
        for t in range(x.shape[1]):
            f, c, q = (part[sequence, t].view(-1, size) for part in (keep, candidate, query))
            state = f[:, :, None] * state + (1 - f)[:, :, None] * c[:, None, :]
            read.append((q[:, None, :] @ state).flatten())
        rows.append(torch.stack(read))
    return F.linear(mixer.norm(torch.stack(rows)), mixer.out_proj.weight, mixer.out_proj.bias)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"head_dim": 4, "norm_type": "layer"},
        {"query_act": "sigmoid", "candidate_act": "silu", "scale": 1.0, "bias": False},
    ],
)
def test_is_its_equations(options):
    torch.manual_seed(1)
    mixer = HGRN2Mixer(8, **options).double()
    x = torch.randn(2, 7, 8, dtype=torch.float64)
    bound = torch.rand(8, dtype=torch.float64)
    y, _ = mixer(x, bound)
    assert_close(y, plain(mixer, x, bound))


def test_the_first_layers_bound_of_zero_is_no_bound():
    mixer = HGRN2Mixer(8).double()
    x = torch.randn(2, 7, 8, dtype=torch.float64)
    assert_close(mixer(x, torch.zeros(8, dtype=torch.float64))[0], mixer(x)[0])


def test_gates_in_saturation_stay_finite():
    """Far beyond where a sigmoid in float32 is 0 or 1; values and all gradients."""
    stack = HGRN(8, 2, mixer="hgrn2")
    with torch.no_grad():
        for block, pull in zip(stack.blocks, (-300.0, 300.0)):
            block.mixer.in_proj.bias[8:16] = pull
    y, _ = stack(torch.randn(2, 20, 8))
    y.square().sum().backward()
    assert y.isfinite().all()
    for name, parameter in stack.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def stack_of(**options) -> HGRN:
    torch.manual_seed(2)
    return HGRN(24, 2, mixer=HGRN2Mixer, head_dim=8, **options).eval()


@pytest.mark.parametrize("options", [{}, {"conv_size": 3, "norm_type": "rms"}], ids=["", "conv"])
def test_step_equals_chunks_equals_full(options):
    stack = stack_of(**options)
    x = torch.randn(2, 19, 24)
    y, final = stack(x)
    state = None
    pieces = []
    for a, b in ((0, 6), (6, 7), (7, 8), (8, 19)):
        piece, state = stack(x[:, a:b], state)
        pieces.append(piece)
    assert_close(torch.cat(pieces, 1), y)
    for layer, expected in zip(state, final, strict=True):
        for part, other in zip(layer, expected, strict=True):
            assert_close(part, other)
    shapes = [part.shape for part in stack.blocks[0].mixer.initial_state(2)]
    assert [part.shape for part in final[0]] == shapes


def test_padding_and_packing_are_the_sequences_alone():
    stack = stack_of()
    lengths = (5, 11, 3)
    alone = [torch.randn(1, length, 24) for length in lengths]
    expected = [stack(x)[0] for x in alone]
    packed, _ = stack(torch.cat(alone, 1), cu_seqlens=torch.tensor([0, 5, 16, 19]))
    assert_close(packed, torch.cat(expected, 1))
    padded = torch.full((3, 11, 24), 7.0)
    mask = torch.zeros(3, 11, dtype=torch.bool)
    for row, x in enumerate(alone):
        padded[row, 11 - x.shape[1] :] = x[0]
        mask[row, 11 - x.shape[1] :] = True
    y, _ = stack(padded, mask=mask)
    for row, x in enumerate(expected):
        assert_close(y[row, 11 - x.shape[1] :], x[0])


@pytest.mark.skipif("numba" not in available_engines("cpu"), reason="compiled steps need numba")
@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize(
    "options",
    [{}, {"norm_type": "rms", "bias": False}, {"query_act": "sigmoid", "candidate_act": "silu"}],
    ids=["plain", "rms", "acts"],
)
def test_compiled_steps_are_the_stack(options, int8):
    stack = stack_of(**options)
    if int8:
        quantize_int8(stack)
    x = torch.randn(3, 9, 24)
    with torch.no_grad():
        expected, final = stack(x)
    step = Stepper(stack, 3)
    assert_close(torch.stack([step(x[:, t]) for t in range(9)], 1), expected)
    for layer, other in zip(step.state, final, strict=True):
        assert_close(layer[0], other[0])
    # Other options are seen at the next step.
    stack.blocks[0].mixer.scale = 2.0
    step.state = None
    assert_close(step(x[:, 0]), stack(x[:, :1])[0][:, 0].detach())


def test_what_cannot_be_stepped_says_why():
    with pytest.raises(ValueError, match="has a ShortConvolution, of which there are no compiled"):
        Stepper(stack_of(conv_size=3))

    class Other(HGRN2Mixer):
        def read_out(self, y):
            return super().read_out(2 * y)

    with pytest.raises(ValueError, match="a Other has read_out of its own"):
        Stepper(HGRN(24, 2, mixer=Other).eval())


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"head_dim must divide dim \(24\), got 5"):
        HGRN2Mixer(24, head_dim=5)
    with pytest.raises(ValueError, match="query_act must be one of .*, got 'tanh'"):
        HGRN2Mixer(24, query_act="tanh")
    mixer = HGRN2Mixer(24, head_dim=8)
    x = torch.randn(2, 3, 24)
    with pytest.raises(ValueError, match=r"x must have shape \[B, T, D\] with D = 24"):
        mixer(x[..., :5])
    with pytest.raises(ValueError, match=r"state\[0\] must have shape \(2, 3, 8, 8\)"):
        mixer(x, state=(torch.zeros(1, 3, 8, 8),))
    with pytest.raises(ValueError, match="state must be a tuple of 1 tensor"):
        mixer(x, state=(torch.zeros(2, 3, 8, 8), torch.zeros(2)))
    with pytest.raises(TypeError, match="x is torch.float64, but the weights it meets"):
        mixer(x.double())


def test_heads_are_as_large_as_the_width_allows():
    assert HGRN2Mixer(512).head_dim == 64
    assert HGRN2Mixer(96).head_dim == 48
    assert HGRN2Mixer(7).head_dim == 7
