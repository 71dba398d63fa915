"""Programs find the models, by the Auto classes or from a folder without hgrn."""

import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import hgrn
from hgrn.models import (
    HGRNConfig,
    HGRNForCausalLM,
    HGRNForSequenceClassification,
    HGRNForSequencePairClassification,
    HGRNModel,
    register,
)

CONFIG = dict(vocab_size=20, hidden_size=8, num_hidden_layers=2, pad_token_id=0)

# A program that knows nothing of hgrn: it loads the folder, compares the logits, generates, and
# saves again.
STRANGER = """
import sys, torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
assert not any(name.split(".")[0] == "hgrn" for name in sys.modules)
source, target = sys.argv[1:]
config = AutoConfig.from_pretrained(source, trust_remote_code=True)
assert config.model_type == "hgrn" and config.hidden_size == 8
model = AutoModelForCausalLM.from_pretrained(source, trust_remote_code=True)
ids = torch.arange(6)[None]
assert torch.equal(model(ids).logits, torch.load(source + "/logits.pt", weights_only=True))
assert model.generate(ids, max_new_tokens=3).shape == (1, 9)
assert type(AutoModel.from_pretrained(source, trust_remote_code=True)).__name__ == "HGRNModel"
model.save_pretrained(target)
"""


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    model = HGRNForCausalLM(HGRNConfig(**CONFIG)).eval()
    model.save_pretrained(tmp_path / "saved")
    torch.save(model(torch.arange(6)[None]).logits.detach(), tmp_path / "saved" / "logits.pt")
    return tmp_path / "saved"


def run(program: str, *arguments, home) -> subprocess.CompletedProcess:
    source = str(Path(hgrn.__file__).parents[1])  # these tests' own, whatever is installed
    environment = {
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "1",
        "PATH": "",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": source,
    }
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_the_auto_classes_know_the_models(folder):
    assert type(AutoConfig.from_pretrained(folder)) is HGRNConfig
    assert type(AutoModel.from_pretrained(folder)) is HGRNModel
    assert type(AutoModelForCausalLM.from_pretrained(folder)) is HGRNForCausalLM
    assert (
        type(AutoModelForSequenceClassification.from_pretrained(folder))
        is HGRNForSequenceClassification
    )


def test_a_stranger_loads_a_saved_folder(folder, tmp_path):
    again = tmp_path / "again"
    result = run(STRANGER, folder, again, home=tmp_path / "home")
    assert result.returncode == 0, result.stderr
    files = {path.name for path in again.iterdir()}
    assert files == {
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "modeling_hgrn.py",
    }
    for name in ("config.json", "modeling_hgrn.py", "model.safetensors"):
        assert (again / name).read_bytes() == (folder / name).read_bytes()


PAIRS = """
import sys, torch
from transformers import AutoModelForSequenceClassification
model = AutoModelForSequenceClassification.from_pretrained(sys.argv[1], trust_remote_code=True)
assert type(model).__name__ == "HGRNForSequencePairClassification"
ids = torch.arange(6)[None]
expected = torch.load(sys.argv[1] + "/logits.pt", weights_only=True)
torch.testing.assert_close(model(ids, input_ids_b=ids.flip(1)).logits, expected)
"""


def test_the_auto_class_finds_a_model_of_pairs(tmp_path):
    torch.manual_seed(0)
    folder = tmp_path / "pairs"
    model = HGRNForSequencePairClassification(HGRNConfig(**CONFIG, num_labels=3)).eval()
    model.save_pretrained(folder)
    ids = torch.arange(6)[None]
    logits = model(ids, input_ids_b=ids.flip(1)).logits.detach()
    torch.save(logits, folder / "logits.pt")
    loaded = AutoModelForSequenceClassification.from_pretrained(folder)
    assert type(loaded) is HGRNForSequencePairClassification
    torch.testing.assert_close(loaded(ids, input_ids_b=ids.flip(1)).logits, logits)
    result = run(PAIRS, folder, home=tmp_path / "home")
    assert result.returncode == 0, result.stderr


def test_another_holder_of_the_name_keeps_it_until_told_otherwise(monkeypatch):
    class OtherConfig(PreTrainedConfig):
        model_type = "hgrn"

    OtherConfig.__module__ = "fla.models.hgrn"
    monkeypatch.setitem(CONFIG_MAPPING._extra_content, "hgrn", OtherConfig)
    with pytest.warns(UserWarning, match=r"held by the package 'fla'.*register\(overwrite=True\)"):
        register()
    assert CONFIG_MAPPING["hgrn"] is OtherConfig
    assert type(AutoModelForCausalLM.from_config(HGRNConfig(**CONFIG))) is HGRNForCausalLM
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        register(overwrite=True)
        register()
    assert CONFIG_MAPPING["hgrn"] is HGRNConfig
