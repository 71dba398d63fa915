"""Packed documents, as collators make them: each is computed as if it were alone."""

import pytest
import torch
from transformers import DataCollatorWithFlattening

from hgrn.models import HGRNConfig, HGRNForCausalLM, HGRNForSequenceClassification, HGRNModel
from hgrn.models.documents import boundaries
from tests.tolerances import assert_close

DOCUMENTS = [[1, 2, 3], [4, 5], [6], [7, 8, 9, 10]]
EVERY_WAY = dict(return_flash_attn_kwargs=True, return_seq_idx=True)


def starts(mask=None, rows=1, length=10, **told) -> list[int] | None:
    found = boundaries(
        torch.zeros(rows, length), None if mask is None else torch.tensor(mask).bool(), **told
    )
    return None if found is None else found.tolist()


@pytest.mark.parametrize(
    "options, names",
    [
        (dict(), {"position_ids"}),
        (dict(position_ids_start=2), {"position_ids"}),
        (dict(return_position_ids=False, return_seq_idx=True), {"seq_idx"}),
        (
            dict(return_position_ids=False, return_flash_attn_kwargs=True),
            {"cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"},
        ),
        (
            EVERY_WAY,
            {
                "position_ids",
                "seq_idx",
                "cu_seq_lens_q",
                "cu_seq_lens_k",
                "max_length_q",
                "max_length_k",
            },
        ),
    ],
    ids=["position_ids", "from 2", "seq_idx", "flash attention", "all"],
)
def test_a_flattened_batch_is_each_document_alone(options, names, tiny):
    batch = DataCollatorWithFlattening(**options)(
        [{"input_ids": document} for document in DOCUMENTS]
    )
    assert batch.keys() - {"input_ids", "labels"} == names
    packed = tiny(**batch, num_items_in_batch=1)
    alone = [
        tiny(torch.tensor([document]), labels=torch.tensor([document]), num_items_in_batch=1)
        for document in DOCUMENTS
    ]
    assert_close(packed.logits, torch.cat([output.logits for output in alone], dim=1))
    assert_close(packed.loss, sum(output.loss for output in alone if output.logits.shape[1] > 1))
    assert packed.past_key_values.batch_size == len(DOCUMENTS)


@pytest.mark.parametrize("told", ["position_ids", "seq_idx"])
def test_documents_in_several_padded_rows(told, tiny):
    """Padding on the left of one row and on the right of the other; its ids may be anything."""
    ids = torch.tensor([[0, 0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 1, 0]])
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 0]])
    numbers = dict(
        position_ids=torch.tensor([[0, 0, 0, 1, 2, 0, 1], [0, 0, 1, 2, 3, 4, 0]]),
        seq_idx=torch.tensor([[-1, -1, 0, 0, 0, 1, 1], [0, 1, 1, 1, 1, 1, -1]]),
    )
    labels = ids.masked_fill(mask == 0, -100)
    labels[0, 2] = -100  # or padding would be scored on it, as in every model of transformers
    output = tiny(
        ids,
        attention_mask=mask,
        labels=labels,
        num_items_in_batch=1,
        output_hidden_states=True,
        **{told: numbers[told]},
    )
    pieces = [(0, 2, 5), (0, 5, 7), (1, 0, 1), (1, 1, 6)]
    loss = 0
    for row, start, stop in pieces:
        document = ids[row : row + 1, start:stop]
        alone = tiny(document, labels=document, num_items_in_batch=1, output_hidden_states=True)
        assert_close(output.logits[row, start:stop], alone.logits[0])
        for found, expected in zip(output.hidden_states, alone.hidden_states, strict=True):
            assert_close(found[row, start:stop], expected[0])
        loss += alone.loss if stop - start > 1 else 0
    assert_close(output.loss, loss)


def test_gradients_are_those_of_each_document_alone(tiny):
    batch = DataCollatorWithFlattening()([{"input_ids": document} for document in DOCUMENTS])
    tiny(**batch, num_items_in_batch=1).loss.backward()
    found = [parameter.grad.clone() for parameter in tiny.parameters()]
    tiny.zero_grad()
    for document in (torch.tensor([document]) for document in DOCUMENTS if len(document) > 1):
        tiny(document, labels=document, num_items_in_batch=1).loss.backward()
    for gradient, parameter in zip(found, tiny.parameters(), strict=True):
        assert_close(gradient, parameter.grad)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_classification_has_a_row_for_each_document(bidirectional):
    torch.manual_seed(0)
    config = HGRNConfig(
        vocab_size=11,
        hidden_size=8,
        num_hidden_layers=2,
        bidirectional=bidirectional,
        sinusoidal_positions=True,
    )
    model = HGRNForSequenceClassification(config).double().eval()
    batch = DataCollatorWithFlattening(**EVERY_WAY)(
        [{"input_ids": document} for document in DOCUMENTS]
    )
    del batch["labels"]
    expected = torch.cat([model(torch.tensor([document])).logits for document in DOCUMENTS])
    assert_close(model(**batch).logits, expected)
    assert_close(model(batch["input_ids"], position_ids=batch["position_ids"]).logits, expected)


@pytest.mark.parametrize(
    "positions, mask",
    [
        ([[0, 1, 2, 3, 4]], None),
        ([[7, 8, 9, 10, 11]], None),
        (
            [[0, 0, 0, 1, 2]],
            [[0, 0, 1, 1, 1]],
        ),  # as generate numbers prompts that are padded on the left
        ([[1, 1, 0, 1, 2]], [[0, 0, 1, 1, 1]]),
        ([[0, 1, 2, 3, 4]], [[0, 0, 1, 1, 1]]),
        ([[0, 1, 2, 0, 0]], [[1, 1, 1, 0, 0]]),
        ([[0, 1, 0, 2, 3]], [[1, 1, 0, 1, 1]]),  # padding inside, which is not counted
        ([[0, 1, 2, 3, 4]], [[1, 1, 0, 1, 1]]),  # and counted
    ],
)
def test_positions_that_count_are_one_document(positions, mask):
    assert starts(mask, length=5, position_ids=torch.tensor(positions)) is None


def test_positions_that_restart_behind_padding_are_documents():
    restart = torch.tensor([[0, 1, 2, 0, 1]])
    assert starts(length=5, position_ids=restart) == [0, 3, 5]
    assert starts([[1, 1, 1, 0, 1]], length=5, position_ids=restart) == [
        0,
        4,
        5,
    ]  # the first of the second is padding
    assert starts([[1, 1, 0, 1, 1]], length=5, position_ids=torch.tensor([[0, 1, 0, 0, 1]])) == [
        0,
        3,
        5,
    ]
    assert starts(rows=2, length=3, position_ids=torch.tensor([[0, 1, 0]])) == [
        0,
        2,
        3,
        5,
        6,
    ]  # one row for all
    assert starts(length=1, position_ids=torch.tensor([[9]])) is None


def test_generation_takes_positions_that_count_and_makes_none(tiny):
    ids = torch.randint(11, (2, 5))
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    options = dict(attention_mask=mask, max_new_tokens=4, do_sample=False, pad_token_id=0)
    expected = tiny.generate(ids, **options)
    assert torch.equal(
        tiny.generate(ids, position_ids=(mask.cumsum(1) - 1).clamp(min=0), **options), expected
    )
    with pytest.raises(
        ValueError,
        match=r"position_ids: generate goes on from the end of each row, .* 3 in 2 row\(s\)",
    ):
        tiny.generate(ids, position_ids=torch.tensor([[0, 1, 2, 3, 4], [0, 1, 0, 1, 2]]), **options)


@pytest.mark.parametrize(
    "error, message, told",
    [
        (
            ValueError,
            "cu_seqlens and cu_seq_lens_q must be the same",
            dict(cu_seqlens=[0, 2, 5], cu_seq_lens_q=[0, 3, 5]),
        ),
        (
            ValueError,
            "cu_seq_lens_q and cu_seq_lens_k must be the same",
            dict(cu_seq_lens_q=[0, 5], cu_seq_lens_k=[0, 2, 5]),
        ),
        (
            ValueError,
            r"position_ids must have shape \[1, 5\] or \[1, 5\], got \(1, 4\)",
            dict(position_ids=[[0, 1, 2, 0]]),
        ),
        (ValueError, "seq_idx must have shape", dict(seq_idx=[0, 0, 0, 1, 1])),
        (
            TypeError,
            "position_ids must hold integers, got torch.float32",
            dict(position_ids=[[0.0, 1, 2, 0, 1]]),
        ),
        (
            TypeError,
            "unexpected keyword argument 'cu_seq_len_q'; did you mean cu_seq_lens_q",
            dict(cu_seq_len_q=[0, 5]),
        ),
        (
            TypeError,
            "unexpected keyword argument 'positions_ids'; did you mean position_ids",
            dict(positions_ids=[[0] * 5]),
        ),
    ],
)
@pytest.mark.parametrize("kind", [HGRNModel, HGRNForCausalLM, HGRNForSequenceClassification])
def test_what_does_not_fit_is_named(kind, error, message, told):
    model = kind(HGRNConfig(vocab_size=11, hidden_size=8, num_hidden_layers=1))
    with pytest.raises(error, match=message):
        model(
            torch.zeros(1, 5, dtype=torch.long),
            **{name: torch.tensor(values) for name, values in told.items()},
        )


def test_states_must_be_as_many_as_documents(tiny):
    cache = tiny(torch.tensor([[1, 2]]), use_cache=True).past_key_values
    with pytest.raises(
        ValueError,
        match=r"make 2 documents of the batch, but past_key_values holds the states of 1 "
        r"sequence\(s\)",
    ):
        tiny(
            torch.tensor([[1, 2, 3]]), position_ids=torch.tensor([[0, 1, 0]]), past_key_values=cache
        )
    counted = tiny(
        torch.tensor([[1, 2, 3]]), position_ids=torch.tensor([[2, 3, 4]]), past_key_values=cache
    ).logits
    assert_close(counted, tiny(torch.tensor([[1, 2, 1, 2, 3]])).logits[:, 2:])
