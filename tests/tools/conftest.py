"""A byte-level model that knows one sentence by heart, and its checkpoint folder.

The tests in this folder run other people's programs on it.
"""

from pathlib import Path

import pytest
import torch

from hgrn.data.tokenizer import (
    BYTE_BOS,
    BYTE_EOS,
    BYTE_PAD,
    BYTE_VOCAB_SIZE,
    byte_tokenizer,
    bytes_to_ids,
)
from hgrn.models import HGRNConfig, HGRNForCausalLM

# Characters of one to four bytes, and a new line, at which streamers begin afresh.
SENTENCE = "Grüße aus 東京 \N{SLIGHTLY SMILING FACE}, naïve café - 7 €.\n"
CONFIG = dict(
    vocab_size=BYTE_VOCAB_SIZE,
    hidden_size=32,
    num_hidden_layers=2,
    bos_token_id=BYTE_BOS,
    eos_token_id=BYTE_EOS,
    pad_token_id=BYTE_PAD,
)


@pytest.fixture
def untrained() -> HGRNForCausalLM:
    torch.manual_seed(0)
    return HGRNForCausalLM(HGRNConfig(**CONFIG)).eval()


@pytest.fixture(scope="package")
def sentence() -> torch.Tensor:
    """Ids of `SENTENCE`, `[1, T]`."""
    return torch.from_numpy(bytes_to_ids(SENTENCE.encode()).astype("int64"))[None]


@pytest.fixture(scope="package")
def trained(sentence) -> HGRNForCausalLM:
    """Says `SENTENCE` again and again."""
    torch.manual_seed(0)
    model = HGRNForCausalLM(HGRNConfig(**CONFIG)).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    twice = sentence.repeat(1, 2)
    for _ in range(120):
        loss = model(twice, labels=twice).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    said = model.generate(
        sentence[:, :1], max_new_tokens=sentence.shape[1] * 2 - 1, do_sample=False
    )
    assert torch.equal(said, twice), f"the fixture did not learn its sentence: loss {loss:.3f}"
    return model


@pytest.fixture(scope="package")
def folder(trained, tmp_path_factory) -> Path:
    """The trained model and the byte tokenizer, saved together."""
    path = tmp_path_factory.mktemp("checkpoint") / "saved"
    trained.save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return path
