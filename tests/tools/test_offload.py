"""Weights that lie on a disk until their layer runs.

This is what `device_map` of transformers does where memory is short.
"""

import pytest
import torch
from transformers import AutoModelForCausalLM

from hgrn.models import HGRNConfig, HGRNForCausalLM, Session

pytest.importorskip("accelerate", reason="accelerate is not installed (pip install 'hgrn[peft]')")

OPTIONS = [
    dict(),
    dict(norm_type="rms", complex_state=False, conv_size=4),
    dict(gate_rank=4, gate_position="before_norm"),
]
# What lies on the disk: the blocks and the last norm, or everything.
PLACES = [
    {
        "model.embed_tokens": "cpu",
        "model.dropout": "cpu",
        "model.stack.bounds": "cpu",
        "model.stack.blocks": "disk",
        "model.stack.norm": "disk",
        "lm_head": "cpu",
    },
    {"": "disk"},
]


@pytest.mark.filterwarnings("ignore:Attempting to save a model with offloaded modules:UserWarning")
@pytest.mark.parametrize("places", PLACES, ids=["blocks", "all"])
@pytest.mark.parametrize("options", OPTIONS, ids=["complex", "convolution", "low rank"])
def test_what_lies_on_a_disk_computes_the_same(options, places, tmp_path):
    torch.manual_seed(0)
    config = HGRNConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=3, tie_word_embeddings=False, **options
    )
    model = HGRNForCausalLM(config).eval()
    ids = torch.randint(64, (2, 9))
    model.save_pretrained(tmp_path / "saved")
    loaded = AutoModelForCausalLM.from_pretrained(
        tmp_path / "saved", device_map=places, offload_folder=tmp_path / "disk"
    )
    assert loaded.model.stack.blocks[0].mixer.norm.weight.device.type == "meta"
    with torch.no_grad():
        long = torch.randint(64, (2, 600))  # large enough for the operators
        assert torch.equal(loaded(long).logits, model(long).logits)
        assert torch.equal(
            loaded.generate(ids, max_new_tokens=5), model.generate(ids, max_new_tokens=5)
        )
        if "" not in places:
            assert torch.equal(Session(loaded).read(ids[:1]), Session(model).read(ids[:1]))
    loaded.save_pretrained(tmp_path / "again")
    again = HGRNForCausalLM.from_pretrained(tmp_path / "again")
    assert all(
        torch.equal(found, wanted)
        for found, wanted in zip(again.parameters(), model.parameters(), strict=True)
    )
