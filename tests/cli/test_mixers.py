"""The example of docs/mixers.md: trained, evaluated, generated from, exported; or refused."""

import json
import re
import sys

import pytest
import torch

from hgrn.cli import main
from hgrn.models import HGRNForCausalLM
from hgrn.models.export import export_onnx
from hgrn.modules import mixers
from tests.cli.conftest import TINY
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "mixers.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
(EXAMPLE,) = [block for block in BLOCKS if "@register_mixer" in block]
IMPORT = ["--import", "my_mixers"]
MIXER = ["--model.mixer", "tanh-input-gate"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The current folder, with the example in it; nothing is registered before or after."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mixers, "_registered", {})
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "my_mixers.py").write_text(EXAMPLE)
    sys.modules.pop("my_mixers", None)
    yield tmp_path
    sys.modules.pop("my_mixers", None)


def forget(monkeypatch):
    """As in a new process."""
    monkeypatch.setattr(mixers, "_registered", {})
    sys.modules.pop("my_mixers", None)


def test_the_example_is_short():
    assert len(EXAMPLE.splitlines()) <= 40


@pytest.mark.parametrize("block", [b for b in BLOCKS if "my_mixers" not in b and b != EXAMPLE])
def test_the_other_blocks_run(block):
    exec(compile(block, "docs/mixers.md", "exec"), {})


def test_the_example_end_to_end(here, text, monkeypatch, capsys, fails):
    train = ["train", "lm/text", "--data.files", str(text), "--out", "tanh", *TINY]
    assert "'tanh-input-gate'; a mixer of your own must be registered" in fails(*train, *MIXER)
    assert main([*train, *IMPORT, *MIXER]) == 0
    hint = capsys.readouterr().out.splitlines()[-1]
    assert hint == f"measure it with: hgrn eval tanh {' '.join(IMPORT)}"
    saved = next((here / "tanh" / "checkpoints").glob("*/config.json"))
    assert json.loads(saved.read_text())["mixer_record"]["class"] == "my_mixers.TanhHGRU"
    assert main(["eval", "tanh", *IMPORT]) == 0
    assert "test bits per byte: " in capsys.readouterr().out
    assert main(["generate", "tanh", "--prompt", "Once", "--max-new-tokens", "8", *IMPORT]) == 0

    # The numbers are those of the class, and its graph needs no class.
    model = HGRNForCausalLM.from_pretrained(saved.parent).eval()
    assert type(model.model.stack.blocks[0].mixer).__name__ == "TanhHGRU"
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (the extra onnx)")
    import onnxruntime

    export_onnx(model, here / "tanh.onnx")
    ids = torch.arange(12)[None]
    found = onnxruntime.InferenceSession(here / "tanh.onnx").run(None, {"input_ids": ids.numpy()})
    torch.testing.assert_close(
        torch.from_numpy(found[0]), model(ids).logits.detach(), rtol=1e-4, atol=1e-5
    )

    # Without the import, the name is unknown; with another class under it, the checkpoint says so.
    forget(monkeypatch)
    capsys.readouterr()
    assert "must be one of hgru, hgrn2, got 'tanh-input-gate'" in fails("eval", "tanh")
    other = EXAMPLE.replace("class TanhHGRU", "class Other")
    (here / "others.py").write_text(other)
    message = fails("eval", "tanh", "--import", "others")
    assert "is my_mixers.TanhHGRU in the checkpoint, but others.Other here" in message
    assert "other options" not in message


def test_a_changed_default_is_another_model(here, text, monkeypatch, fails):
    options = EXAMPLE.replace("dim, **options", "dim, *, sharpness=1.0, **options", 1)
    (here / "my_mixers.py").write_text(options)
    arguments = ["train", "lm/text", "--data.files", str(text), "--out", "tanh", *TINY]
    assert main([*arguments, *IMPORT, *MIXER]) == 0
    forget(monkeypatch)
    (here / "my_mixers.py").write_text(options.replace("sharpness=1.0", "sharpness=20.0"))
    message = fails("eval", "tanh", *IMPORT)
    assert "has other options, or other defaults of them, than my_mixers.TanhHGRU has" in message


def test_a_module_that_is_not_there(here, fails):
    message = fails("eval", "tanh", "--import", "my_mixer")
    assert "--import my_mixer: there is no module 'my_mixer' in the current folder" in message
    (here / "broken.py").write_text("import not_there_at_all\n")
    with pytest.raises(ModuleNotFoundError, match="not_there_at_all"):
        main(["eval", "tanh", "--import", "broken"])
