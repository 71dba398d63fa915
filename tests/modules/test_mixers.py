"""The slot for mixers: your own class in a stack, names, records of classes, what each can do."""

import pytest
import torch

from hgrn.modules import (
    HGRN,
    HGRU,
    HGRN2Mixer,
    Linear,
    Mixer,
    Stepper,
    mixers,
    quantize_int8,
    register_mixer,
)
from hgrn.ops import gated_scan
from tests.tolerances import assert_close


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    """Names that a test registers are gone after it."""
    monkeypatch.setattr(mixers, "_registered", {})


class Plain(HGRU):
    """A real HGRU that is written with the public helpers."""

    def __init__(self, dim, **options):
        super().__init__(dim, complex_state=False, **options)

    def forward(self, x, lower_bound=None, state=None, mask=None, cu_seqlens=None):
        candidate, forget, gate = self.project(x)
        log_f, write = self.gates(forget, lower_bound)
        entering = write * torch.nn.functional.silu(candidate)
        start = None if state is None else state[0]
        h, final = gated_scan(entering, log_f, start, mask=mask, cu_seqlens=cu_seqlens)
        return self.read_out(h, gate), (final,)


class Mean(Mixer):
    """The mean of all positions so far; it has no option of its own."""

    def __init__(self, dim, *, bias, norm_eps, norm_type):
        super().__init__()
        self.dim = dim
        self.out_proj = Linear(dim, dim, bias=bias)

    def forward(self, x, lower_bound=None, state=None, mask=None, cu_seqlens=None):
        total, count = self.initial_state(len(x)) if state is None else state
        sums = total[:, None] + x.cumsum(1)
        counts = count[:, None] + torch.arange(1, x.shape[1] + 1)[:, None]
        return self.out_proj(sums / counts), (sums[:, -1], counts[:, -1])

    def initial_state(self, sequences):
        return torch.zeros(sequences, self.dim), torch.zeros(sequences, 1)


def test_a_mixer_of_the_public_helpers_is_the_hgru():
    torch.manual_seed(3)
    expected = HGRN(6, 2, complex_state=False).double()
    found = HGRN(6, 2, mixer=Plain).double()
    found.load_state_dict(expected.state_dict())
    x = torch.randn(2, 9, 6, dtype=torch.float64)
    mask = torch.rand(2, 9) < 0.7
    assert_close(found(x, mask=mask)[0], expected(x, mask=mask)[0])


def test_another_mixer_in_each_block_steps_and_trains():
    stack = HGRN(6, 3, mixer=["hgru", Mean, HGRN2Mixer])
    x = torch.randn(2, 9, 6)
    y, final = stack(x)
    assert [len(layer) for layer in final] == [1, 2, 1]
    first, state = stack(x[:, :4])
    second, _ = stack(x[:, 4:], state)
    assert_close(torch.cat([first, second], 1), y)
    y.sum().backward()
    assert all(p.grad is not None for p in stack.parameters())


def test_names_are_registered_once():
    register_mixer("mean")(Mean)
    register_mixer("mean")(Mean)
    assert isinstance(HGRN(4, 1, mixer="mean").blocks[0].mixer, Mean)
    with pytest.raises(ValueError, match="'mean' is .*Mean already; give .*Plain another name"):
        register_mixer("mean")(Plain)
    with pytest.raises(ValueError, match="'hgru' is hgrn.modules.hgru.HGRU already"):
        register_mixer("hgru")(Plain)
    with pytest.raises(TypeError, match="derived from hgrn.modules.Mixer, got <class 'torch"):
        register_mixer("linear")(torch.nn.Linear)
    with pytest.raises(ValueError, match="mixer must be one of hgru, hgrn2, mean, got 'maen'; did"):
        HGRN(4, 1, mixer="maen")
    with pytest.raises(ValueError, match="one for each of 3 blocks, got 2"):
        HGRN(4, 3, mixer=[HGRU, Mean])
    with pytest.raises(ValueError, match="goes with no other mixer"):
        HGRN(4, 1, mixer=Mean, grid=True)


def test_records_tell_classes_options_and_defaults_apart():
    register_mixer("mean")(Mean)
    register_mixer("plain")(Plain)
    recorded = mixers.record_of("plain", {"gate_act": "sigmoid"})
    assert mixers.differs(recorded, mixers.record_of("plain", {"gate_act": "sigmoid"})) == ""
    # The default of an option counts as the option itself.
    assert mixers.record_of("plain", {"gate_act": "silu"}) == mixers.record_of("plain", {})
    assert "other options" in mixers.differs(recorded, mixers.record_of("plain", {}))
    assert "in the checkpoint, but" in mixers.differs(recorded, mixers.record_of("mean", {}))
    # A file that is run calls itself __main__.
    run = recorded | {"class": "__main__.Plain"}
    assert mixers.differs(run, recorded) == ""


def test_options_are_checked_without_making_the_mixer():
    register_mixer("plain")(Plain)
    assert mixers.problem_of_options("plain", 8, {"gate_act": "sigmoid"}) == ""
    problem = mixers.problem_of_options("plain", 8, {"gate_akt": "sigmoid"})
    assert problem.startswith(
        "mixer 'plain' takes no gate_akt; did you mean gate_act or gate_rank?"
    )
    assert "head_dim must divide" in mixers.problem_of_options("hgrn2", 8, {"head_dim": 3})


def test_each_says_what_it_can_do():
    assert HGRU(4).why_not("steps") is None and HGRU(4).why_not("split") is None
    assert HGRN2Mixer(4).why_not("steps") is None and HGRN2Mixer(4).why_not("split") is None
    # A class with a forward of its own is not what was compiled.
    for use in ("steps", "split"):
        assert Plain(4).why_not(use) == "a Plain has forward of its own"
        assert "a Mean" in Mean(4, bias=True, norm_eps=1e-5, norm_type="rms").why_not(use)
    for use in ("state", "export", "int8"):
        assert Plain(4).why_not(use) is None
    with pytest.raises(ValueError, match="a Plain has forward of its own"):
        Stepper(HGRN(4, 1, mixer=Plain).eval())


def test_a_mixer_can_refuse_8_bits():
    class Reader(Plain):
        def why_not(self, use):
            return "it reads in_proj.weight itself" if use == "int8" else super().why_not(use)

    stack = HGRN(4, 1, mixer=Reader)
    with pytest.raises(ValueError, match=r"blocks.0.mixer cannot have 8-bit .* reads in_proj"):
        quantize_int8(stack)
    assert isinstance(stack.blocks[0].glu.down_proj, Linear)
    quantize_int8(HGRN(4, 1, mixer=Plain))
