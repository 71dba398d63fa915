"""What transformers promises of every model, for all heads."""

import copy
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from hgrn.models import (
    HGRNConfig,
    HGRNForCausalLM,
    HGRNForImageClassification,
    HGRNForSequenceClassification,
    HGRNForSequencePairClassification,
)
from hgrn.models.published.tensors import named_tensors
from tests.tolerances import assert_close

CONFIG = dict(vocab_size=13, hidden_size=8, num_hidden_layers=2, pad_token_id=12)
PIXELS = dict(patch_size=1, num_channels=1)
LENGTHS = [4, 1, 6]


class Case:
    """A head with a configuration, and how it is called."""

    def __init__(self, kind, **options):
        self.kind = kind
        self.options = options
        self.is_pair = kind is HGRNForSequencePairClassification
        self.is_language_model = kind is HGRNForCausalLM
        self.is_image = kind is HGRNForImageClassification

    def __repr__(self):
        return "-".join([self.kind.__name__.removeprefix("HGRNFor"), *self.options])

    def model(self, **options):
        """Every parameter and statistic drawn, so that none is what a new model has by itself."""
        torch.manual_seed(0)
        model = self.kind(HGRNConfig(**CONFIG, **self.options, **options)).eval()
        with torch.no_grad():
            for tensor in named_tensors(model).values():
                tensor.add_(0.3 * torch.rand_like(tensor) if tensor.is_floating_point() else 3)
        return model

    def inputs(self, ids, mask=None, labels=False, **more):
        """Arguments for these sequences.

        A pair is a sequence and itself backwards, and so are the two rows of an image.
        """
        arguments = dict(input_ids=ids, attention_mask=mask)
        if self.is_image:
            arguments = dict(pixel_values=torch.stack([ids, ids.flip(1)], dim=1)[:, None] / 12)
        elif self.is_pair:
            arguments |= dict(
                input_ids_b=ids.flip(1), attention_mask_b=None if mask is None else mask.flip(1)
            )
        if labels:
            arguments["labels"] = ids if self.is_language_model else torch.arange(len(ids)) % 2
        return arguments | more


CASES = [
    Case(HGRNForCausalLM),
    Case(HGRNForCausalLM, tie_word_embeddings=False, complex_state=False, use_lower_bound=False),
    Case(HGRNForSequenceClassification),
    Case(HGRNForSequenceClassification, bidirectional=True, shared_theta=False, pooling="last"),
    Case(HGRNForSequencePairClassification),
    Case(HGRNForSequencePairClassification, bidirectional=True),
    Case(
        HGRNForSequenceClassification,
        bidirectional=True,
        norm_type="batch",
        sinusoidal_positions=True,
        final_norm="pooled",
    ),
    Case(HGRNForSequencePairClassification, bidirectional=True, norm_type="batch"),
    Case(HGRNForImageClassification, **PIXELS),
    Case(
        HGRNForImageClassification,
        **PIXELS,
        bidirectional=True,
        shared_theta=False,
        final_norm="pooled",
    ),
    Case(
        HGRNForImageClassification,
        **PIXELS,
        bidirectional=True,
        grid=True,
        norm_type="batch",
        sinusoidal_positions=True,
    ),
    Case(
        HGRNForImageClassification, **PIXELS, bidirectional=True, grid=True, use_lower_bound=False
    ),
]


@pytest.fixture(params=CASES, ids=repr)
def case(request) -> Case:
    return request.param


@pytest.fixture(params=[case for case in CASES if not case.is_image], ids=repr)
def text_case(request) -> Case:
    return request.param


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(12, (3, 6), generator=torch.Generator().manual_seed(0))


def assert_same_parameters(found: nn.Module, expected: nn.Module):
    tensors = named_tensors(expected)
    others = named_tensors(found)
    assert list(tensors) == list(others)
    for name, tensor in tensors.items():
        assert others[name].dtype == tensor.dtype and torch.equal(others[name], tensor), name


def is_tied(model) -> bool:
    return model.lm_head.weight is model.model.embed_tokens.weight


def test_saved_and_loaded_it_is_the_same_to_the_bit(case, ids, tmp_path):
    model = case.model()
    model.save_pretrained(tmp_path)
    again, report = case.kind.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert not again.training
    assert_same_parameters(again, model)
    assert torch.equal(again(**case.inputs(ids)).logits, model(**case.inputs(ids)).logits)
    assert again.config.to_diff_dict() == model.config.to_diff_dict()


@pytest.mark.parametrize("size", [20, 13, 7])
def test_resized_embeddings_stay_tied_and_keep_their_rows(size, text_case, ids, tmp_path):
    case = text_case
    model = case.model()
    rows = model.get_input_embeddings().weight.detach().clone()
    with torch.no_grad():
        expected = model(**case.inputs(ids % 7)).logits
    model.config.pad_token_id = None  # it would lie outside of a smaller vocabulary
    model.resize_token_embeddings(size)
    model.save_pretrained(tmp_path)
    again = case.kind.from_pretrained(tmp_path)
    for resized in (model, again):
        assert resized.config.vocab_size == size
        assert resized.get_input_embeddings().weight.shape == (size, 8)
        assert torch.equal(resized.get_input_embeddings().weight[:13], rows[:size])
        logits = resized(**case.inputs(ids % 7)).logits
        if case.is_language_model:
            assert is_tied(resized) == resized.config.tie_word_embeddings
            assert logits.shape[-1] == size
            assert_close(logits[..., :13], expected[..., :size])
        else:
            assert torch.equal(logits, expected)
    assert_same_parameters(again, model)
    model(**case.inputs(ids % 7, labels=True)).loss.backward()
    assert model.get_input_embeddings().weight.grad.any()


def test_made_on_meta_and_loaded(case, ids, tmp_path):
    model = case.model()
    model.save_pretrained(tmp_path)
    with torch.device("meta"):
        empty = case.kind(HGRNConfig.from_pretrained(tmp_path))
    assert all(parameter.is_meta for parameter in empty.parameters())
    loaded = load_file(tmp_path / "model.safetensors")
    empty.load_state_dict(loaded, assign=True, strict=False)
    empty.tie_weights()
    assert torch.equal(empty.eval()(**case.inputs(ids)).logits, model(**case.inputs(ids)).logits)


def test_evaluation_is_the_same_each_time_and_training_drops(case, ids):
    model = case.model(dropout=0.5)
    first, second = (model(**case.inputs(ids)).logits for _ in range(2))
    assert torch.equal(first, second)
    model.train()
    first, second = (model(**case.inputs(ids)).logits for _ in range(2))
    assert not torch.equal(first, second)


def test_what_is_missing_is_made_and_what_was_loaded_stays(case, tmp_path):
    model = case.model()
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    for missing in sorted(tensors):
        rest = {name: tensor for name, tensor in tensors.items() if name != missing}
        save_file(rest, tmp_path / "model.safetensors", metadata={"format": "pt"})
        loaded, report = case.kind.from_pretrained(tmp_path, output_loading_info=True)
        tied = {"lm_head.weight"} if case.is_language_model and is_tied(loaded) else set()
        assert report["missing_keys"] - tied == {missing}
        found = named_tensors(loaded)
        for name in rest:
            assert torch.equal(found[name], tensors[name]), (missing, name)
        made = found[missing]
        assert made.isfinite().all() and not torch.equal(made, tensors[missing]), missing


def test_padding_on_either_side_changes_nothing(text_case, ids):
    case = text_case
    model = case.model().double()
    alone = [
        model(**case.inputs(row[None, :length])).logits[0]
        for row, length in zip(ids, LENGTHS, strict=True)
    ]
    for side in ("left", "right"):
        padded = torch.full((3, 8), 12)
        mask = torch.zeros(3, 8, dtype=torch.long)
        for n, length in enumerate(LENGTHS):
            where = slice(8 - length, None) if side == "left" else slice(length)
            padded[n, where], mask[n, where] = ids[n, :length], 1
        logits = model(**case.inputs(padded, mask)).logits
        for n, expected in enumerate(alone):
            assert_close(
                logits[n, mask[n].bool()] if case.is_language_model else logits[n],
                expected,
                name=f"{side} {n}",
            )


def test_rows_without_tokens_are_finite_and_change_no_other(text_case, ids):
    case = text_case
    model = case.model()
    mask = torch.ones_like(ids)
    mask[1] = 0
    arguments = case.inputs(ids, mask, labels=True)
    output = model(**arguments)
    output.loss.backward()
    assert output.logits.isfinite().all() and all(
        p.grad.isfinite().all() for p in model.parameters()
    )
    whole = model(**case.inputs(ids)).logits
    assert_close(output.logits[[0, 2]], whole[[0, 2]])
    other = model(**case.inputs(ids.roll(1, 1), mask)).logits
    if not case.is_language_model:
        assert torch.equal(other[1], output.logits[1])  # nothing of the masked tokens is seen


def test_one_sequence_and_one_token(case, ids):
    model = case.model()
    alone = model(**case.inputs(ids[:1], labels=True))
    assert alone.loss.isfinite() and alone.loss.shape == ()
    assert_close(alone.logits, model(**case.inputs(ids)).logits[:1])
    assert model(**case.inputs(ids[:1, :1])).logits.isfinite().all()


def test_embeddings_in_place_of_ids(text_case, ids):
    case = text_case
    model = case.model()
    embed = model.get_input_embeddings()
    arguments = dict(inputs_embeds=embed(ids))
    if case.is_pair:
        arguments |= dict(inputs_embeds_b=embed(ids.flip(1)))
    assert torch.equal(model(**arguments).logits, model(**case.inputs(ids)).logits)


def gradients(model, **arguments):
    model.zero_grad()
    loss = model(**arguments).loss
    loss.backward()
    return loss.detach(), {
        name: parameter.grad.clone() for name, parameter in model.named_parameters()
    }


def test_checkpointing_gives_equal_gradients(case, ids, monkeypatch):
    model = case.model().train()
    loss, expected = gradients(model, **case.inputs(ids, labels=True))
    # Which of the names transformers has, and which it warns of, depends on its release.
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    runs = []
    compute = type(model.model.stack.blocks[0])._compute
    block = type(model.model.stack.blocks[0])
    monkeypatch.setattr(block, "_compute", lambda *args: runs.append(1) or compute(*args))
    again, found = gradients(model, **case.inputs(ids, labels=True))
    has_batch_norms = model.config.norm_type == "batch"
    assert len(runs) == (8 if case.is_pair and not has_batch_norms else 4)  # each block twice
    assert torch.equal(again, loss)
    # Yet it counts once in the statistics: 3, and one for each of the two steps.
    buffers = dict(model.named_buffers())
    counts = [buffers[name].item() for name in buffers if name.endswith("num_batches_tracked")]
    assert counts == [5] * len(counts) and bool(counts) == has_batch_norms
    for name, gradient in expected.items():
        assert torch.equal(found[name], gradient), name
        assert gradient.any() or name.endswith("bounds.logits"), name


def test_the_loss_of_a_batch_in_parts_is_that_of_the_whole(case, ids):
    """num_items_in_batch, as Trainer gives it to the parts of a step."""
    model = case.model().double()
    whole = case.inputs(ids, labels=True)
    whole["labels"] = whole["labels"].clone()
    whole["labels"][0] = -100
    counted = (whole["labels"][:, 1:] if case.is_language_model else whole["labels"]).ne(-100).sum()
    expected, wanted = gradients(model, **whole)
    losses, parts = zip(
        *(
            gradients(
                model,
                **{k: v if v is None else v[part] for k, v in whole.items()},
                num_items_in_batch=counted,
            )
            for part in (slice(0, 2), slice(2, 3))
        ),
        strict=True,
    )
    assert_close(sum(losses), expected)
    for name, gradient in wanted.items():
        assert_close(
            sum(part[name] for part in parts), gradient, torch.float32, name
        )  # losses are made in float32
    assert model.accepts_loss_kwargs


def test_labels_that_are_not_scored_do_not_count(case, ids):
    model = case.model()
    arguments = case.inputs(ids, labels=True)
    arguments["labels"] = arguments["labels"].clone()
    arguments["labels"][1] = -100
    kept = {name: None if value is None else value[[0, 2]] for name, value in arguments.items()}
    assert_close(model(**arguments).loss, model(**kept).loss)


def test_hidden_states(case, ids):
    model = case.model()
    names = ["hidden_states", "hidden_states_b"] if case.is_pair else ["hidden_states"]
    output = model(**case.inputs(ids, output_hidden_states=True))
    for name in names:
        assert [state.shape for state in output[name]] == [(3, 12 if case.is_image else 6, 8)] * 3
    assert not any(name in model(**case.inputs(ids)) for name in names)
    model.config.output_hidden_states = True
    assert all(len(model(**case.inputs(ids))[name]) == 3 for name in names)


def test_tuples_in_place_of_dictionaries(case, ids):
    model = case.model()
    arguments = case.inputs(ids, labels=True, output_hidden_states=True)
    output = model(**arguments)
    as_tuple = model(**arguments, return_dict=False)
    assert isinstance(as_tuple, tuple) and len(as_tuple) == len(output.to_tuple())
    assert torch.equal(as_tuple[0], output.loss) and torch.equal(as_tuple[1], output.logits)
    model.config.return_dict = False
    assert isinstance(model(**arguments), tuple)


def test_copies_and_pickles_are_models_of_their_own(case, ids):
    model = case.model()
    expected = model(**case.inputs(ids)).logits
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_same_parameters(other, model)
        if case.is_language_model:
            assert is_tied(other) == model.config.tie_word_embeddings
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.add_(1)
        assert not torch.equal(other(**case.inputs(ids)).logits, expected)
    assert torch.equal(model(**case.inputs(ids)).logits, expected)


@pytest.mark.parametrize("how", ["dtype", "torch_dtype", "auto"])
def test_half_precision_keeps_theta_and_bounds(how, case, ids, tmp_path):
    model = case.model()
    (copy.deepcopy(model).to(torch.bfloat16) if how == "auto" else model).save_pretrained(tmp_path)
    options = {"dtype": "auto"} if how == "auto" else {how: torch.bfloat16}
    loaded = case.kind.from_pretrained(tmp_path, **options)
    assert loaded.dtype == torch.bfloat16
    whole = named_tensors(model)
    for name, tensor in named_tensors(loaded).items():
        wide = name.endswith((".theta", "bounds.logits", "running_mean", "running_var"))
        assert tensor.dtype == (
            torch.float32
            if wide
            else whole[name].dtype
            if name.endswith("tracked")
            else torch.bfloat16
        ), name
        assert not wide or torch.equal(tensor, whole[name]), name
    output = loaded(**case.inputs(ids, labels=True))
    assert output.logits.dtype == torch.bfloat16
    assert output.loss.dtype == torch.float32 and output.loss.isfinite()


def test_compiled_it_is_one_graph(case, ids):
    torch._dynamo.reset()
    model = case.model()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    arguments = case.inputs(ids, torch.ones_like(ids), labels=True)
    assert_close(compiled(**arguments).logits, model(**arguments).logits)
    is_one_batch = case.is_pair and model.config.norm_type == "batch"
    if not (case.is_language_model or case.is_image or is_one_batch):
        packed = case.inputs(ids.view(1, 18), cu_seqlens=torch.tensor([0, 6, 18]))
        packed |= dict(cu_seqlens_b=torch.tensor([0, 12, 18])) if case.is_pair else {}
        assert_close(compiled(**packed).logits, model(**packed).logits)
