"""ONNX files, run by onnxruntime: the model's own numbers, whole and step by step."""

import os
import re
import sys
from types import SimpleNamespace

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor

from hgrn.errors import UserError
from hgrn.models import HGRNCache, HGRNConfig, HGRNForCausalLM, HGRNModel
from hgrn.models.export import export_onnx, export_onnx_step
from hgrn.modules import quantize_int8
from hgrn.ops import available_engines
from tests.conftest import ROOT
from tests.tolerances import RELATIVE, assert_close, error

pytestmark = pytest.mark.skipif(
    "numba" not in available_engines("cpu"), reason="no registered engine works here"
)
LAYERS = 2
OPTIONS = {
    "complex": {},
    "real": dict(
        complex_state=False,
        gate_rank=3,
        gate_position="before_norm",
        gate_act="sigmoid",
        glu_act="identity",
        bias=False,
    ),
}


def small_model(**options) -> HGRNForCausalLM:
    torch.manual_seed(0)
    model = HGRNForCausalLM(
        HGRNConfig(vocab_size=31, hidden_size=16, num_hidden_layers=LAYERS, **options)
    ).eval()
    torch.nn.init.normal_(model.model.stack.bounds.logits)
    return model


class File:
    """An ONNX file as a function of tensors."""

    def __init__(self, path):
        self.proto = onnx.load(path)
        self.session = onnxruntime.InferenceSession(path)

    def __call__(self, **inputs: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits and states; states go in as the list `states`."""
        states = {
            f"initial_state.{index}": state for index, state in enumerate(inputs.pop("states", ()))
        }
        feed = {name: tensor.numpy() for name, tensor in (inputs | states).items()}
        logits, *states = (torch.from_numpy(array) for array in self.session.run(None, feed))
        return logits, states

    def shapes(self) -> dict[str, list]:
        return {
            value.name: value.shape
            for value in (*self.session.get_inputs(), *self.session.get_outputs())
        }


def operators(graph) -> list[str]:
    """Of all nodes, those inside of other nodes too."""
    found = []
    for node in graph.node:
        assert node.domain == "", f"{node.op_type} belongs to {node.domain}"
        found.append(node.op_type)
        for attribute in node.attribute:
            found += operators(attribute.g)
    return found


@torch.no_grad()
def expected(model, **inputs) -> tuple[Tensor, list[Tensor]]:
    output = model(**inputs, use_cache=True)
    return output.logits, [state for (state,) in output.past_key_values.state]


def assert_all_close(found, wanted) -> None:
    assert_close(found[0], wanted[0], name="logits")
    for index, pair in enumerate(zip(found[1], wanted[1], strict=True)):
        assert_close(*pair, name=f"state {index}")


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_any_batch_and_length_in_one_graph(options, tmp_path):
    model = small_model(**options)
    export_onnx(model, tmp_path / "model.onnx")
    file = File(tmp_path / "model.onnx")
    for batch in (1, 3):
        for length in (1, 7, 500):
            ids = torch.randint(
                31, (batch, length), generator=torch.Generator().manual_seed(length)
            )
            assert_all_close(file(input_ids=ids), expected(model, input_ids=ids))
    onnx.checker.check_model(file.proto, full_check=True)
    assert len(file.proto.functions) == 0 and operators(file.proto.graph).count("Scan") == LAYERS
    width = 32 if model.config.complex_state else 16
    states = {f"final_state.{index}": ["batch", width] for index in range(LAYERS)}
    assert (
        file.shapes()
        == {"input_ids": ["batch", "length"], "logits": ["batch", "length", 31]} | states
    )
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.slow
def test_padding_is_skipped_exactly(tmp_path):
    model = small_model()
    export_onnx(model, tmp_path / "model.onnx", attention_mask=True)
    file = File(tmp_path / "model.onnx")
    ids = torch.randint(31, (3, 12))
    mask = torch.ones(3, 12, dtype=torch.int64)
    mask[0, :5], mask[1, 9:], mask[2, [0, 3, 4, 11]] = 0, 0, 0  # on the left, on the right, inside
    logits, states = file(input_ids=ids, attention_mask=mask)
    for row in range(3):
        kept = mask[row].bool()
        alone = expected(model, input_ids=ids[row, kept][None])
        assert_all_close((logits[row, kept][None], [state[row, None] for state in states]), alone)
    other = file(input_ids=torch.where(mask.bool(), ids, 7), attention_mask=mask)
    assert torch.equal(logits[mask.bool()], other[0][mask.bool()])
    assert all(torch.equal(a, b) for a, b in zip(states, other[1]))
    for length in (1, 500):
        ids = torch.randint(31, (2, length))
        ones = torch.ones(2, length, dtype=torch.int64)
        assert_all_close(file(input_ids=ids, attention_mask=ones), expected(model, input_ids=ids))


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_many_steps_from_state_to_state(options, tmp_path):
    model = small_model(**options)
    export_onnx_step(model, tmp_path / "step.onnx")
    file = File(tmp_path / "step.onnx")
    width = 32 if model.config.complex_state else 16
    assert (
        not {"Scan", "Loop", "If"} & set(operators(file.proto.graph))
        and len(file.proto.functions) == 0
    )
    assert file.shapes()["input_ids"] == ["batch", 1] and file.shapes()["initial_state.0"] == [
        "batch",
        width,
    ]
    for batch in (1, 3):
        ids = torch.randint(31, (batch, 300))
        zeros = [torch.zeros(batch, width)] * LAYERS
        states = zeros
        logits = []
        without = []
        for token in ids.T:
            without.append(file(input_ids=token[:, None], states=zeros)[0])
            step, states = file(input_ids=token[:, None], states=states)
            logits.append(step)
        wanted = expected(model, input_ids=ids)
        assert_all_close((torch.cat(logits, 1), states), wanted)
        assert (
            error(torch.cat(without, 1), wanted[0]) > 100 * RELATIVE[torch.float32]
        )  # states do matter


@pytest.mark.slow
def test_a_prompt_and_steps_write_what_generate_writes(trained, rules, tmp_path):
    export_onnx(trained, tmp_path / "model.onnx", attention_mask=True)
    export_onnx_step(trained, tmp_path / "step.onnx")
    whole = File(tmp_path / "model.onnx")
    step = File(tmp_path / "step.onnx")
    ids = rules.sample(4, 9, torch.Generator().manual_seed(5))
    mask = torch.ones_like(ids)
    mask[0, :4] = mask[1, :1] = 0
    ids = torch.where(mask.bool(), ids, rules.pad)
    logits, states = whole(input_ids=ids, attention_mask=mask)
    written = []
    for _ in range(20):
        written.append(logits[:, -1:].argmax(-1))
        logits, states = step(input_ids=written[-1], states=states)
    wanted = trained.generate(ids, attention_mask=mask, max_new_tokens=20, do_sample=False)
    assert torch.equal(torch.cat(written, 1), wanted[:, 9:])


@pytest.mark.slow
def test_large_weights_go_into_a_second_file(tmp_path, monkeypatch):
    """As those of more than 1.5 GiB do."""
    monkeypatch.setattr("torch.onnx._internal.exporter._onnx_program._LARGE_MODEL_THRESHOLD", 0)
    model = small_model()
    export_onnx_step(model, tmp_path / "step.onnx")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["step.onnx", "step.onnx.data"]
    token = torch.tensor([[5]])
    states = [torch.randn(1, 32) for _ in range(LAYERS)]
    wanted = expected(
        model, input_ids=token, past_key_values=HGRNCache(tuple((state,) for state in states))
    )
    assert_all_close(File(tmp_path / "step.onnx")(input_ids=token, states=states), wanted)
    (tmp_path / "step.onnx").unlink()
    with pytest.raises(UserError, match=r"step.onnx.data exists and is not overwritten"):
        export_onnx_step(model, tmp_path / "step.onnx")


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def fail(path):
        path.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(torch.onnx, "export", lambda *_, **options: SimpleNamespace(save=fail))
    with pytest.raises(UserError, match="step.onnx cannot be written: no space left"):
        export_onnx_step(small_model(), tmp_path / "step.onnx")
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("export", [export_onnx, export_onnx_step], ids=lambda f: f.__name__)
def test_what_cannot_be_exported_is_named(export, tmp_path, monkeypatch):
    path = tmp_path / "model.onnx"
    model = small_model()
    with pytest.raises(TypeError, match="model must be an HGRNForCausalLM, got HGRNModel"):
        export(HGRNModel(model.config).eval(), path)
    cases = [
        (small_model().train(), path, r"in training mode.*call model.eval\(\)"),
        (
            small_model().bfloat16(),
            path,
            r"embed_tokens.weight is torch.bfloat16 on cpu.*model.float\(\).cpu\(\)",
        ),
        (small_model().double(), path, "embed_tokens.weight is torch.float64"),
        (
            quantize_int8(small_model()),
            path,
            "blocks.0.mixer.in_proj has 8-bit weights.*before quantize_int8",
        ),
        (model, tmp_path / "none" / "model.onnx", "the folder .*none does not exist"),
    ]
    for wrong, where, message in cases:
        with pytest.raises(UserError, match=message):
            export(wrong, where)
    assert not path.exists()
    path.write_text("mine")
    with pytest.raises(
        UserError,
        match="model.onnx exists and is not overwritten; remove it, or choose another name",
    ):
        export(model, path)
    assert path.read_text() == "mine"
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(
        ImportError, match=r"needs the package onnxscript; pip install onnx onnxscript onnxruntime"
    ):
        export(model, tmp_path / "other.onnx")


@pytest.mark.slow
def test_the_page_about_export_keeps_its_word(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    snippets = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs" / "export.md").read_text(), re.DOTALL
    )
    assert len(snippets) == 3
    for number, snippet in enumerate(snippets):
        exec(compile(snippet, f"docs/export.md, snippet {number + 1}", "exec"), {})
