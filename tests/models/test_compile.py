"""A whole compiled training step is one graph, and gives the numbers of the plain one."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from hgrn.models import HGRNCache, HGRNConfig, HGRNForCausalLM
from tests.tolerances import assert_close

LENGTH = 12


def variant(name: str, model: HGRNForCausalLM) -> dict:
    """The arguments of one kind of step, made anew."""
    rows = 1 if "packed" in name else 2
    ids = torch.randint(11, (rows, LENGTH), generator=torch.Generator().manual_seed(0))
    arguments = dict(input_ids=ids, num_items_in_batch=torch.tensor(20))
    if "packed" in name:
        arguments |= dict(labels=ids, cu_seqlens=torch.tensor([0, 5, 5, LENGTH], dtype=torch.int32))
    else:
        arguments["shift_labels"] = ids.roll(-1, 1)
    if "padded" in name:
        arguments["attention_mask"] = (
            torch.arange(LENGTH) >= torch.tensor([[4], [0]])[:rows]
        ).long()
    if "state" in name:
        sequences = 3 if "packed" in name else rows
        generator = torch.Generator().manual_seed(1)
        blank = [block.mixer.initial_state(sequences) for block in model.model.stack.blocks]
        state = tuple(
            tuple(torch.randn(part.shape, generator=generator) for part in layer) for layer in blank
        )
        arguments["past_key_values"] = HGRNCache(state, seen_tokens=7)
    return arguments


def step(model, **arguments):
    output = model(**arguments)
    output.loss.backward()
    return output


def small_model(checkpointing: bool, **options) -> HGRNForCausalLM:
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = HGRNForCausalLM(
        HGRNConfig(vocab_size=11, hidden_size=8, num_hidden_layers=2, **options)
    ).train()
    if checkpointing:
        model.activation_checkpointing_enable()
    return model


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # inductor's own
@pytest.mark.parametrize(
    "name, backend",
    [
        ("plain", "aot_eager"),
        ("padded state", "aot_eager"),
        ("packed padded state", "aot_eager"),
        ("packed padded state convolved", "aot_eager"),
        ("packed padded state recomputed", "aot_eager"),
        pytest.param("packed padded state", "inductor", marks=pytest.mark.slow),
    ],
)
def test_a_training_step_is_one_graph(name, backend):
    model = small_model(
        "recomputed" in name, **(dict(norm_type="rms", conv_size=4) if "convolved" in name else {})
    )
    expected = step(model, **variant(name, model))
    gradients = {key: p.grad for key, p in model.named_parameters()}
    model.zero_grad()

    counter = CompileCounterWithBackend(backend)
    output = step(torch.compile(model, backend=counter, fullgraph=True), **variant(name, model))
    assert counter.frame_count == 1
    assert_close(output.loss, expected.loss)
    for key, parameter in model.named_parameters():
        assert_close(parameter.grad, gradients[key], name=key)
    if "state" in name:
        cache = output.past_key_values
        assert cache.get_seq_length() == 7 + LENGTH
        for layer, plain in zip(cache.state, expected.past_key_values.state, strict=True):
            for part, expected_part in zip(layer, plain, strict=True):
                assert_close(part, expected_part)


def test_further_steps_reuse_the_graph():
    model = small_model(checkpointing=False)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    cache = HGRNCache(variant("state", model)["past_key_values"].state)
    for _ in range(5):
        output = step(compiled, **variant("padded", model), past_key_values=cache)
        cache = output.past_key_values.detach()
    assert counter.frame_count <= 2  # once more when the count of tokens turns out to change
    assert cache.get_seq_length() == 5 * LENGTH


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # inductor's own
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_steps_of_decoding_are_one_graph_each_and_the_same(backend):
    model = small_model(checkpointing=False).eval()
    ids = torch.randint(11, (2, LENGTH + 10), generator=torch.Generator().manual_seed(0))
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    with torch.no_grad():
        expected = model(ids).logits
        cache = model(ids[:, :LENGTH], use_cache=True).past_key_values
        for t in range(LENGTH, LENGTH + 10):
            # The second step shows that the count of tokens changes; from then on nothing is
            # compiled.
            with torch.compiler.set_stance("default" if t < LENGTH + 2 else "fail_on_recompile"):
                output = compiled(ids[:, t : t + 1], past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            assert_close(output.logits[:, 0], expected[:, t])
    assert counter.frame_count == 2 and cache.get_seq_length() == LENGTH + 10
