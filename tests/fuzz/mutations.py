"""How a file is damaged: at random, and as somebody would who knows the formats."""

import random
import re
import struct

# What parsers trip over: empty, huge, not a number, of another type, nested, out of the folder,
# not text.
TOKENS = (
    b"",
    b"null",
    b"true",
    b"-1",
    b"0",
    b"1e999",
    b"NaN",
    b"Infinity",
    b"9" * 30,
    b"9" * 5000,
    b"30000000",
    b"[]",
    b"{}",
    b'""',
    b"[" * 3000,
    b'{"a":' * 3000,
    b"../../x",
    b"/etc/passwd",
    b"\0",
    b"\xff\xfe",
    b"\xed\xa0\x80",
    b"\\ud800",
    b"'",
    b'"',
    b"\n",
    b"&a [*a]",
    b"*a",
    b"!!int x",
    b"!!timestamp x",
    b"? [1]",
    b"\t",
    b"{0..999999999}",
    b"x" * 5000,
)
NUMBERS = (
    0,
    1,
    0x7F,
    0xFF,
    0x7FFF,
    0xFFFF,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
    0x7FFFFFFFFFFFFFFF,
    0x8000000000000000,
    2**64 - 1,
)
WORD = re.compile(rb'"[^"]*"|[\w.+-]+')  # a value, key or number of any text format


def mutate(content: bytes, chance: random.Random) -> bytes:
    """The content with one to four changes; it is never the same."""
    changed = content
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        changed = chance.choice(CHANGES)(changed, chance)
    return changed if changed != content else content + b"\0"


def _flip(content: bytes, chance: random.Random) -> bytes:
    place = _place(content, chance)
    return (
        content[:place]
        + bytes(byte ^ 1 << chance.randrange(8) for byte in content[place : place + 1])
        + content[place + 1 :]
    )


def _any_byte(content: bytes, chance: random.Random) -> bytes:
    place = _place(content, chance)
    return content[:place] + chance.randbytes(1) + content[place + 1 :]


def _number(content: bytes, chance: random.Random) -> bytes:
    """A whole number in binary, in either order of bytes."""
    place = _place(content, chance)
    form = chance.choice(("B", "<H", ">H", "<I", ">I", "<Q", ">Q"))
    size = struct.calcsize(form)
    return (
        content[:place]
        + struct.pack(form, chance.choice(NUMBERS) % 256**size)
        + content[place + size :]
    )


def _cut(content: bytes, chance: random.Random) -> bytes:
    return content[: _place(content, chance)]


def _remove(content: bytes, chance: random.Random) -> bytes:
    place = _place(content, chance)
    return content[:place] + content[place + chance.choice((1, 2, 8, 64, 512)) :]


def _repeat(content: bytes, chance: random.Random) -> bytes:
    place = _place(content, chance)
    size = chance.choice((1, 8, 64, 512))
    return (
        content[:place]
        + content[place : place + size] * chance.choice((2, 3, 50))
        + content[place + size :]
    )


def _insert(content: bytes, chance: random.Random) -> bytes:
    place = _place(content, chance)
    return (
        content[:place]
        + chance.choice((chance.randbytes(4), chance.choice(TOKENS)))
        + content[place:]
    )


def _other_word(content: bytes, chance: random.Random) -> bytes:
    """Another value in the place of a word, or another word of the same file."""
    words = list(WORD.finditer(content[: 1 << 16]))
    if not words:
        return _insert(content, chance)
    word = chance.choice(words)
    other = chance.choice((chance.choice(TOKENS), chance.choice(words)[0]))
    return content[: word.start()] + other + content[word.end() :]


def _place(content: bytes, chance: random.Random) -> int:
    """Anywhere, or in the first bytes, where headers are."""
    return chance.randrange(
        max(chance.choice((len(content), min(len(content), 64), min(len(content), 512))), 1)
    )


CHANGES = (
    _flip,
    _any_byte,
    _number,
    _cut,
    _remove,
    _repeat,
    _insert,
    _other_word,
    _other_word,
    _other_word,
)
