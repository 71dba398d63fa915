"""HGRNForCausalLM: which positions are scored on what, and how the loss is divided."""

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers.utils.generic import find_labels

from hgrn.models import (
    HGRNForCausalLM,
    HGRNForImageClassification,
    HGRNForSequenceClassification,
    HGRNForSequencePairClassification,
)
from tests.tolerances import assert_close

CLASSIFIERS = [
    HGRNForSequenceClassification,
    HGRNForSequencePairClassification,
    HGRNForImageClassification,
]


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(11, (2, 7), generator=torch.Generator().manual_seed(0))


def test_labels_are_the_next_tokens(tiny, ids):
    output = tiny(ids, labels=ids)
    expected = cross_entropy(output.logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())
    assert_close(output.loss, expected)
    shifted = torch.cat([ids[:, 1:], torch.full((2, 1), -100)], dim=1)
    assert torch.equal(tiny(ids, shift_labels=shifted).loss, output.loss)
    assert tiny(ids).loss is None


def test_the_loss_is_the_sum_over_the_number_given(tiny, ids):
    shifted = ids.clone()
    shifted[0, :3] = -100
    output = tiny(ids, shift_labels=shifted, num_items_in_batch=torch.tensor(50))
    kept = shifted != -100
    expected = cross_entropy(output.logits[kept].float(), shifted[kept], reduction="sum") / 50
    assert_close(output.loss, expected)
    assert_close(tiny(ids, shift_labels=shifted).loss, expected * 50 / kept.sum())


def test_no_label_crosses_a_packed_border(tiny, ids):
    packed = ids.reshape(1, 14)
    cu_seqlens = torch.tensor([0, 5, 5, 6, 14, 14])
    loss = tiny(packed, labels=packed, cu_seqlens=cu_seqlens, num_items_in_batch=1).loss
    documents = [
        document for document in packed.split([5, 0, 1, 8, 0], dim=1) if document.shape[1] > 1
    ]
    expected = sum(tiny(d, labels=d, num_items_in_batch=1).loss for d in documents)
    assert_close(loss, expected)


def test_logits_to_keep(tiny, ids):
    logits = tiny(ids).logits
    assert torch.equal(tiny(ids, logits_to_keep=2).logits, logits[:, -2:])
    assert torch.equal(tiny(ids, logits_to_keep=torch.tensor([0, 3])).logits, logits[:, [0, 3]])


def test_shifted_labels_count_before_labels(tiny, ids):
    shifted = torch.randint(11, ids.shape, generator=torch.Generator().manual_seed(1))
    expected = tiny(ids, shift_labels=shifted).loss
    assert torch.equal(tiny(ids, labels=ids, shift_labels=shifted).loss, expected)
    assert tiny(ids, labels=ids).loss != expected


def test_what_takes_no_decay(tiny):
    names = tiny.no_decay_names()
    parameters = dict(tiny.named_parameters())
    assert names <= parameters.keys()
    assert "model.embed_tokens.weight" in names and "model.stack.bounds.logits" in names
    assert all(name.endswith("_proj.weight") for name in parameters.keys() - names)


@pytest.mark.parametrize("kind", [HGRNForCausalLM, *CLASSIFIERS], ids=lambda kind: kind.__name__)
def test_only_labels_are_labels(kind):
    """Trainer takes every argument with "label" in its name for one that an evaluation needs."""
    assert find_labels(kind) == ["labels"]
