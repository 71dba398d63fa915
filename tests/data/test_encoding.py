"""Text into tokens: borders between documents, lines, pieces, and what a tokenizer cannot take."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hgrn.data import encoding
from hgrn.data.encoding import ByteEncoder, TextEncoder, make_encoder
from hgrn.data.text import Unit
from hgrn.data.tokenizer import BYTE_EOS, byte_tokenizer, train_tokenizer
from hgrn.errors import UserError

TEXTS = [
    "the cat sat on the mat\n",
    "d\u00e9j\u00e0 vu",
    "one two three four five six seven eight\n",
] * 3
EOS = "|"


@pytest.fixture(scope="module")
def bpe(tmp_path_factory):
    return train_tokenizer(TEXTS, 300, tmp_path_factory.mktemp("bpe"))


def units(*contents: bytes, block: int = 1000) -> list[Unit]:
    """Files with these contents, read in blocks."""
    return [
        Unit(f"file{number}", 0, [content[i : i + block] for i in range(0, len(content), block)])
        for number, content in enumerate(contents)
    ]


def collect(encoder, source) -> tuple[list[int], list[int], int]:
    """All tokens, all document starts, all bytes."""
    tokens = []
    starts = []
    num_bytes = 0
    for encoded in encoder.encode(source):
        starts += (encoded.starts + len(tokens)).tolist()
        tokens += encoded.tokens.tolist()
        num_bytes += encoded.num_bytes
    return tokens, starts, num_bytes


def as_text(tokens: list[int], tokenizer=None) -> str:
    if tokenizer is None:
        return "".join(EOS if token == BYTE_EOS else chr(token) for token in tokens)
    return EOS.join(tokenizer.decode(part) for part in _split(tokens, tokenizer.eos_token_id))


def _split(tokens: list[int], separator: int) -> list[list[int]]:
    parts = [[]]
    for token in tokens:
        if token == separator:
            parts.append([])
        else:
            parts[-1].append(token)
    return parts


LINE_CASES = [
    ((b"a\nb\n",), "a|b"),
    ((b"a\nb",), "a|b"),
    ((b"a\n\nb\n",), "a||b"),
    ((b"a\n\n",), "a|"),
    ((b"\na",), "|a"),
    ((b"a\n", b"b\n"), "a|b"),
    ((b"a", b"b"), "a|b"),
    ((b"a\n", b"\n", b"", b"b"), "a|||b"),
    ((b"a\r\nb",), "a\r|b"),
]


@pytest.mark.parametrize("block", [1, 2, 1000])
@pytest.mark.parametrize("contents, expected", LINE_CASES)
@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_every_line_is_a_document(kind, contents, expected, block, bpe):
    encoder = ByteEncoder(by_line=True) if kind == "bytes" else TextEncoder(bpe, by_line=True)
    tokens, starts, num_bytes = collect(encoder, units(*contents, block=block))
    assert as_text(tokens, None if kind == "bytes" else bpe) == expected
    assert len(starts) == expected.count(EOS) + 1
    assert num_bytes == len(expected)


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
@pytest.mark.parametrize(
    "contents, expected",
    [
        ((b"a\nb\n", b"c"), "a\nb\n|c"),
        ((b"a",), "a"),
        ((b"", b"a", b""), "|a|"),
    ],
)
def test_every_file_is_a_document(kind, contents, expected, bpe):
    encoder = ByteEncoder(by_line=False) if kind == "bytes" else TextEncoder(bpe, by_line=False)
    tokens, starts, num_bytes = collect(encoder, units(*contents, block=2))
    assert as_text(tokens, None if kind == "bytes" else bpe) == expected
    assert len(starts) == len(contents)
    assert num_bytes == len(expected) - expected.count(EOS)


@given(
    contents=st.lists(st.binary(max_size=20), min_size=1, max_size=5),
    by_line=st.booleans(),
    block=st.integers(1, 9),
)
def test_bytes_come_back_and_starts_follow_the_end_of_text(contents, by_line, block):
    tokens, starts, _ = collect(ByteEncoder(by_line), units(*contents, block=block))
    ends = np.flatnonzero(np.array(tokens) == BYTE_EOS)
    assert starts == [0, *(ends + 1)]
    lines = [line for content in contents for line in content.removesuffix(b"\n").split(b"\n")]
    expected = lines if by_line else contents
    assert [bytes(part) for part in _split(tokens, BYTE_EOS)] == expected


def test_spelled_end_of_text_is_text(bpe):
    for encoder in (ByteEncoder(False), TextEncoder(bpe, False)):
        tokens, starts, _ = collect(encoder, units(b"a<eos>b"))
        assert encoder.eos_id not in tokens and starts == [0]


def test_long_documents_are_cut_after_newlines(bpe, monkeypatch):
    monkeypatch.setattr(encoding, "PIECE", 10)
    text = "one two\nthree four five six\n\nd\u00e9j\u00e0 vu seven"
    pieces = [text for text, _ in encoding._pieces(units(text.encode(), block=7), by_line=False)]
    assert pieces == ["one two\n", "three four", " five six\n", "\n", "d\u00e9j\u00e0 vu se", "ven"]
    tokens, starts, num_bytes = collect(
        TextEncoder(bpe, False), units(text.encode(), b"end", block=7)
    )
    assert as_text(tokens, bpe) == text + "|end"
    assert len(starts) == 2 and num_bytes == len(text.encode()) + 3


def test_long_lines_stay_one_document(bpe, monkeypatch):
    monkeypatch.setattr(encoding, "PIECE", 10)
    text = "x" * 95 + "\n" + "y" * 40
    tokens, starts, _ = collect(TextEncoder(bpe, True), units(text.encode(), block=20))
    assert as_text(tokens, bpe) == text.replace("\n", EOS)
    assert len(starts) == 2


def test_batches_do_not_change_the_tokens(bpe, monkeypatch):
    source = units(*(text.encode() for text in TEXTS))
    expected = collect(TextEncoder(bpe, True), source)
    for limit, value in (("BATCH", 30), ("BATCH_TEXTS", 2)):
        with monkeypatch.context() as patch:
            patch.setattr(encoding, limit, value)
            assert collect(TextEncoder(bpe, True), source) == expected


@pytest.mark.parametrize(
    "content, position, byte",
    [
        (b"ab\xffcd", 2, "ff"),
        (b"abc\xc3", 3, "c3"),
        (b"d\xc3\xa9j\xc3x", 4, "c3"),
        (b"abcdefgh\xe6\x97 ", 8, "e6"),
    ],
)
@pytest.mark.parametrize("block", [1, 3, 1000])
def test_invalid_utf8_is_named_by_file_and_byte(bpe, content, position, byte, block):
    (unit,) = units(content, block=block)
    with pytest.raises(
        UserError, match=rf"file0: byte {position + 100} \(0x{byte}\) is not valid UTF-8"
    ):
        collect(TextEncoder(bpe, False), [Unit(unit.where, 100, unit.blocks)])
    assert collect(ByteEncoder(False), [unit])[0] == list(content)


def test_tokenizer_without_end_of_text_takes_one_document_only(tmp_path, bpe):
    bpe.save_pretrained(tmp_path)
    encoder = make_encoder(str(tmp_path / "tokenizer.json"), by_line=False)
    assert encoder.eos_id is None
    assert as_text(collect(encoder, units(b"the mat"))[0], bpe) == "the mat"
    with pytest.raises(UserError, match="no end-of-text token.*eos_token"):
        collect(encoder, units(b"the mat", b"the cat"))


def test_encoder_for_a_name(tmp_path, bpe):
    byte_tokenizer().save_pretrained(tmp_path / "bytes")
    bpe.save_pretrained(tmp_path / "bpe")
    assert isinstance(make_encoder("bytes", False), ByteEncoder)
    assert isinstance(make_encoder(str(tmp_path / "bytes"), False), ByteEncoder)
    encoder = make_encoder(str(tmp_path / "bpe"), False)
    assert isinstance(encoder, TextEncoder)
    assert encoder.vocab_size == len(bpe) and encoder.eos_id == 1
    assert encoder.signature == TextEncoder(bpe, False).signature


def test_bytes_of_the_first_token(bpe):
    the = bpe("the mat")["input_ids"][0]
    encoder = TextEncoder(bpe, by_line=True)
    assert encoder.first_token_bytes(the) == len(bpe.decode([the])) > 1
    assert encoder.first_token_bytes(encoder.eos_id) == 1
    assert TextEncoder(bpe, by_line=False).first_token_bytes(encoder.eos_id) == 0
    assert [ByteEncoder(by_line).first_token_bytes(BYTE_EOS) for by_line in (True, False)] == [1, 0]
    assert ByteEncoder(False).first_token_bytes(0) == 1
