"""The card of a saved model: true, runnable, and never written over once it was edited."""

import re

import pytest
import torch
import yaml

from hgrn.data.tokenizer import byte_tokenizer
from hgrn.models import (
    HGRNConfig,
    HGRNForCausalLM,
    HGRNForSequenceClassification,
    HGRNForSequencePairClassification,
    HGRNModel,
)
from hgrn.models.card import write_card

KINDS = [
    HGRNModel,
    HGRNForCausalLM,
    HGRNForSequenceClassification,
    HGRNForSequencePairClassification,
]


def make(kind, **options):
    return kind(HGRNConfig(vocab_size=259, hidden_size=8, num_hidden_layers=2, **options))


@pytest.mark.parametrize("kind", KINDS)
def test_what_it_says_is_so(kind, tmp_path, capsys):
    model = make(kind, norm_eps=1e-6).to(torch.bfloat16).eval()
    model.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    header = yaml.safe_load(card.split("---")[1])
    assert header["library_name"] == "transformers" and header["tags"] == ["hgrn"]
    assert (
        f"# {kind.__name__}\n" in card
        and f" {sum(p.numel() for p in model.parameters()):,} parameters in bfloat16." in card
    )
    size = sum(
        part.nbytes
        for layer in getattr(model, "model", model)(torch.tensor([[1]])).past_key_values.state
        for part in layer
    )
    assert f" takes {size:,} bytes" in card
    assert "| norm_eps | 1e-06 |" in card and ("| id2label |" in card) == (
        "Classification" in kind.__name__
    )
    assert "Not recorded" in card
    (example,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    names = {}
    exec(example.replace('folder = "."', f"folder = {str(tmp_path)!r}"), names)
    assert type(names["model"]) is kind
    assert kind is not HGRNForCausalLM or capsys.readouterr().out.startswith("Once")


def test_a_card_follows_its_model_until_it_is_edited(tmp_path):
    card = tmp_path / "README.md"
    make(HGRNModel).save_pretrained(tmp_path)
    first = card.read_text()
    model = make(HGRNModel, bidirectional=True)
    model.save_pretrained(tmp_path, is_main_process=False)
    assert card.read_text() == first
    model.save_pretrained(tmp_path)
    write_card(model, tmp_path, {"recipe": "my recipe", "bits per byte": 1.25})
    second = card.read_text()
    assert "- recipe: my recipe\n- bits per byte: 1.25\n" in second and "Not recorded" not in second
    assert "from both ends" in second
    for edited in (second.replace("my recipe", "your recipe"), second + "more\n", "all my own", ""):
        card.write_bytes(edited.encode())
        make(HGRNModel).save_pretrained(tmp_path)
        assert card.read_bytes() == edited.encode()
    card.write_bytes(b"\xff not UTF-8")
    make(HGRNModel).save_pretrained(tmp_path)
    assert card.read_bytes() == b"\xff not UTF-8"
    card.unlink()
    make(HGRNModel).save_pretrained(tmp_path)
    assert card.read_text() == first


def test_labels_may_hold_what_tables_are_made_of(tmp_path):
    make(HGRNForSequenceClassification, id2label={0: "a|b", 1: "{c}"}).save_pretrained(tmp_path)
    assert r"'a\|b', 1: '{c}'" in (tmp_path / "README.md").read_text()
