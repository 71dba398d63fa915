"""The records of published layouts: each is all that a layout needs; files are read once."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hgrn.cli import main
from hgrn.models import HGRNConfig, HGRNForCausalLM
from hgrn.models.published import LAYOUTS, ConversionError, files
from hgrn.models.published.convert import convert_checkpoint
from hgrn.models.published.layouts import families, layout_of_config, layout_of_names, variant_of
from hgrn.models.published.record import Layout, layer_in, name_in_layer

WHOLE_MODELS = [name for name, layout in LAYOUTS.items() if layout.has]


def names_of(layout: Layout) -> list[str]:
    """The names of the tensors of a model with three layers."""
    return [name_in_layer(line.published, number) for line in layout.lines for number in range(3)]


@pytest.mark.parametrize("name", WHOLE_MODELS)
def test_a_layout_is_recognised_by_its_own_names(name):
    assert layout_of_names(names_of(LAYOUTS[name]), "somewhere") is LAYOUTS[name]


@pytest.mark.parametrize("name", LAYOUTS)
def test_names_go_there_and_back(name):
    layout = LAYOUTS[name]
    for published in names_of(layout):
        found = layout.line_of_published(published)
        assert found is not None
        line, number = found
        assert name_in_layer(line.published, number) == published
        if line.ours is not None:
            assert (line, number) in layout.lines_of_ours(name_in_layer(line.ours, number))


@pytest.mark.parametrize(
    "template, name, number",
    [
        ("layers.{n}.a", "layers.12.a", 12),
        ("layers.{n}.a", "layers.x.a", None),
        ("layers.{2n}.a", "layers.6.a", 3),
        ("layers.{2n}.a", "layers.7.a", None),
        ("layers.{2n+1}.a", "layers.7.a", 3),
        ("layers.{2n+1}.a", "layers.6.a", None),
        ("norm", "norm", 0),
        ("norm", "norm.weight", None),
        (None, "norm", None),
    ],
)
def test_numbers_of_layers(template, name, number):
    assert layer_in(template, name) == number


def test_single_layers_are_never_recognised():
    with pytest.raises(ConversionError, match="none that is known for whole models"):
        layout_of_names(names_of(LAYOUTS["hgru"]), "somewhere")


def test_the_command_and_its_page_name_every_family(capsys):
    with pytest.raises(SystemExit):
        main(["convert", "--help"])
    help_text = capsys.readouterr().out
    assert all(f"({family})" in help_text for family in families())
    page = (Path(__file__).parents[2] / "docs" / "checkpoints.md").read_text()
    assert all(f"| `{family}` |" in page for family in families())


def test_a_family_that_does_not_exist(tmp_path):
    HGRNForCausalLM(HGRNConfig(vocab_size=5, hidden_size=4, num_hidden_layers=1)).save_pretrained(
        tmp_path / "ours"
    )
    message = f"--to must be one of {', '.join(families())}, got 'gla'"
    with pytest.raises(ConversionError, match=message):
        variant_of("gla", HGRNConfig())
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(tmp_path / "ours", tmp_path / "out", "gla")
    assert not (tmp_path / "out").exists()


def test_a_new_layout_is_one_record(tmp_path, monkeypatch):
    """Under new names, with a config.json of its own; there, loaded directly, and back."""
    known = LAYOUTS["opennlplab"]
    assert known.config_file is not None
    lines = tuple(
        line._replace(published=line.published.replace("model.", "mine.")) for line in known.lines
    )
    config_file = replace(
        known.config_file, marks=("my_width",), renamed={"my_width": "hidden_size"}
    )
    record = replace(
        known,
        name="mine",
        family="",
        lines=lines,
        has=(r"mine\.layers\.",),
        config_file=config_file,
    )
    monkeypatch.setitem(LAYOUTS, "mine", record)
    assert layout_of_config({"my_width": 3}) is record

    torch.manual_seed(0)
    model = HGRNForCausalLM(HGRNConfig(vocab_size=11, hidden_size=8, num_hidden_layers=2)).eval()
    model.save_pretrained(tmp_path / "ours")
    convert_checkpoint(tmp_path / "ours", tmp_path / "theirs", "mine")
    config = json.loads((tmp_path / "theirs" / "config.json").read_text())
    assert config["my_width"] == 8 and "hidden_size" not in config
    ids = torch.arange(6)[None]
    loaded = HGRNForCausalLM.from_pretrained(tmp_path / "theirs")
    assert torch.equal(loaded(ids).logits, model(ids).logits)

    printed = convert_checkpoint(tmp_path / "theirs", tmp_path / "again")
    assert "layout mine" in printed[0]
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("ours", "again"))
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_a_file_is_read_once(suffix, tmp_path, monkeypatch):
    model = HGRNForCausalLM(HGRNConfig(vocab_size=11, hidden_size=8, num_hidden_layers=2))
    model.save_pretrained(tmp_path / "ours")
    convert_checkpoint(tmp_path / "ours", tmp_path / "theirs", "opennlplab")
    path = tmp_path / f"theirs.{suffix}"
    tensors = load_file(tmp_path / "theirs" / "model.safetensors")
    if suffix == "safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path)

    read = []
    content = files.TensorFile._read
    monkeypatch.setattr(
        files.TensorFile, "_read", lambda self: read.append(self.path) or content(self)
    )
    convert_checkpoint(path, tmp_path / "again")
    assert read == [str(path)]


def test_the_names_of_our_own_file_are_seen_without_reading_it(tmp_path, monkeypatch):
    model = HGRNForCausalLM(HGRNConfig(vocab_size=11, hidden_size=8, num_hidden_layers=2))
    model.save_pretrained(tmp_path)
    monkeypatch.setattr(files.TensorFile, "_read", lambda self: pytest.fail("read"))
    path = tmp_path / "model.safetensors"
    assert files.PublishedCheckpoint.find(path, {}) is None
