"""A model with parts of its own, or with 8-bit weights, is never saved and read as plain HGRN."""

import copy
import json

import pytest
import torch
from torch import nn

from hgrn.cli.inference import load
from hgrn.errors import UserError
from hgrn.models import HGRNConfig, HGRNForCausalLM, HGRNForSequenceClassification, HGRNModel
from hgrn.models.session import Session
from hgrn.modules import GLU, HGRU, quantize_int8
from hgrn.training.checkpointing import load_model_and_optimizer

CONFIG = dict(vocab_size=259, hidden_size=8, num_hidden_layers=2)


class Squashed(HGRU):
    def forward(self, *arguments):
        y, state = super().forward(*arguments)
        return y.tanh(), state


class Own(HGRNForCausalLM):
    """Has its mixers from the start, as a class must that is to be loaded."""

    def __init__(self, config: HGRNConfig):
        super().__init__(config)
        for block in self.model.stack.blocks:
            block.mixer = Squashed(config.hidden_size)
        self.post_init()


def plain() -> HGRNForCausalLM:
    torch.manual_seed(0)
    return HGRNForCausalLM(HGRNConfig(**CONFIG)).eval()


def test_a_mixer_of_ones_own_is_loaded_by_its_class_and_refused_by_others(tmp_path):
    torch.manual_seed(0)
    model = Own(HGRNConfig(**CONFIG)).eval()
    ids = torch.arange(9)[None]
    model.save_pretrained(tmp_path)
    assert torch.equal(Own.from_pretrained(tmp_path)(ids).logits, model(ids).logits)
    for kind in (HGRNForCausalLM, HGRNModel, HGRNForSequenceClassification):
        with pytest.raises(
            UserError,
            match=r"stack.blocks.0.mixer is Squashed\(.*as plain HGRN its weights would be "
            r"another model",
        ):
            kind.from_pretrained(tmp_path)
    with pytest.raises(UserError, match="Squashed"):
        load(tmp_path)  # as the commands do
    told = Session(model)
    told.read(ids)
    told.save(tmp_path / "talk")
    other = plain()
    other.load_state_dict(model.state_dict())
    with pytest.raises(UserError, match="belongs to another model"):
        Session.load(tmp_path / "talk", other)


def test_resuming_refuses_a_checkpoint_of_another_mixer(tmp_path):
    Own(HGRNConfig(**CONFIG)).save_pretrained(tmp_path)
    model = plain()
    before = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(UserError, match="stack.blocks.0.mixer is Squashed"):
        load_model_and_optimizer(tmp_path, model, torch.optim.SGD(model.parameters()), {})
    assert all(map(torch.equal, model.parameters(), before))


def _set(path: str, value):
    def change(model):
        *owner, name = path.split(".")
        setattr(model.get_submodule(".".join(owner)), name, value)

    return change


@pytest.mark.parametrize(
    "change, described",
    [
        (_set("model.stack.blocks.1.mixer", Squashed(8)), "stack.blocks.1.mixer is Squashed"),
        (
            _set("model.stack.blocks.1.mixer.__class__", Squashed),
            "stack.blocks.1.mixer is Squashed",
        ),
        (
            _set("model.stack.blocks.0.glu.act", "identity"),
            r"stack.blocks.0.glu is GLU\(act=identity\)",
        ),
        (
            _set("model.stack.blocks.0.mixer.gate_act", "sigmoid"),
            r"stack.blocks.0.mixer is HGRU\(.*gate=sigmoid",
        ),
        (
            _set("model.stack.blocks.0.glu_norm.eps", 1e-3),
            r"stack.blocks.0.glu_norm is LayerNorm\(.*eps=0.001",
        ),
        (
            _set("model.stack.blocks.0.glu", nn.Sequential(nn.Linear(8, 8), nn.GELU())),
            "stack.blocks.0.glu is Sequential",
        ),
        (
            _set("model.stack.blocks.0.glu.forward", torch.tanh),
            r"stack.blocks.0.glu is GLU\(.*with a forward of its own",
        ),
        (_set("model.stack.norm", nn.Identity()), "stack.norm is Identity"),
        (_set("model.stack.blocks.0.glu.extra", nn.ReLU()), "stack.blocks.0.glu.extra is ReLU"),
    ],
)
def test_every_part_that_was_changed_is_named(change, described, tmp_path):
    model = plain()
    change(model)
    model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=described):
        HGRNForCausalLM.from_pretrained(tmp_path)


def test_what_computes_the_same_is_plain(tmp_path):
    model = plain()
    model.resize_token_embeddings(261, mean_resizing=False)
    model.model.stack.blocks[0].dropout = nn.Identity()
    model.model.stack.blocks[0].glu.down_proj.register_forward_hook(lambda *_: None)
    linear = nn.Linear(16, 8)
    linear.load_state_dict(model.model.stack.blocks[1].glu.down_proj.state_dict())
    model.model.stack.blocks[1].glu.down_proj = linear
    model.save_pretrained(tmp_path)
    assert "custom_modules" not in json.loads((tmp_path / "config.json").read_text())
    HGRNForCausalLM.from_pretrained(tmp_path)


def test_a_record_goes_away_with_the_part(tmp_path):
    model = plain()
    kept = model.model.stack.blocks[0].glu
    model.model.stack.blocks[0].glu = nn.Identity()
    model.save_pretrained(tmp_path / "own")
    assert json.loads((tmp_path / "own" / "config.json").read_text())["custom_modules"] == {
        "stack.blocks.0.glu": "Identity"
    }
    model.model.stack.blocks[0].glu = kept
    model.save_pretrained(tmp_path / "plain")
    HGRNForCausalLM.from_pretrained(tmp_path / "plain")


@pytest.mark.parametrize("recorded", ["x", ["x"], {"stack.norm": 3}, {"": "Other"}, 7])
def test_a_strange_record_is_refused(recorded, tmp_path):
    plain().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"custom_modules": recorded}))
    with pytest.raises(UserError, match="was saved from a model with parts of its own"):
        HGRNForCausalLM.from_pretrained(tmp_path)


def test_eight_bit_weights_are_not_saved(tmp_path):
    model = quantize_int8(plain())
    with pytest.raises(
        UserError,
        match="model.stack.blocks.0.mixer.in_proj has 8-bit weights, which are not saved; "
        "save the model before",
    ):
        model.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_eight_bit_weights_are_loaded_by_no_other_model(tmp_path):
    floats = plain()
    integers = quantize_int8(copy.deepcopy(floats))
    before = floats.lm_head.weight.clone()
    for strict in (True, False):
        with pytest.raises(
            RuntimeError,
            match="lm_head.weight holds torch.int8, the integers of a quantized weight",
        ):
            plain().load_state_dict(integers.state_dict(), strict=strict)
        with pytest.raises(
            RuntimeError, match="lm_head.weight is torch.float32 .*but this model has 8-bit weights"
        ):
            copy.deepcopy(integers).load_state_dict(floats.state_dict(), strict=strict)
    assert torch.equal(floats.lm_head.weight, before)
    with pytest.raises(
        UserError, match="holds 8-bit weights .*load what was saved before quantize_int8"
    ):
        HGRNForCausalLM.from_pretrained(
            None, config=floats.config, state_dict=integers.state_dict()
        )
    again = quantize_int8(HGRNForCausalLM(HGRNConfig(**CONFIG)).eval())
    again.load_state_dict(integers.state_dict())
    ids = torch.arange(9)[None]
    assert torch.equal(again(ids).logits, integers(ids).logits)


def test_glus_and_mixers_are_described_by_what_decides_their_numbers():
    assert GLU(4, 8, "identity").extra_repr() != GLU(4, 8).extra_repr()
    assert HGRU(4, gate_position="before_norm").extra_repr() != HGRU(4).extra_repr()
