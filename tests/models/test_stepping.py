"""Compiled steps: the model's own numbers, and only where they are allowed."""

import copy

import pytest
import torch

from hgrn.models import HGRNConfig, HGRNForCausalLM, stepping
from hgrn.modules import Stepper, quantize_int8
from hgrn.ops import available_engines
from tests.tolerances import assert_close

pytestmark = pytest.mark.skipif("numba" not in available_engines("cpu"), reason="numba is not here")


@pytest.fixture
def model():
    torch.manual_seed(0)
    return HGRNForCausalLM(HGRNConfig(vocab_size=31, hidden_size=16, num_hidden_layers=3)).eval()


@pytest.fixture
def counted(monkeypatch) -> list:
    """An entry for each compiled step."""
    ran = []
    call = Stepper.__call__
    monkeypatch.setattr(Stepper, "__call__", lambda self, x: ran.append(1) or call(self, x))
    return ran


def decode(model, ids, **options):
    logits = []
    cache = None
    with torch.no_grad():
        for token in ids.T:
            output = model(
                input_ids=token[:, None], past_key_values=cache, use_cache=True, **options
            )
            cache = output.past_key_values
            logits.append(output.logits)
    return torch.cat(logits, 1), cache


@pytest.mark.parametrize("quantized", [False, True])
def test_a_loop_of_ones_own(quantized, model, counted):
    if quantized:
        quantize_int8(model)
    ids = torch.randint(0, 31, (3, 12))
    expected, cache = decode(model, ids)
    assert not counted
    with model.stepping():
        found, stepped = decode(model, ids)
        assert len(counted) == 11  # the first call has no state yet
    assert_close(found, expected)
    assert stepped.get_seq_length() == cache.get_seq_length() == 12
    for (a,), (b,) in zip(stepped.state, cache.state):
        assert_close(a, b)
    decode(model, ids)
    assert len(counted) == 11


def test_generate_steps_and_stops(model, counted):
    ids = torch.randint(0, 31, (2, 5))
    model.generate(ids, max_new_tokens=6, min_new_tokens=6, do_sample=False, pad_token_id=0)
    assert len(counted) == 5 and not model.is_stepping


def test_weights_that_were_trained_between_calls_are_used(model):
    ids = torch.randint(0, 31, (2, 5))
    options = dict(max_new_tokens=9, min_new_tokens=9, do_sample=False, pad_token_id=0)
    first = model.generate(ids, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    second = model.generate(ids, **options)
    assert not torch.equal(first, second)
    assert torch.equal(second, model.generate(ids, use_cache=False, **options))


def test_what_does_not_suit_is_computed_by_the_model(model, counted):
    ids = torch.randint(0, 31, (2, 1))
    with torch.no_grad():
        cache = model(ids, use_cache=True).past_key_values
    calls = {
        "gradients": dict(),
        "masked": dict(attention_mask=torch.tensor([[1, 1], [1, 0]])),
        "hidden states": dict(output_hidden_states=True),
        "two tokens": dict(input_ids=torch.randint(0, 31, (2, 2))),
        "no cache": dict(past_key_values=None),
        "many": dict(input_ids=ids.repeat(5, 1)),
    }
    with model.stepping():
        for name, options in calls.items():
            given = copy.deepcopy(cache)
            if name == "many":
                given.batch_repeat_interleave(5)
            with torch.set_grad_enabled(name == "gradients"):
                model(**{"input_ids": ids, "past_key_values": given} | options)
            assert not counted, name
        narrow = copy.deepcopy(model).to(torch.bfloat16)
        with narrow.stepping(), torch.no_grad():
            narrow(input_ids=ids, past_key_values=copy.deepcopy(cache))
        assert not counted
        with torch.no_grad():
            model(input_ids=ids, past_key_values=cache)
        assert counted


@pytest.mark.parametrize("options", [dict(norm_type="rms"), dict(conv_size=4)])
def test_a_model_without_compiled_steps_generates_all_the_same(options, counted):
    torch.manual_seed(0)
    model = HGRNForCausalLM(
        HGRNConfig(vocab_size=31, hidden_size=16, num_hidden_layers=3, **options)
    ).eval()
    ids = torch.randint(0, 31, (2, 7))
    mask = torch.ones(2, 7, dtype=torch.long)
    mask[0, :3] = 0
    choice = dict(
        attention_mask=mask, max_new_tokens=9, min_new_tokens=9, do_sample=False, pad_token_id=0
    )
    assert torch.equal(
        model.generate(ids, **choice), model.generate(ids, use_cache=False, **choice)
    )
    assert not counted


def test_hooks_of_the_backbone_are_called(model, counted):
    seen = []
    model.model.register_forward_hook(lambda *_: seen.append(1))
    with model.stepping():
        decode(model, torch.randint(0, 31, (1, 4)))
    assert len(seen) == 4 and not counted


def test_a_model_that_steps_can_still_be_copied(model):
    with model.stepping():
        copy.deepcopy(model)
    assert not stepping._active.steps


def changes_of_a_model():
    def lower_bounds(model):
        torch.nn.init.normal_(model.model.stack.bounds.logits)

    def other_head(model):
        model.lm_head = torch.nn.Linear(16, 31)

    def other_stack(model):
        model.model.stack = copy.deepcopy(model.model.stack)
        torch.nn.init.normal_(model.model.stack.norm.bias)

    def other_backbone(model):
        model.model = copy.deepcopy(model.model)
        torch.nn.init.normal_(model.model.stack.norm.bias)

    def moved(model):
        for p in model.parameters():
            p.data = 1.1 * p.data

    def hook(model):
        model.model.register_forward_hook(
            lambda module, inputs, output: setattr(output, "last_hidden_state", 0 * output[0])
        )

    def own_forward(model):
        model.model.stack.norm.forward = torch.zeros_like

    return [lower_bounds, other_head, other_stack, other_backbone, moved, hook, own_forward]


@pytest.mark.parametrize("change", changes_of_a_model(), ids=lambda change: change.__name__)
@torch.no_grad()
def test_a_change_between_two_steps_is_noticed(change, model, counted):
    ids = torch.randint(0, 31, (1, 5))
    with model.stepping():
        _, cache = decode(model, ids)
        assert len(counted) == 4
        change(model)
        kept = copy.deepcopy(cache)
        found = model(input_ids=ids[:, :1], past_key_values=cache).logits
    assert_close(found, model(input_ids=ids[:, :1], past_key_values=kept).logits)


class Quantized(torch.Tensor):
    """A weight as libraries of quantization make them: its memory is not its value."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass():
            plain = [
                2 * x.as_subclass(torch.Tensor) if isinstance(x, Quantized) else x for x in args
            ]
            return function(*plain, **kwargs or {})


def test_weights_of_a_tensor_subclass_are_not_read_as_memory(model, counted):
    ids = torch.randint(0, 31, (1, 5))
    options = dict(max_new_tokens=6, min_new_tokens=6, do_sample=False, pad_token_id=0)
    part = model.model.stack.blocks[0].glu.down_proj
    weight = torch.nn.Parameter(part.weight.detach() * 2)
    part._parameters["weight"] = part.weight.detach().as_subclass(Quantized)
    found = model.generate(ids, **options)
    assert not counted
    part.weight = weight
    assert torch.equal(found, model.generate(ids, **options)) and counted


def test_pytorchs_default_device_and_dtype_do_not_matter(model, counted):
    ids = torch.randint(0, 31, (2, 5))
    expected, _ = decode(model, ids)
    with torch.device("meta"), model.stepping():
        found, _ = decode(model, ids)
    torch.set_default_dtype(torch.float64)
    try:
        with model.stepping():
            other, _ = decode(model, ids)
    finally:
        torch.set_default_dtype(torch.float32)
    assert len(counted) == 8
    assert_close(found, expected)
    assert_close(other, expected)
