"""Compiled steps notice changes of their model between two steps, and compute with the new one."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from hgrn.modules import HGRN, Linear, Stepper, quantize_int8
from hgrn.ops import available_engines
from tests.tolerances import assert_close

pytestmark = pytest.mark.skipif("numba" not in available_engines("cpu"), reason="numba is not here")


def stack(dim=19, depth=2, **options):
    torch.manual_seed(0)
    rnn = HGRN(dim, depth, **options).eval()
    if rnn.bounds is not None:
        nn.init.normal_(rnn.bounds.logits)
    return rnn


class Junk:
    """Fills memory that was freed, so that reading it gives wrong numbers."""

    def __init__(self, rnn):
        self.rows = [torch.full_like(p, 9.0) for p in rnn.parameters()]


def new_memory(rnn):
    for p in rnn.parameters():
        p.data = p.data.clone()


def an_average(rnn):
    for p in rnn.parameters():
        p.data = 0.9 * p.data + 0.01


def half_and_back(rnn):
    rnn.half().float()


def other_state_dict(rnn):
    rnn.load_state_dict({name: x + 0.1 for name, x in rnn.state_dict().items()}, assign=True)


def swapped(rnn):
    torch.utils.swap_tensors(
        rnn.blocks[0].mixer.theta, nn.Parameter(rnn.blocks[0].mixer.theta.detach() + 1)
    )


def other_parameter(rnn):
    rnn.blocks[1].glu.down_proj.weight = nn.Parameter(
        rnn.blocks[1].glu.down_proj.weight.detach() * 2
    )


def other_module(rnn):
    rnn.blocks[1].mixer.out_proj = nn.Linear(38, 19)


def other_block(rnn):
    rnn.blocks[1] = copy.deepcopy(rnn.blocks[0])


def quantized(rnn):
    quantize_int8(rnn)


def trained_in_place(rnn):
    with torch.no_grad():
        for p in rnn.parameters():
            p.add_(0.1)


def bounds_in_place(rnn):
    with torch.no_grad():
        rnn.bounds.logits[1].add_(2)


def bounds_behind_the_version_counter(rnn):
    rnn.bounds.logits.data.neg_()


def angles_by_numpy(rnn):
    rnn.blocks[1].mixer.theta.detach().numpy()[:] += 1


def a_single_angle(rnn):
    rnn.blocks[0].mixer.theta.data[-1] = 2.5


def without_bounds(rnn):
    rnn.bounds = None


def another_epsilon(rnn):
    rnn.blocks[0].mixer.norm.eps = 0.5


def another_gate(rnn):
    rnn.blocks[0].mixer.gate_act = "sigmoid"


def vocabulary_cut(rnn):
    rnn.blocks[0].glu.gate_up_proj.bias = None


CHANGES = [
    new_memory,
    an_average,
    half_and_back,
    nn.Module.share_memory,
    other_state_dict,
    swapped,
    other_parameter,
    other_module,
    other_block,
    quantized,
    trained_in_place,
    bounds_in_place,
    bounds_behind_the_version_counter,
    angles_by_numpy,
    a_single_angle,
    without_bounds,
    another_epsilon,
    another_gate,
    vocabulary_cut,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_step_is_that_of_the_stack_as_it_is_now(change):
    rnn = stack()
    x = torch.randn(3, 1, 19)
    step = Stepper(rnn)
    with torch.no_grad():
        _, state = rnn(x[0][:, None])
        step(x[0])
        change(rnn)
        junk = Junk(rnn)
        for row in x[1:]:
            expected, state = rnn(row[:, None], state)
            assert_close(step(row), expected[:, 0])
        assert len(junk.rows) == len(list(rnn.parameters()))


def test_a_stack_of_one_channel_notices_too():
    rnn = HGRN(1, 1, glu_dim=1, use_lower_bound=False).eval()
    x = torch.ones(1, 1)
    step = Stepper(rnn)
    step(x)
    # Other parameters of the same values, which then change.
    for module in rnn.modules():
        for name, p in module._parameters.items():
            if p is not None:
                module._parameters[name] = nn.Parameter(p.detach().clone())
    step.state = None
    step(x)
    nn.init.constant_(rnn.norm.bias, 5.0)
    step.state = None
    with torch.no_grad():
        assert_close(step(x), rnn(x[:, None])[0][:, 0])


def test_another_head():
    rnn = stack()
    head = Linear(19, 7)
    x = torch.randn(1, 19)
    step = Stepper(rnn, 1, head)
    with torch.no_grad():
        head.weight = nn.Parameter(torch.randn(5, 19))  # fewer outputs than it was made with
        head.bias = None
        assert_close(step(x), head(rnn(x[:, None])[0][:, 0]))


def test_no_step_is_compiled_again_without_need(monkeypatch):
    made = []
    compile_again = Stepper._compile
    monkeypatch.setattr(Stepper, "_compile", lambda self: made.append(1) or compile_again(self))
    rnn = stack()
    rnn.blocks[0].mixer.theta.data[3] = float("nan")  # unchanged, though it equals nothing
    step = Stepper(rnn)
    for _ in range(3):
        step(torch.randn(1, 19))
        rnn(torch.randn(1, 3, 19))[0].nansum().backward()
    trained_in_place(rnn)
    step(torch.randn(1, 19))
    step(torch.randn(1, 19))
    assert len(made) == 2


def hooked(rnn):
    return rnn.blocks[1].glu.register_forward_hook(lambda *_: None).remove


def hooked_before(rnn):
    return rnn.blocks[0].mixer.in_proj.register_forward_pre_hook(lambda *_: None).remove


def hooked_everywhere(rnn):
    return nn.modules.module.register_module_forward_hook(lambda *_: None).remove


def own_forward(rnn):
    rnn.blocks[0].forward = rnn.blocks[0].forward
    return lambda: rnn.blocks[0].__delattr__("forward")


def training(rnn):
    rnn.train()
    return rnn.eval


def parametrized(rnn):
    parametrize.register_parametrization(rnn.blocks[0].mixer, "theta", nn.Identity())
    return lambda: parametrize.remove_parametrizations(rnn.blocks[0].mixer, "theta")


def weight_norm(rnn):
    nn.utils.parametrizations.weight_norm(rnn.blocks[0].glu.down_proj)
    return lambda: parametrize.remove_parametrizations(rnn.blocks[0].glu.down_proj, "weight")


def double(rnn):
    rnn.double()
    return rnn.float


def on_meta(rnn):
    kept = rnn.blocks[0].glu
    rnn.blocks[0].glu = copy.deepcopy(kept).to("meta")
    return lambda: setattr(rnn.blocks[0], "glu", kept)


def freed(rnn):
    storage = rnn.blocks[0].glu.down_proj.weight.untyped_storage()
    values = rnn.blocks[0].glu.down_proj.weight.detach().clone()
    size = storage.nbytes()
    storage.resize_(0)

    def back():
        storage.resize_(size)
        rnn.blocks[0].glu.down_proj.weight.data.copy_(values)

    return back


def negated(rnn):
    weight = rnn.blocks[0].mixer.in_proj.weight
    kept = weight.data
    weight.data = torch._neg_view(kept.clone())
    return lambda: setattr(weight, "data", kept)


def no_offset(rnn):
    norm = rnn.blocks[0].mixer.norm
    kept = norm.bias
    norm.bias = None
    return lambda: setattr(norm, "bias", kept)


def part_of_longer_sequences(rnn):
    rnn.blocks[0].mixer.scan = lambda *_, **__: None
    return lambda: delattr(rnn.blocks[0].mixer, "scan")


OBSTACLES = {
    hooked: "blocks.1.glu has hooks",
    hooked_before: "in_proj has hooks",
    hooked_everywhere: "hooks for all modules",
    own_forward: "a forward of its own",
    training: "training mode",
    parametrized: "is a ParametrizedHGRU",
    weight_norm: "is a ParametrizedLinear",
    double: "torch.float64",
    on_meta: "on meta",
    freed: "without memory",
    negated: "negated lazily",
    no_offset: r"bias must have shape \(38,\), got None",
    part_of_longer_sequences: "longer sequences",
}


@pytest.mark.parametrize(
    "obstacle, message", OBSTACLES.items(), ids=lambda value: getattr(value, "__name__", "")
)
def test_what_cannot_be_stepped_any_more_says_why_and_goes_on_when_it_can(obstacle, message):
    rnn = stack()
    x = torch.randn(3, 1, 19)
    step = Stepper(rnn)
    expected = Stepper(rnn)
    step(x[0])
    undo = obstacle(rnn)
    try:
        with pytest.raises(ValueError, match=message):
            step(x[1])
        with pytest.raises(ValueError, match=message):
            Stepper(rnn)
    finally:
        undo()
    expected(x[0])
    assert_close(step(x[1]), expected(x[1]))


def test_dropout_alone_in_training_is_an_obstacle():
    rnn = stack(dropout=0.5)
    x = torch.randn(1, 19)
    step = Stepper(rnn)
    rnn.blocks[0].dropout.train()
    with pytest.raises(ValueError, match="blocks.0.dropout is in training mode"):
        step(x)
    # With nothing to drop, the mode of a dropout does not matter.
    rnn = stack()
    rnn.blocks[0].dropout.train()
    assert Stepper(rnn)(x).shape == (1, 19)


def test_a_stack_of_another_size_needs_another_stepper():
    rnn = stack()
    x = torch.randn(1, 19)
    step = Stepper(rnn)
    rnn.blocks.append(stack().blocks[0])
    rnn.bounds = None
    with pytest.raises(ValueError, match="another size"):
        step(x)


def by_torch(step):
    file = io.BytesIO()
    torch.save(step, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "way", [copy.copy, copy.deepcopy, lambda step: pickle.loads(pickle.dumps(step)), by_torch]
)
def test_a_copy_goes_on_by_itself(way):
    rnn = stack()
    x = torch.randn(4, 2, 19)
    step = Stepper(rnn, 2, Linear(19, 5))
    step(x[0])
    other = way(step)
    wanted = [step(row) for row in x[1:]]
    assert all(torch.equal(other(row), y) for row, y in zip(x[1:], wanted))
    if way is not copy.copy:
        an_average(rnn)  # of the original only
        other.state = step.state = None
        assert not torch.equal(step(x[0]), other(x[0]))
