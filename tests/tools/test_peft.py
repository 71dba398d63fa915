"""LoRA adapters of peft: trained, saved alone, loaded, merged; generation follows them."""

import copy

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from hgrn.models import HGRNConfig, HGRNForCausalLM
from hgrn.modules import Stepper
from hgrn.ops import available_engines
from tests.tolerances import assert_close
from tests.tools.conftest import CONFIG

peft = pytest.importorskip(
    "peft", reason="peft is not installed (pip install -c constraints.txt '.[peft]')"
)

TARGETS = ["in_proj", "out_proj", "gate_up_proj", "down_proj"]
# peft asks transformers under a name that this release calls outdated.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)


def adapt(base: HGRNForCausalLM, targets=TARGETS, **options) -> "peft.PeftModel":
    torch.manual_seed(1)
    return peft.get_peft_model(
        base, peft.LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM", **options)
    )


def train(model, ids, steps=25) -> list[float]:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=1e-2)
    losses = []
    model.train()
    for _ in range(steps):
        loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    model.eval()
    return losses


def generate(model, ids, **options) -> torch.Tensor:
    return model.generate(
        input_ids=ids, max_new_tokens=12, min_new_tokens=12, do_sample=False, **options
    )


@pytest.fixture(scope="module")
def other() -> torch.Tensor:
    """What the trained model does not say, `[2, 24]`."""
    return torch.randint(256, (2, 24), generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def adapted(trained, other) -> "peft.PeftModel":
    """The trained model with an adapter that has learned something else; their outputs differ."""
    model = adapt(copy.deepcopy(trained))
    train(model, other)
    return model


@pytest.fixture
def counted(monkeypatch) -> list:
    """An entry for each compiled step."""
    ran = []
    call = Stepper.__call__
    monkeypatch.setattr(Stepper, "__call__", lambda self, x: ran.append(1) or call(self, x))
    return ran


@pytest.mark.parametrize(
    "gate_rank, targets, found",
    [(None, TARGETS, TARGETS), (4, "all-linear", [*TARGETS, "forget_up", "gate_up"])],
)
def test_only_the_adapter_learns(gate_rank, targets, found, other):
    torch.manual_seed(0)
    base = HGRNForCausalLM(HGRNConfig(**CONFIG, gate_rank=gate_rank))
    before = {name: parameter.clone() for name, parameter in base.named_parameters()}
    model = adapt(base, targets)
    assert {name.split(".")[-1] for name in model.targeted_module_names} == set(found)
    losses = train(model, other)
    assert losses[-1] < 0.7 * losses[0]
    after = {
        name.replace("base_layer.", ""): parameter for name, parameter in base.named_parameters()
    }
    assert all(torch.equal(after[name], parameter) for name, parameter in before.items())


def test_the_adapter_is_saved_alone_and_loaded(adapted, trained, other, tmp_path):
    adapted.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert len(saved) == 2 * len(TARGETS) * 2 and all("lora" in name for name in saved)
    base = copy.deepcopy(trained)
    loaded = peft.PeftModel.from_pretrained(base, tmp_path).eval()
    with torch.no_grad():
        expected = adapted(input_ids=other).logits
        assert torch.equal(loaded(input_ids=other).logits, expected)
        plain = trained(other).logits
        assert (expected - plain).abs().max() > 1  # the adapter says something
        with loaded.disable_adapter():
            assert torch.equal(loaded(input_ids=other).logits, plain)


def test_merged_it_is_a_model_like_any_other(adapted, other, tmp_path):
    merged = copy.deepcopy(adapted).merge_and_unload()
    assert type(merged) is HGRNForCausalLM
    with torch.no_grad():
        logits = merged(other).logits
        assert_close(logits, adapted(input_ids=other).logits)
        merged.save_pretrained(tmp_path)
        assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path)(other).logits, logits)


def test_generation_follows_the_adapter(adapted, trained, sentence, counted):
    ids = sentence[:, :5]
    plain = generate(trained, ids)
    steps = len(counted)
    said = generate(adapted, ids)
    assert len(counted) == steps  # compiled steps know nothing of adapters: they step aside
    assert torch.equal(said, generate(adapted, ids, use_cache=False)) and not torch.equal(
        said, plain
    )
    merged = copy.deepcopy(adapted).merge_and_unload()
    assert torch.equal(generate(merged, ids), said)
    if "numba" in available_engines("cpu"):
        assert (
            steps == 11 and len(counted) == 2 * steps
        )  # and are back where the adapter is part of the weights


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_an_adapter_on_either_end_is_heard_in_generation(target, other, sentence):
    torch.manual_seed(0)
    model = HGRNForCausalLM(HGRNConfig(**CONFIG, tie_word_embeddings=False)).eval()
    ids = sentence[:, :5]
    plain = generate(model, ids)
    model = adapt(model, [target])
    train(model, other)
    said = generate(model, ids)
    assert torch.equal(said, generate(model, ids, use_cache=False)) and not torch.equal(said, plain)


def test_prefix_tuning_is_refused(untrained, other):
    config = peft.PrefixTuningConfig(
        num_virtual_tokens=4,
        num_layers=2,
        token_dim=32,
        num_attention_heads=2,
        task_type="CAUSAL_LM",
    )
    with pytest.raises(TypeError, match="past_key_values must be an HGRNCache, got DynamicCache"):
        peft.get_peft_model(untrained, config)(input_ids=other)


@pytest.mark.filterwarnings(
    "ignore:Unsupported layer type .*LayerNorm:UserWarning"
)  # peft does not know the width of any norm
def test_ln_tuning_learns_in_every_norm(trained, other):
    """The norm inside a layer is called as a module, so that an adapter can take its place."""
    targets = ["mixer_norm", "glu_norm", "mixer.norm", "stack.norm"]
    model = peft.get_peft_model(
        copy.deepcopy(trained), peft.LNTuningConfig(target_modules=targets, task_type="CAUSAL_LM")
    )
    norms = 3 * trained.config.num_hidden_layers + 1
    assert sum(parameter.requires_grad for parameter in model.parameters()) == 2 * norms
    assert torch.equal(model(input_ids=other).logits, trained(other).logits)
    losses = train(model, other)
    assert losses[-1] < losses[0]
    for name, parameter in model.named_parameters():
        assert not parameter.requires_grad or parameter.grad.abs().sum() > 0, name
    ids = other[:, :4]
    expected = generate(model, ids)
    assert torch.equal(model.merge_and_unload()(other).logits, model(input_ids=other).logits)
    assert torch.equal(generate(model, ids), expected)
