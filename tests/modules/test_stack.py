"""The stack computes the same cut, packed and padded, and serves a user of nn.LSTM."""

import doctest

import pytest
import torch

from hgrn.modules import GLU, HGRN, HGRU2d, no_decay_names, stack
from hgrn.ops.packing import lengths_to_cu_seqlens
from tests.tolerances import assert_close

DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
FLA = dict(conv_size=3, norm_type="rms", complex_state=False, bias=False)
OPTIONS = pytest.mark.parametrize(
    "options",
    [
        {},
        dict(complex_state=False),
        dict(use_lower_bound=False),
        dict(gate_position="before_norm", gate_act="sigmoid", gate_rank=3),
        dict(conv_size=4),
        FLA,
    ],
)
DIM = 7
DEPTH = 3


def make(dtype=torch.float64, **options) -> HGRN:
    """A stack with random bounds, and theta = 1, so that turning cannot pass for holding still."""
    torch.manual_seed(0)
    rnn = HGRN(DIM, DEPTH, **options).to(dtype)
    for name, parameter in rnn.named_parameters():
        if name.endswith("theta"):
            torch.nn.init.ones_(parameter)
        elif name.endswith("logits"):
            torch.nn.init.normal_(parameter)
    return rnn


def noise(*shape, dtype=torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def gradients(rnn: HGRN, y: torch.Tensor, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    names, parameters = zip(*rnn.named_parameters())
    return dict(zip(names, torch.autograd.grad((y * weight).sum(), parameters)))


def assert_same_states(actual, expected):
    for layer, others in zip(actual, expected, strict=True):
        for part, other in zip(layer, others, strict=True):
            assert_close(part, other)


def assert_same_gradients(actual, expected):
    for name in expected:
        assert_close(actual[name], expected[name], name=f"gradient of {name}")


@DTYPES
@OPTIONS
@pytest.mark.parametrize(
    "cut", [[1] * 12, [5, 7], [0, 3, 0, 9]], ids=["steps", "chunks", "empty chunks"]
)
def test_steps_and_chunks_are_the_whole(cut, dtype, options):
    rnn = make(dtype, **options)
    x = noise(2, 12, DIM, dtype=dtype)
    weight = noise(2, 12, DIM, dtype=dtype)
    whole, after_whole = rnn(x)
    state = None
    pieces = []
    for piece in x.split(cut, dim=1):
        y, state = rnn(piece, state)
        pieces.append(y)
    joined = torch.cat(pieces, dim=1)
    assert_close(joined, whole)
    assert_same_states(state, after_whole)
    assert_same_gradients(gradients(rnn, joined, weight), gradients(rnn, whole, weight))


@DTYPES
@pytest.mark.parametrize(
    "options",
    [
        {},
        dict(complex_state=False),
        dict(bidirectional=True, shared_theta=False),
        dict(conv_size=4),
        FLA,
    ],
)
def test_packed_is_separate(dtype, options):
    rnn = make(dtype, **options)
    lengths = [4, 1, 0, 7]
    x = noise(1, 12, DIM, dtype=dtype)
    weight = noise(1, 12, DIM, dtype=dtype)
    packed, after = rnn(x, cu_seqlens=lengths_to_cu_seqlens(torch.tensor(lengths)))
    runs = [rnn(piece) for piece in x.split(lengths, dim=1)]
    separate = torch.cat([y for y, _ in runs], dim=1)
    assert_close(packed, separate)
    assert_same_gradients(gradients(rnn, packed, weight), gradients(rnn, separate, weight))
    if after is not None:
        assert_same_states(
            after, [map(torch.cat, zip(*layers)) for layers in zip(*(state for _, state in runs))]
        )


@DTYPES
@pytest.mark.parametrize(
    "options", [{}, dict(complex_state=False), dict(bidirectional=True), dict(conv_size=4), FLA]
)
@pytest.mark.parametrize(
    "row",
    ["..xxxxxx", "xxxxxx..", "xx.xxx.x", "xxxxxxxx", "........"],
    ids=["left", "right", "middle", "none", "all"],
)
def test_padded_is_plain(row, dtype, options):
    rnn = make(dtype, **options)
    keep = torch.tensor([c == "x" for c in row])
    padded = noise(1, 8, DIM, dtype=dtype)
    weight = noise(1, 8, DIM, dtype=dtype)
    y, after = rnn(padded, mask=keep[None])
    plain, after_plain = rnn(padded[:, keep])
    assert_close(y[:, keep], plain)
    assert_same_states(after or (), after_plain or ())
    if keep.any():
        padded_gradients = gradients(rnn, y[:, keep], weight[:, keep])
        assert_same_gradients(padded_gradients, gradients(rnn, plain, weight[:, keep]))


def test_the_loss_of_a_later_chunk_reaches_an_earlier_one():
    rnn = make()
    x = noise(2, 8, DIM)
    weight = noise(2, 4, DIM)
    first = x[:, :4].clone().requires_grad_()
    second = x[:, 4:]
    _, state = rnn(first)
    (rnn(second, state)[0] * weight).sum().backward()
    whole = x.clone().requires_grad_()
    (rnn(whole)[0][:, 4:] * weight).sum().backward()
    assert_close(first.grad, whole.grad[:, :4])
    assert first.grad.abs().max() > 1e-3


def test_recomputed_blocks_give_the_same_gradients():
    rnn = make(dropout=0.2)
    x = noise(2, 6, DIM)

    def run(checkpointing):
        for block in rnn.blocks:
            block.gradient_checkpointing = checkpointing
        torch.manual_seed(1)  # of the dropout
        y, state = rnn(x)
        loss = y.sum() + state[-1][0].sum()
        return y, torch.autograd.grad(loss, list(rnn.parameters()))

    plain, expected = run(checkpointing=False)
    y, grads = run(checkpointing=True)
    assert torch.equal(y, plain)
    assert all(map(torch.equal, grads, expected))


def test_autocast_narrows_neither_state_nor_bounds():
    rnn = make(torch.float32)
    x = noise(2, 6, DIM, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y, state = rnn(x)
        assert rnn.bounds().dtype == state[0][0].dtype == torch.float32
    assert_close(y, rnn(x)[0], torch.bfloat16)
    y.sum().backward()
    assert all(p.grad.dtype == p.dtype and p.grad.isfinite().all() for p in rnn.parameters())


def test_hidden_states_are_the_inputs_of_the_blocks():
    rnn = make()
    x = noise(2, 6, DIM)
    seen = []
    y, _ = rnn(x, hidden_states=seen)
    assert len(seen) == DEPTH and seen[0] is x
    last, _ = rnn.blocks[-1](seen[-1], rnn.bounds()[-1])
    assert torch.equal(rnn.norm(last), y)


def test_a_state_of_another_stack_is_an_error():
    with pytest.raises(ValueError, match="an entry for each of 3 blocks, got 2"):
        make()(noise(1, 2, DIM), state=((None,), (None,)))


def test_what_takes_no_decay():
    rnn = HGRN(4, 1, gate_rank=2)
    names = no_decay_names(rnn)
    decayed = {name for name, _ in rnn.named_parameters()} - names
    assert names <= dict(rnn.named_parameters()).keys()
    assert {
        "bounds.logits",
        "norm.weight",
        "blocks.0.mixer.theta",
        "blocks.0.mixer.norm.bias",
    } <= names
    assert "blocks.0.mixer.forget_up.bias" in names
    assert no_decay_names(torch.nn.Embedding(3, 2)) == {"weight"}
    assert decayed == {name for name, p in rnn.named_parameters() if p.ndim == 2} - {
        "bounds.logits"
    }
    assert "blocks.0.mixer.short_conv.weight" in no_decay_names(HGRN(4, 1, conv_size=2))


def test_glu_activations():
    x = noise(2, 3)
    glu = GLU(3, 5, act="identity").double()
    gate = glu.gate_up_proj(x)[..., :5]
    up = glu.gate_up_proj(x)[..., 5:]
    assert_close(glu(x), glu.down_proj(gate * up))
    glu.act = "silu"
    assert_close(glu(x), glu.down_proj(torch.nn.functional.silu(gate) * up))
    with pytest.raises(ValueError, match="act must be one of .*'relu'"):
        GLU(3, 5, act="relu")


def test_without_lower_bounds_the_layers_are_bounded_by_zero():
    rnn = make(use_lower_bound=False)
    x = noise(2, 9, DIM)
    assert list(rnn.lower_bounds()) == [None] * DEPTH and not any(
        "bounds" in name for name, _ in rnn.named_parameters()
    )
    bounded = make()
    bounded.load_state_dict(
        rnn.state_dict()
        | {"bounds.logits": torch.tensor([[-1e4], [-1e4], [0.0]]).expand(DEPTH, DIM)}
    )
    assert bounded.bounds().count_nonzero() == 0  # all of the softmax is in the last row
    assert_close(rnn(x)[0], bounded(x)[0])
    assert (rnn(x)[0] - make()(x)[0]).abs().max() > 1e-2


def test_unknown_options_are_refused():
    with pytest.raises(TypeError, match="bidirectionnal"):
        HGRN(4, 1, bidirectionnal=True)


def test_the_example_in_the_docstring():
    failures, tried = doctest.testmod(stack)
    assert tried > 5 and failures == 0


@DTYPES
def test_a_stack_of_grids_is_its_parts(dtype):
    rnn = make(dtype, grid=True, bidirectional=True, shared_theta=False)
    x = noise(2, 3, 5, DIM, dtype=dtype)
    kept = []
    y, state = rnn(x, hidden_states=kept)
    assert y.shape == x.shape and state is None and len(kept) == DEPTH and kept[0] is x
    expected = x
    bounds = rnn.bounds()
    for index, block in enumerate(rnn.blocks):
        assert type(block.mixer) is HGRU2d
        expected = expected + block.mixer(block.mixer_norm(expected), bounds[index])[0]
        expected = expected + block.glu(block.glu_norm(expected))
    assert_close(y, rnn.norm(expected))
    assert_close(
        make(dtype, grid=True, bidirectional=True, shared_theta=False, final_norm=False)(x)[0],
        expected,
    )
    # The two axes are treated alike, and every position sees its whole row and column.
    assert_close(rnn(x.transpose(1, 2))[0], y.transpose(1, 2))
    changed = x.clone()
    changed[:, 2, 4, 0] += 1  # not in all channels alike, which a layer norm would not see
    assert ((rnn(changed)[0] - y).abs().amax((0, 3)) > 1e-9).all()


@pytest.mark.parametrize("name", ["state", "mask", "cu_seqlens"])
def test_a_grid_has_nothing_that_belongs_to_sequences(name):
    rnn = make(grid=True)
    x = noise(2, 3, 5, DIM)
    given = dict(
        state=[()] * DEPTH, mask=torch.ones(2, 3, dtype=torch.bool), cu_seqlens=torch.tensor([0, 3])
    )
    with pytest.raises(
        ValueError, match=f"a grid is read whole and has no {name}.*pass {name}=None"
    ):
        rnn(x, **{name: given[name]})


def test_dropout_inside_the_glu_is_on_the_activated_branch():
    x = noise(2, 5, DIM)
    glu = GLU(DIM, 9, dropout=0.4).double()
    torch.manual_seed(3)
    y = glu(x)
    torch.manual_seed(3)
    gate, up = glu.gate_up_proj(x).chunk(2, dim=-1)
    assert_close(y, glu.down_proj(torch.dropout(torch.nn.functional.silu(gate), 0.4, True) * up))
    assert torch.equal(glu.eval()(x), glu(x)) and not torch.allclose(glu(x), y)
    rnn = HGRN(4, 2, dropout=0.1, glu_dropout=0.2)
    assert [(block.dropout.p, block.glu.dropout.p) for block in rnn.blocks] == [(0.1, 0.2)] * 2
