"""Models with another mixer: fields, records, generation, sessions, 8-bit weights, ONNX."""

import copy

import pytest
import torch

from hgrn.errors import UserError
from hgrn.models import HGRNConfig, HGRNForCausalLM, HGRNForSequenceClassification, Session
from hgrn.models.export import export_onnx, export_onnx_step
from hgrn.models.session import fingerprint
from hgrn.modules import HGRU, mixers, quantize_int8, register_mixer
from hgrn.ops import available_engines
from tests.tolerances import assert_close

SIZES = dict(vocab_size=31, hidden_size=16, num_hidden_layers=2)
HGRN2 = dict(mixer="hgrn2", mixer_options={"head_dim": 8}, norm_type="rms")


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    """Names that a test registers are gone after it."""
    monkeypatch.setattr(mixers, "_registered", {})


def model_of(**options) -> HGRNForCausalLM:
    torch.manual_seed(0)
    model = HGRNForCausalLM(HGRNConfig(**SIZES, **HGRN2 | options)).eval()
    torch.nn.init.normal_(model.model.stack.bounds.logits)
    return model


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(mixer="hgrn3"), "mixer: must be one of hgru, hgrn2, got 'hgrn3'; did you mean"),
        (dict(mixer=3), "mixer: must be one of hgru, hgrn2, got 3"),
        (dict(mixer_options={"head_dim": 8}), "must be None for the mixer hgru, whose options"),
        (dict(mixer="hgrn2", mixer_options=[8]), "must be arguments by name or None, got"),
        (dict(mixer="hgrn2", mixer_options={"heads": 8}), "'hgrn2' takes no heads; did you mean"),
        (dict(mixer="hgrn2", mixer_options={"head_dim": 5}), "head_dim must divide dim"),
        (dict(mixer="hgrn2", complex_state=False), "'hgrn2' takes no complex_state"),
        (dict(mixer="hgrn2", bidirectional=True), "'hgrn2' takes no bidirectional"),
        (
            dict(mixer="hgrn2", grid=True, bidirectional=True, patch_size=1),
            "grid: must be False with another mixer than hgru",
        ),
    ],
)
def test_wrong_fields_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        HGRNConfig(**SIZES, **fields)


def test_a_saved_model_loads_as_what_it_was(tmp_path):
    model = model_of(conv_size=3)
    model.save_pretrained(tmp_path)
    again = HGRNForCausalLM.from_pretrained(tmp_path).eval()
    ids = torch.randint(31, (2, 9))
    assert torch.equal(again(ids).logits, model(ids).logits)
    assert again.custom_modules() == {}
    assert not hasattr(again.config, "mixer_record")  # of our own mixers nothing is recorded


def test_a_registered_mixer_is_never_read_as_another(tmp_path, monkeypatch):
    @register_mixer("own")
    class Own(HGRU):
        pass

    model = HGRNForCausalLM(HGRNConfig(**SIZES, mixer="own"))
    model.save_pretrained(tmp_path)
    loaded = HGRNForCausalLM.from_pretrained(tmp_path)
    assert type(loaded.model.stack.blocks[1].mixer) is Own
    monkeypatch.setattr(mixers, "_registered", {})
    with pytest.raises(ValueError, match="got 'own'; a mixer of your own must be registered first"):
        HGRNForCausalLM.from_pretrained(tmp_path)

    @register_mixer("own")
    class Another(HGRU):
        pass

    with pytest.raises(ValueError, match="Own in the checkpoint, but .*Another here, so its"):
        HGRNForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize("conv_size", [None, 3])
def test_left_padded_prompts_write_what_each_writes_alone(conv_size):
    model = model_of(conv_size=conv_size)
    ids = torch.randint(1, 31, (3, 9))
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    mask[1, :8] = 0
    rules = dict(max_new_tokens=12, do_sample=False)
    written = model.generate(ids, attention_mask=mask, **rules)[:, 9:]
    for row in range(3):
        kept = ids[row, mask[row].bool()][None]
        alone = model.generate(kept, **rules)[:, kept.shape[1] :]
        assert torch.equal(written[row, None], alone)


def test_compiled_steps_take_part_in_generation():
    """The numbers of a cached step are those of the whole model, also with 8-bit weights."""
    for model in (model_of(), quantize_int8(model_of())):
        ids = torch.randint(31, (2, 12))
        told = Session(model)
        told = told.branch(2)
        told.read(ids[:, :5])
        with torch.no_grad():
            expected = model(ids).logits
        for t in range(5, 12):
            assert_close(told.read(ids[:, t : t + 1]), expected[:, t])
        steps = told._steps._programs
        assert ("numba" not in available_engines("cpu")) or steps[2] is not None


def test_a_session_is_saved_and_belongs_to_its_model(tmp_path):
    model = model_of()
    told = Session(model)
    told.read([[1, 2, 3]])
    told.save(tmp_path / "talk")
    again = Session.load(tmp_path / "talk", model)
    assert_close(again.read([[4]]), told.read([[4]]))
    assert told.nbytes == 2 * 2 * 8 * 8 * 4  # layers, heads, keys, values, bytes
    other = copy.deepcopy(model)
    other.config.mixer_options = {"head_dim": 8, "query_act": "sigmoid"}
    assert fingerprint(other) != fingerprint(model)
    with pytest.raises(UserError, match="belongs to another model"):
        Session.load(tmp_path / "talk", other)


def test_a_classifier_reads_with_it_too():
    config = HGRNConfig(**SIZES, **HGRN2, num_labels=3)
    model = HGRNForSequenceClassification(config)
    loss = model(torch.randint(31, (2, 9)), labels=torch.tensor([0, 2])).loss
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.slow
@pytest.mark.skipif("numba" not in available_engines("cpu"), reason="the export needs numba")
@pytest.mark.parametrize("conv_size", [None, 3])
def test_onnx_is_one_node_a_layer_and_goes_on_step_by_step(conv_size, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    model = model_of(conv_size=conv_size)
    export_onnx(model, tmp_path / "model.onnx")
    export_onnx_step(model, tmp_path / "step.onnx")
    graph = onnx.load(tmp_path / "model.onnx").graph
    nodes = [node.op_type for node in graph.node if node.domain == "com.microsoft"]
    assert nodes == ["LinearAttention"] * 2
    assert not {"Scan", "Loop"} & {node.op_type for node in graph.node}
    whole = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    step = onnxruntime.InferenceSession(tmp_path / "step.onnx")
    for batch, length in ((1, 1), (3, 70)):
        ids = torch.randint(31, (batch, length + 5))
        with torch.no_grad():
            expected = model(ids).logits
        found, *states = whole.run(None, {"input_ids": ids[:, :length].numpy()})
        assert_close(torch.from_numpy(found), expected[:, :length])
        names = [given.name for given in step.get_inputs()][1:]
        for t in range(length, length + 5):
            given = dict(zip(names, states, strict=True))
            found, *states = step.run(None, {"input_ids": ids[:, t : t + 1].numpy(), **given})
            assert_close(torch.from_numpy(found)[:, 0], expected[:, t])


def test_a_mask_over_a_convolution_is_not_exported(tmp_path):
    with pytest.raises(UserError, match="attention_mask=True does not go with a convolution"):
        export_onnx(model_of(conv_size=3), tmp_path / "model.onnx", attention_mask=True)
    assert not list(tmp_path.iterdir())
