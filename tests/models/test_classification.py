"""The classification heads: pooling over true positions, losses, and pairs."""

import pytest
import torch
from torch.nn import functional as F

from hgrn.models import (
    HGRNConfig,
    HGRNForCausalLM,
    HGRNForSequenceClassification,
    HGRNForSequencePairClassification,
    HGRNModel,
)
from hgrn.models.classification import pool
from tests.tolerances import assert_close

LENGTHS = [5, 2, 7]
CU_SEQLENS = torch.tensor([0, 5, 7, 14], dtype=torch.int32)


def make(kind=HGRNForSequenceClassification, **options):
    torch.manual_seed(0)
    model = (
        kind(
            HGRNConfig(
                vocab_size=11, hidden_size=8, num_hidden_layers=2, **{"num_labels": 3, **options}
            )
        )
        .double()
        .eval()
    )
    torch.nn.init.normal_(model.model.stack.bounds.logits)
    for block in model.model.stack.blocks:
        torch.nn.init.normal_(block.mixer.theta)
    return model


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(11, (1, 14), generator=torch.Generator().manual_seed(0))


def padded(rows, side, size=9):
    ids = torch.full((len(rows), size), 9)
    mask = torch.zeros(len(rows), size, dtype=torch.long)
    for n, row in enumerate(rows):
        where = slice(size - len(row), None) if side == "left" else slice(len(row))
        ids[n, where], mask[n, where] = row, 1
    return ids, mask


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_padded_packed_and_alone_are_the_same(pooling, bidirectional, ids):
    model = make(pooling=pooling, bidirectional=bidirectional, shared_theta=not bidirectional)
    rows = ids[0].split(LENGTHS)
    alone = torch.cat([model(row[None]).logits for row in rows])
    assert (alone[0] - alone[1]).abs().min() > 1e-3
    for side in ("left", "right"):
        given, mask = padded(rows, side)
        assert_close(model(given, mask).logits, alone)
        assert_close(model(given, mask.bool()).logits, alone)
        assert not torch.allclose(model(given).logits, alone)
    assert_close(model(ids, cu_seqlens=CU_SEQLENS).logits, alone)
    holes = torch.cat(
        [torch.tensor([4]), ids[0, :5], torch.tensor([3, 3]), ids[0, 5:], torch.tensor([1])]
    )[None]
    mask = torch.ones_like(holes)
    mask[0, [0, 6, 7, -1]] = 0
    assert_close(model(holes, mask, cu_seqlens=torch.tensor([0, 7, 10, 18])).logits, alone)


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_pooling_by_hand(pooling):
    x = torch.randn(3, 6, 4, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 0, 1, 0, 0], [0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 0]]).bool()
    means = [x[0, [0, 1, 3]].mean(0), x[1, 5], torch.zeros(4)]
    expected = torch.stack(means if pooling == "mean" else [x[0, 3], x[1, 5], torch.zeros(4)])
    x[~mask] = torch.nan  # what stands at padding is not looked at
    assert_close(pool(x, pooling, mask), expected)
    packed = x.view(1, 18, 4)
    boundaries = torch.tensor([0, 6, 6, 12, 18])
    expected = torch.stack([expected[0], torch.zeros(4), *expected[1:]])  # and an empty sequence
    assert_close(pool(packed, pooling, mask.view(1, 18), boundaries), expected)


def test_means_of_long_half_precision_sequences_are_exact_and_finite():
    x = torch.full((1, 5000, 2), 100.0, dtype=torch.float16)
    boundaries = torch.tensor([0, 2000, 5000])
    assert torch.equal(pool(x, "mean"), x[:, 0]) and torch.equal(
        pool(x, "mean", None, boundaries), x[0, :2]
    )


def test_pair_features(ids):
    model = make(HGRNForSequencePairClassification)
    first, mask = padded(ids[0].split(LENGTHS), "left")
    second = torch.randint(11, (3, 4), generator=torch.Generator().manual_seed(1))
    logits = model(first, mask, input_ids_b=second).logits
    a = pool(model.model(first, mask)[0], "mean", mask.bool())
    b = model.model(second)[0].mean(1)
    wide, _, narrow = model.classifier
    assert wide.weight.shape == (8, 32)
    features = torch.cat([a, b, a - b, a * b], 1)
    assert_close(
        logits,
        F.linear(F.gelu(F.linear(features, wide.weight, wide.bias)), narrow.weight, narrow.bias),
    )

    other, mask_b = padded(second, "right", 6)
    assert_close(model(first, mask, other, mask_b).logits, logits)
    embeds = model.model.embed_tokens(second)
    packed = dict(
        input_ids=ids,
        cu_seqlens=CU_SEQLENS,
        input_ids_b=second.view(1, 12),
        cu_seqlens_b=torch.tensor([0, 4, 8, 12]),
    )
    assert_close(model(**packed).logits, logits)
    output = model(first, mask, inputs_embeds_b=embeds, output_hidden_states=True)
    assert_close(output.logits, logits)
    assert [x.shape for x in output.hidden_states] == [(3, 9, 8)] * 3
    assert [x.shape for x in output.hidden_states_b] == [(3, 4, 8)] * 3


PROBLEMS = {
    "classes": (
        3,
        None,
        torch.tensor([2, 0, 1]),
        lambda logits, labels: F.cross_entropy(logits, labels),
    ),
    "int32 classes": (
        3,
        None,
        torch.tensor([2, 0, 1]).int(),
        lambda logits, labels: F.cross_entropy(logits, labels.long()),
    ),
    "some not scored": (
        3,
        None,
        torch.tensor([2, -100, 1]),
        lambda logits, labels: F.cross_entropy(logits[::2], labels[::2]),
    ),
    "several labels": (
        3,
        None,
        torch.tensor([[1.0, 0, 1], [0, 0, 0], [1, 1, 0]]).double(),
        F.binary_cross_entropy_with_logits,
    ),
    "several labels as integers": (
        3,
        "multi_label_classification",
        torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 0]]),
        lambda logits, labels: F.binary_cross_entropy_with_logits(logits, labels.double()),
    ),
    "one value": (
        1,
        None,
        torch.tensor([0.5, -2, 3]),
        lambda logits, labels: F.mse_loss(logits[:, 0], labels.double()),
    ),
    "one whole value": (
        1,
        None,
        torch.tensor([4, -2, 3]),
        lambda logits, labels: F.mse_loss(logits[:, 0], labels.double()),
    ),
    "a column of values": (
        1,
        "regression",
        torch.tensor([[0.5], [-2], [3]]),
        lambda logits, labels: F.mse_loss(logits, labels.double()),
    ),
    "several values": (
        3,
        "regression",
        torch.arange(9).view(3, 3) / 9,
        lambda logits, labels: F.mse_loss(logits, labels.double()),
    ),
}


@pytest.mark.parametrize("kind", [HGRNForSequenceClassification, HGRNForSequencePairClassification])
@pytest.mark.parametrize("problem", PROBLEMS)
def test_losses(problem, kind, ids):
    num_labels, problem_type, labels, loss = PROBLEMS[problem]
    model = make(kind, num_labels=num_labels, problem_type=problem_type)
    given, mask = padded(ids[0].split(LENGTHS), "right")
    arguments = dict(input_ids=given, attention_mask=mask, labels=labels)
    if kind is HGRNForSequencePairClassification:
        arguments |= dict(input_ids_b=given.flip(0))
    output = model(**arguments)
    expected = loss(output.logits, labels)
    assert_close(output.loss, expected)
    output.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())

    # num_items_in_batch is what Trainer counts over the batches of one step: labels that are not
    # -100.
    counted = (labels != -100).sum()
    assert_close(model(**arguments, num_items_in_batch=4 * counted).loss, expected / 4)
    assert_close(model(**arguments, num_items_in_batch=int(4 * counted)).loss, expected / 4)


@pytest.mark.parametrize(
    "num_labels, problem_type, labels, message",
    [
        (
            3,
            None,
            torch.zeros(2).long(),
            r"labels must have shape \[3\] .integers, one class each.*got \(2,\) of torch.int64",
        ),
        (
            3,
            None,
            torch.zeros(3),
            r"labels must have shape \[3, 3\] .numbers.*got \(3,\) of torch.float32; set "
            r"problem_type",
        ),
        (3, None, torch.zeros(3, 3).long(), r"labels must have shape \[3\]"),
        (
            3,
            None,
            torch.tensor([0, 3, 1]),
            r"labels must be class numbers from 0 to 2 .num_labels=3., or -100.*got 3; "
            r"correct them",
        ),
        (3, None, torch.tensor([0, -100, -1]), r"labels must be class numbers from 0 to 2.*got -1"),
        (
            1,
            None,
            torch.zeros(2),
            r"labels must have shape \[3\] .numbers. with problem_type=None and num_labels=1",
        ),
    ],
)
def test_labels_that_do_not_fit_are_named(num_labels, problem_type, labels, message, ids):
    given, mask = padded(ids[0].split(LENGTHS), "right")
    with pytest.raises(ValueError, match=message):
        make(num_labels=num_labels, problem_type=problem_type)(given, mask, labels=labels)


IDS = torch.zeros(2, 3, dtype=torch.long)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(input_ids=IDS), "exactly one of input_ids_b and inputs_embeds_b"),
        (dict(input_ids_b=IDS), "exactly one of input_ids and inputs_embeds"),
        (dict(input_ids=IDS, input_ids_b=IDS[:1]), "as many second sequences as first, 2; got 1"),
        (
            dict(input_ids=IDS, input_ids_b=IDS, attention_mask_b=IDS[:, :2]),
            r"ending in _b.*attention_mask must have .*\[2, 3\]",
        ),
        (
            dict(input_ids=IDS, input_ids_b=IDS, use_cache=True),
            "use_cache=True: classification reads whole sequences",
        ),
        (dict(input_ids=IDS, input_ids_b=IDS, output_attentions=True), "no attention weights"),
    ],
)
def test_what_does_not_go_together_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        make(HGRNForSequencePairClassification)(**arguments)


def test_a_bidirectional_model_reads_from_both_ends(ids):
    model = make(bidirectional=True, shared_theta=False).model
    assert model.stack.blocks[0].mixer.theta.shape == (2, 8)
    changed = ids.clone()
    changed[0, -1] = (ids[0, -1] + 1) % 11
    assert (model(changed)[0] - model(ids)[0])[0, 0].abs().max() > 1e-6
    assert torch.equal(make().model(changed)[0][0, 0], make().model(ids)[0][0, 0])


def test_a_bidirectional_model_keeps_no_state(ids):
    model = make(bidirectional=True).model
    assert model(ids).past_key_values is None
    cache = make().model(ids).past_key_values
    for arguments in (
        dict(use_cache=True),
        dict(past_key_values=cache),
        dict(past_key_values=cache, use_cache=False),
    ):
        with pytest.raises(
            ValueError,
            match="bidirectional model reads whole sequences and keeps no state.*past_key_values",
        ):
            model(ids, **arguments)
    with pytest.raises(ValueError, match="HGRNForCausalLM.*needs bidirectional=False.*got True"):
        HGRNForCausalLM(
            HGRNConfig(vocab_size=5, hidden_size=4, num_hidden_layers=1, bidirectional=True)
        )


def test_wrong_options_are_named_together():
    with pytest.raises(ValueError) as error:
        HGRNConfig(shared_theta=False, pooling="max", bidirectional="yes")
    assert all(f"\n  {name}: " in str(error.value) for name in ("pooling", "bidirectional"))
    for options in (dict(), dict(bidirectional=True, complex_state=False)):
        with pytest.raises(
            ValueError,
            match="shared_theta: must be True unless bidirectional and complex_state are",
        ):
            HGRNConfig(shared_theta=False, **options)


def test_another_head_starts_from_the_backbone(tmp_path, capfd):
    language_model = HGRNForCausalLM(HGRNConfig(vocab_size=11, hidden_size=8, num_hidden_layers=2))
    language_model.save_pretrained(tmp_path / "lm")
    model, report = HGRNForSequenceClassification.from_pretrained(
        tmp_path / "lm", num_labels=4, output_loading_info=True
    )
    assert (
        report["missing_keys"] == {"score.weight", "score.bias"} and model.score.out_features == 4
    )
    for name, parameter in HGRNModel.from_pretrained(tmp_path / "lm").named_parameters():
        assert torch.equal(model.model.get_parameter(name), parameter)
    # A head for pairs has other names, so it is never taken for one of single sequences.
    make(HGRNForSequencePairClassification).float().save_pretrained(tmp_path / "pair")
    _, report = HGRNForSequenceClassification.from_pretrained(
        tmp_path / "pair", output_loading_info=True
    )
    assert report["missing_keys"] == {"score.weight", "score.bias"}


# ------------------------------------------------------------------------------------------------
# What the authors' Long Range Arena models do otherwise


def test_padding_that_the_layers_see_is_left_out_of_the_pooling_only(ids):
    options = dict(bidirectional=True, norm_type="layer")
    seen = make(**options, mask_padding=False)
    skipped = make(**options)
    given, mask = padded(ids[0].split(LENGTHS), "right")
    expected = seen.score(pool(seen.model(given)[0], "mean", mask.bool()))
    assert_close(seen(given, mask).logits, expected)
    assert (skipped(given, mask).logits - expected).abs().max() > 1e-4
    longer, longer_mask = padded(ids[0].split(LENGTHS), "right", 12)
    assert (seen(longer, longer_mask).logits - expected).abs().max() > 1e-4
    assert_close(skipped(longer, longer_mask).logits, skipped(given, mask).logits)


@pytest.mark.parametrize("kind", [HGRNForSequenceClassification, HGRNForSequencePairClassification])
def test_numbers_of_positions_do_not_count_padding(kind, ids):
    model = make(kind, sinusoidal_positions=True)
    assert (model.model(ids)[0] - make(kind).model(ids)[0]).abs().max() > 1e-3
    rows = ids[0].split(LENGTHS)
    alone = torch.cat([model.model(row[None])[0][0] for row in rows])
    for side in ("left", "right"):
        given, mask = padded(rows, side)
        assert_close(model.model(given, mask)[0][mask.bool()], alone)
    assert_close(model.model(ids, cu_seqlens=CU_SEQLENS)[0][0], alone)
    with pytest.raises(
        ValueError,
        match="a model with sinusoidal_positions reads whole sequences and keeps no state",
    ):
        model.model(ids, use_cache=True)


def test_pairs_are_one_batch_for_batch_norms(ids):
    model = make(HGRNForSequencePairClassification, bidirectional=True, norm_type="batch").train()
    first, mask = padded(ids[0].split(LENGTHS), "right")
    second = first.roll(1, 0)
    mask_b = mask.roll(1, 0)
    both = model.model(torch.cat([first, second]), torch.cat([mask, mask_b]))[0]
    statistics = {name: tensor.clone() for name, tensor in model.named_buffers()}
    a, b = pool(both, "mean", torch.cat([mask, mask_b]).bool()).chunk(2)
    expected = model.classifier(torch.cat([a, b, a - b, a * b], dim=1))

    fresh = make(HGRNForSequencePairClassification, bidirectional=True, norm_type="batch").train()
    output = fresh(first, mask, second, mask_b, output_hidden_states=True)
    assert_close(output.logits, expected)
    assert all(torch.equal(tensor, statistics[name]) for name, tensor in fresh.named_buffers())
    assert (
        [x.shape for x in output.hidden_states]
        == [x.shape for x in output.hidden_states_b]
        == [(3, 9, 8)] * 3
    )
    embed = fresh.model.embed_tokens
    fresh.eval()
    logits = fresh(first, mask, inputs_embeds=None, input_ids_b=second).logits
    assert_close(
        fresh(None, mask, inputs_embeds=embed(first), inputs_embeds_b=embed(second)).logits, logits
    )
    for wrong in (dict(input_ids_b=second[:, :4]), dict(inputs_embeds_b=embed(second))):
        with pytest.raises(
            ValueError,
            match=r"one batch: give both as ids or both as embeddings, of one "
            r"shape.*input_ids \(3, 9\)",
        ):
            fresh(first, **wrong)
