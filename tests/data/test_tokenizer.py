"""The byte tokenizer, loading, training, and streaming output."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hgrn.data.tokenizer import (
    BYTE_BOS,
    BYTE_EOS,
    BYTE_PAD,
    BYTE_VOCAB_SIZE,
    StreamDecoder,
    byte_tokenizer,
    bytes_to_ids,
    ids_to_bytes,
    is_byte_tokenizer,
    load_tokenizer,
    train_tokenizer,
)
from hgrn.errors import UserError

BYTE = byte_tokenizer()
TEXTS = [
    "the cat sat on the mat\n",
    "d\u00e9j\u00e0 vu, caf\u00e9",
    "\u65e5\u672c\u8a9e \U0001f600",
] * 4


@pytest.fixture(scope="module")
def bpe(tmp_path_factory):
    return train_tokenizer(TEXTS, 300, tmp_path_factory.mktemp("bpe"))


@given(st.text())
def test_text_is_its_utf8_bytes(text):
    ids = BYTE(text)["input_ids"]
    assert ids == list(text.encode())
    assert BYTE.decode(ids) == text


@given(st.binary())
def test_any_bytes_round_trip(data):
    ids = bytes_to_ids(data)
    assert ids.tolist() == list(data)
    assert ids_to_bytes(ids) == data


def test_special_tokens_have_the_documented_ids():
    assert len(BYTE) == BYTE_VOCAB_SIZE == 259
    assert (BYTE.bos_token_id, BYTE.eos_token_id, BYTE.pad_token_id) == (256, 257, 258)
    assert (BYTE_BOS, BYTE_EOS, BYTE_PAD) == (256, 257, 258)
    assert ids_to_bytes([BYTE_BOS, 104, 105, BYTE_EOS, BYTE_PAD]) == b"hi"
    assert BYTE.decode([BYTE_BOS, 104, 105, BYTE_EOS], skip_special_tokens=True) == "hi"


def test_id_outside_the_vocabulary_is_named():
    with pytest.raises(ValueError, match="259"):
        ids_to_bytes([1, 259])


def test_spelled_special_token_is_text(bpe):
    assert BYTE("a<eos>b")["input_ids"] == list(b"a<eos>b")
    assert BYTE("a<eos>b", split_special_tokens=False)["input_ids"] == [97, BYTE_EOS, 98]
    assert bpe.eos_token_id not in bpe("a<eos>b")["input_ids"]


def test_saved_byte_tokenizer_is_found_by_auto_tokenizer(tmp_path, bpe):
    BYTE.save_pretrained(tmp_path)
    loaded = load_tokenizer(str(tmp_path))
    text = "a<eos>b \u00e9\r\n  , ."
    assert loaded(text)["input_ids"] == list(text.encode())
    assert loaded.decode(loaded(text)["input_ids"]) == text
    assert loaded.eos_token_id == BYTE_EOS
    assert is_byte_tokenizer(loaded)
    assert not is_byte_tokenizer(bpe)


def test_load_by_name_folder_and_file(tmp_path, bpe):
    assert is_byte_tokenizer(load_tokenizer("bytes"))
    bpe.save_pretrained(tmp_path)
    expected = bpe("the mat")["input_ids"]
    assert load_tokenizer(str(tmp_path))("the mat")["input_ids"] == expected
    assert load_tokenizer(str(tmp_path / "tokenizer.json"))("the mat")["input_ids"] == expected


@pytest.mark.parametrize(
    "name", ["./no/such/folder", "/no/such/folder", "~/no/such/folder", "none.json"]
)
def test_missing_path_is_an_error_with_a_remedy(name):
    with pytest.raises(UserError, match="does not exist; `hgrn tokenizer train`"):
        load_tokenizer(name)


def test_unreadable_tokenizers_are_errors_with_a_remedy(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    broken = tmp_path / "tokenizer.json"
    broken.write_text('{"version": "1.0", "model": 3}')
    for name in (empty, broken):
        with pytest.raises(UserError, match="cannot be loaded.*hgrn tokenizer train"):
            load_tokenizer(str(name))


def test_unknown_hub_name_is_an_error(monkeypatch):
    from transformers import AutoTokenizer

    def offline(name, trust_remote_code):
        raise OSError(f"We couldn't connect to the hub to load {name}\nsecond line")

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", offline)
    with pytest.raises(
        UserError, match="'nobody/nothing' cannot be loaded: We couldn't connect.*hub"
    ):
        load_tokenizer("nobody/nothing")


def test_trained_tokenizer(tmp_path):
    out = tmp_path / "new"
    trained = train_tokenizer(iter(TEXTS), 280, out)
    assert 259 < len(trained) <= 280
    assert (trained.bos_token_id, trained.eos_token_id, trained.pad_token_id) == (0, 1, 2)
    for text in [*TEXTS, "never seen: \u0416 \x00\t"]:
        assert trained.decode(trained(text)["input_ids"]) == text
    assert load_tokenizer(str(out)).get_vocab() == trained.get_vocab()
    with pytest.raises(UserError, match="not an empty folder"):
        train_tokenizer(TEXTS, 280, out)
    assert json.loads((out / "tokenizer_config.json").read_text())["eos_token"] == "<eos>"


def test_too_small_a_vocabulary_is_refused(tmp_path):
    with pytest.raises(UserError, match="at least 259.*got 258"):
        train_tokenizer(TEXTS, 258, tmp_path / "new")


STREAM_TEXTS = st.text(alphabet=st.sampled_from("ab .,\u00e9\u65e5\U0001f600\ufffd\n"), max_size=20)


@given(text=STREAM_TEXTS, kind=st.sampled_from(["byte", "bpe"]), step=st.integers(1, 3))
def test_stream_joins_to_the_text_and_breaks_no_character(text, kind, step, bpe):
    tokenizer = {"byte": BYTE, "bpe": bpe}[kind]
    ids = tokenizer(text)["input_ids"]
    decoder = StreamDecoder(tokenizer)
    pieces = [decoder.push(ids[start : start + step]) for start in range(0, len(ids), step)]
    assert "".join(pieces) + decoder.finish() == text
    shown = ""
    for piece in pieces:
        shown += piece
        assert text.startswith(shown)


@given(st.binary(max_size=30))
def test_stream_of_any_bytes_equals_decoding_them_at_once(data):
    decoder = StreamDecoder(BYTE)
    streamed = "".join(decoder.push([byte]) for byte in data) + decoder.finish()
    assert streamed == data.decode(errors="replace")


def test_stream_shows_each_character_as_soon_as_it_is_whole():
    decoder = StreamDecoder(BYTE)
    pieces = [decoder.push([byte]) for byte in "a\u00e9\u65e5b".encode()]
    assert pieces == ["a", "", "\u00e9", "", "", "\u65e5", "b"]
    assert decoder.push([BYTE_EOS]) == ""
    assert decoder.finish() == ""


def test_unfinished_character_comes_out_at_the_end_and_is_then_forgotten():
    decoder = StreamDecoder(BYTE)
    assert decoder.push([97, 0xE6, 0x97]) == "a"
    assert decoder.finish() == "\ufffd"
    assert decoder.push([98]) + decoder.finish() == "b"
