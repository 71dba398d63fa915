"""Files of sessions: every flipped byte is noticed, and wrong content is refused."""

import json
import random

import pytest
import torch
from safetensors.torch import load_file, save_file

from hgrn.errors import UserError
from hgrn.models import HGRNConfig, HGRNForCausalLM, Session, session_file
from hgrn.models.session import fingerprint


@pytest.fixture(scope="module")
def model():
    return HGRNForCausalLM(
        HGRNConfig(vocab_size=11, hidden_size=8, num_hidden_layers=2, conv_size=3)
    ).eval()


@pytest.fixture
def saved(model, tmp_path):
    session = Session(model)
    session.read([list(range(9))])
    path = tmp_path / "talk"
    session.branch(3).save(path)
    return path


def test_every_flipped_byte_is_noticed(model, saved):
    content = saved.read_bytes()
    assert Session.load(saved, model).lengths == [9, 9, 9]
    chance = random.Random(0)
    for place in [*range(0, len(content), 7), *chance.sample(range(len(content)), 100)]:
        damaged = bytearray(content)
        damaged[place] ^= 1 << chance.randrange(8)
        saved.write_bytes(damaged)
        with pytest.raises(UserError):
            Session.load(saved, model)


def rewritten(path, model, tensors=None, **changes):
    """The file made anew, with a checksum that holds."""
    tensors = load_file(path) if tensors is None else tensors
    about = session_file.metadata(fingerprint(model), [9, 9, 9]) | changes
    save_file(tensors, path, {name: value for name, value in about.items() if value is not None})
    if about["sha256"] is not None:
        session_file.seal(path)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"format": None}, "does not hold conversations"),
        ({"format": "hgrn-session-3"}, "does not hold conversations"),
        ({"sha256": None}, "is damaged: its checksum does not match"),
        ({"fingerprint": None}, "belongs to another model"),
        *(
            ({"lengths": lengths}, "does not say how many tokens")
            for lengths in (None, "[9", "[" * 100_000, "[]", "3", "[true]", "[-1]", "[1.5]")
        ),
        (
            {"lengths": json.dumps([9] * 7)},
            r"state 0.0 must be torch.float32 \[7, 16\]; it is torch.float32 \[3, 16\]",
        ),
    ],
)
def test_metadata_that_does_not_fit(model, saved, changes, message):
    rewritten(saved, model, **changes)
    with pytest.raises(UserError, match=message):
        Session.load(saved, model)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.pop("1.0"), "does not hold the states of this model's layers: 1.0"),
        (lambda t: t.update({"2.0": t["1.0"].clone()}), "layers: 2.0"),
        (lambda t: t.update(x=torch.ones(1)), "layers: x"),
        (
            lambda t: t.update({"0.1": t["0.1"][:, :1].contiguous()}),
            r"state 0.1 must be torch.float32 \[3, 2, 24\]",
        ),
        (
            lambda t: t.update({"0.0": t["0.0"].long()}),
            "must be torch.float32 .* it is torch.int64",
        ),
        (
            lambda t: t.update({"0.0": t["0.0"].double()}),
            "must be torch.float32 .* it is torch.float64",
        ),
        (lambda t: t["1.0"].fill_(float("nan")), "state 1.0 holds NaN or infinity"),
    ],
)
def test_states_that_do_not_fit(model, saved, change, message):
    tensors = load_file(saved)
    change(tensors)
    rewritten(saved, model, tensors)
    with pytest.raises(UserError, match=message):
        Session.load(saved, model)


def test_a_file_of_the_first_versions_is_read_with_a_warning(model, saved):
    before = Session.load(saved, model)
    rewritten(saved, model, format=session_file.WITHOUT_CHECKSUM, sha256=None)
    with pytest.warns(UserWarning, match="saved without a checksum"):
        loaded = Session.load(saved, model)
    assert torch.equal(loaded.read([[1]] * 3), before.read([[1]] * 3))
