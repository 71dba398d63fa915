"""Sessions: conversations go on as if their texts were read again."""

import copy
import io
import json
import pickle

import pytest
import torch
from safetensors.torch import save_file

from hgrn.errors import UserError
from hgrn.models import HGRNConfig, HGRNForCausalLM, Session
from hgrn.models.session import fingerprint
from hgrn.modules import quantize_int8
from tests.tolerances import assert_close


def texts(*lengths):
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(1, 11, (length,), generator=generator).tolist() for length in lengths]


def predictions(model, rows):
    """What the whole model says behind each of the texts, each alone."""
    with torch.no_grad():
        return torch.cat([model(torch.tensor([row])).logits[:, -1] for row in rows])


@pytest.fixture
def single(tiny):
    """In float32, so that compiled steps take part."""
    return tiny.float()


def test_reading_in_parts_is_reading_the_whole(single):
    first, second = texts(7, 4)
    session = Session(single)
    session.read([first])
    assert_close(session.read(torch.tensor([second])), predictions(single, [first + second]))
    assert session.lengths == [11] and len(session) == 1


def test_prompts_of_different_lengths_and_single_tokens(single):
    rows = texts(6, 1, 3)
    session = Session(single).branch(3)
    assert_close(session.read(rows), predictions(single, rows))
    for _ in range(3):
        token = torch.randint(0, 11, (3, 1))
        rows = [row + new.tolist() for row, new in zip(rows, token)]
        assert_close(session.read(token), predictions(single, rows))
    assert session.lengths == [9, 4, 6]


def test_branches_go_their_own_ways(single):
    (prompt,) = texts(8)
    told = Session(single)
    told.read([prompt])
    kept = told.cache.state
    branches = told.branch(3)
    rows = [[1], [2], [3, 4]]
    assert_close(branches.read(rows), predictions(single, [prompt + row for row in rows]))
    assert told.lengths == [8] and all(
        torch.equal(a[0], b[0]) for a, b in zip(told.cache.state, kept)
    )


def test_different_histories_take_one_step_together(single):
    rows = texts(5, 9, 2, 4)
    alone = [Session(single) for _ in rows[:3]]
    for session, row in zip(alone, rows):
        session.read([row])
    joined = Session.join([*alone, Session(single)])  # the last has read nothing
    assert joined.lengths == [5, 9, 2, 0]
    expected = predictions(single, [rows[0] + [7], rows[1] + [7], rows[2] + [7], [7]])
    assert_close(joined.read(torch.full((4, 1), 7)), expected)
    picked = joined.pick([2, -1, 2])
    assert picked.lengths == [3, 1, 3]
    assert_close(
        picked.read(torch.full((3, 1), 5)),
        predictions(single, [rows[2] + [7, 5], [7, 5], rows[2] + [7, 5]]),
    )


def test_saved_and_loaded_it_goes_on(single, tmp_path):
    rows = texts(5, 9)
    session = Session(single).branch(2)
    session.read(rows)
    session.save(tmp_path / "talk.safetensors")
    loaded = Session.load(tmp_path / "talk.safetensors", single)
    assert loaded.lengths == [5, 9]
    assert torch.equal(loaded.read([[3], [4]]), session.read([[3], [4]]))
    assert [path.name for path in tmp_path.iterdir()] == ["talk.safetensors"]


def test_the_inputs_of_a_convolution_are_part_of_the_conversation(tmp_path):
    torch.manual_seed(0)
    config = HGRNConfig(
        vocab_size=11,
        hidden_size=8,
        num_hidden_layers=2,
        norm_type="rms",
        conv_size=4,
        complex_state=False,
    )
    model = HGRNForCausalLM(config).eval()
    rows = texts(5, 1, 2)
    told = Session(model)
    told.read(rows[:1])
    joined = Session.join([told, Session(model).branch(2)])  # two that have read nothing
    joined.read([[3], *rows[1:]])
    joined.save(tmp_path / "talk")
    loaded = Session.load(tmp_path / "talk", model)
    expected = predictions(model, [rows[0] + [3, 7], rows[1] + [7], rows[2] + [7]])
    assert_close(loaded.read([[7]] * 3), expected)
    assert_close(joined.pick([2, 0]).read([[7]] * 2), expected[[2, 0]])
    assert joined.nbytes == 3 * 2 * 4 * (8 + 3 * 16)
    other = copy.deepcopy(model)
    other.config.norm_type = "layer"
    assert fingerprint(other) != fingerprint(model) == fingerprint(copy.deepcopy(model))


def test_a_state_is_not_loaded_into_another_model(single, tmp_path):
    path = tmp_path / "talk"
    session = Session(single)
    session.read(texts(5))
    session.save(path)
    others = [copy.deepcopy(single) for _ in range(3)]
    others[0].model.stack.blocks[1].mixer.theta.data[3] += 1e-6
    others[1].config.gate_position = "before_norm"
    quantize_int8(others[2])
    for other in others:
        with pytest.raises(
            UserError, match="belongs to another model: a state means nothing to weights"
        ):
            Session.load(path, other)
    assert fingerprint(copy.deepcopy(single)) == fingerprint(single)


def test_other_files_are_refused(single, tmp_path):
    save_file({"x": torch.ones(1)}, tmp_path / "weights.safetensors")
    (tmp_path / "text").write_text("hello" * 100)
    Session(single).save(tmp_path / "cut")
    (tmp_path / "cut").write_bytes((tmp_path / "cut").read_bytes()[:-10])
    for name, message in (
        ("weights.safetensors", "does not hold conversations"),
        ("text", "cannot be read"),
        ("cut", "cannot be read"),
        ("nothing", "cannot be read"),
    ):
        with pytest.raises(UserError, match=message):
            Session.load(tmp_path / name, single)


def test_a_save_that_fails_leaves_the_old_file(single, tmp_path, monkeypatch):
    path = tmp_path / "talk"
    session = Session(single)
    session.read(texts(5))
    session.save(path)
    before = path.read_bytes()

    def fails(tensors, part, about):
        part.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr("hgrn.models.session.save_file", fails)
    with pytest.raises(UserError, match="talk cannot be written: no space left"):
        session.save(path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_generate_goes_on_from_a_session_with_only_the_new_ids(trained, rules):
    ids = rules.sample(2, 9, torch.Generator().manual_seed(9))
    options = dict(max_new_tokens=8, do_sample=False)
    whole = trained.generate(ids, **options)
    for start in (6, 1):  # more new ids than old ones, and fewer
        session = Session(trained).branch(2)
        session.read(ids[:, :start])
        only_new = trained.generate(ids[:, start:], past_key_values=session.cache, **options)
        assert torch.equal(only_new, whole[:, start:])
        assert session.lengths == [start, start]


def by_torch(session):
    file = io.BytesIO()
    torch.save(session, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "way", [copy.copy, copy.deepcopy, lambda session: pickle.loads(pickle.dumps(session)), by_torch]
)
def test_a_copy_answers_as_the_original(way, single):
    (prompt,) = texts(6)
    told = Session(single)
    for token in prompt:  # compiled steps take part
        told.read([[token]])
    kept = way(told)
    for p in kept.model.parameters() if kept.model is not single else ():
        p.data = p.data.clone()
    expected = predictions(single, [[*prompt, 7], [*prompt, 7, 3]])
    assert_close(kept.read([[7]]), expected[:1])
    assert_close(kept.read([[3]]), expected[1:])
    assert_close(told.read([[7]]), expected[:1])
    assert kept.lengths == [8] and told.lengths == [7]


def averaged(model):
    for p in model.parameters():
        p.data = 0.9 * p.data


def bounds_moved(model):
    torch.nn.init.normal_(model.model.stack.bounds.logits)


@pytest.mark.parametrize(
    "change",
    [
        averaged,
        bounds_moved,
        lambda model: model.half().float(),
        torch.nn.Module.share_memory,
        quantize_int8,
    ],
)
def test_a_session_goes_on_with_the_weights_as_they_are(change, single):
    (prompt,) = texts(6)
    told = Session(single)
    for token in prompt:
        told.read([[token]])
    with torch.no_grad():
        change(single)
        junk = [torch.full_like(p, 9.0) for p in single.parameters()]
    fresh = told.branch(1)  # of the same state, without compiled steps
    assert_close(told.read([[7]]), fresh.read([[7]]))
    with torch.no_grad():
        again = single(torch.tensor([[3]]), past_key_values=told.cache).logits[:, -1]
    assert_close(told.read([[3]]), again)
    assert len(junk) > 0


def test_a_session_with_another_model_object(single):
    told = Session(single)
    for token in (1, 2, 3):
        told.read([[token]])
    told.model = copy.deepcopy(single)
    averaged(told.model)
    fresh = told.branch(1)
    with torch.no_grad():
        expected = told.model(torch.tensor([[7]]), past_key_values=fresh.cache).logits[:, -1]
    assert_close(told.read([[7]]), expected)


def test_a_thousand_conversations(single):
    session = Session(single)
    session.read(texts(50))
    many = session.branch(1000)
    logits = many.read(torch.arange(1000)[:, None] % 11)
    assert logits.shape == (1000, 11) and len(logits.unique(dim=0)) == 11
    assert many.nbytes == 1000 * 2 * 2 * 8 * 4 and json.dumps(many.lengths) == json.dumps(
        [51] * 1000
    )


def test_what_does_not_fit_is_named(single):
    session = Session(single).branch(2)
    with pytest.raises(ValueError, match="a row for each of the 2 conversations, got 1"):
        session.read([[1]])
    with pytest.raises(ValueError, match="row 1 is empty"):
        session.read([[1], []])
    with pytest.raises(ValueError, match=r"\[N, T\] with T of 1 or more, got \(2, 0\)"):
        session.read(torch.zeros(2, 0, dtype=torch.long))
    with pytest.raises(ValueError, match="same model object"):
        Session.join([session, Session(copy.deepcopy(single))])
    with pytest.raises(ValueError, match="times must be at least 1"):
        session.branch(0)
    with pytest.raises(ValueError, match="at least one conversation"):
        session.pick([])
