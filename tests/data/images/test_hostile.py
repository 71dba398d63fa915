"""Hostile images and labels: memory stays bounded, headers may lie, names may lead elsewhere."""

import gzip
import io
import struct
import tarfile
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from hgrn.data.images import decoding, idx
from hgrn.data.images.decoding import decode
from hgrn.data.images.idx import read_idx
from hgrn.data.images.opening import ImageData, problems
from hgrn.data.images.shards import ShardSource, expand_shards
from hgrn.data.images.source import CorruptImage
from hgrn.errors import UserError
from tests.data.images.conftest import encoded
from tests.data.images.test_files import write_shard


def header(*sizes: int, rank: int | None = None) -> bytes:
    return struct.pack(">BBBB", 0, 0, 8, len(sizes) if rank is None else rank) + b"".join(
        struct.pack(">I", size) for size in sizes
    )


@pytest.mark.parametrize(
    "content, message",
    [
        (
            header(2**31, 2**31, 4),
            "announces an array of 2147483648 x 2147483648 x 4",
        ),  # the product is 0 in 64 bits
        (header(2**32 - 1, 1, 1), "at most 10,000,000 examples"),
        (header(1000, 2000, 2000), "at most .* 2,147,483,648 bytes"),
        (header(rank=255), "an array of 255 axes"),
        (header(*[1] * 64), "an array of 64 axes"),
        (header(rank=0) + b"x", "an array of 0 axes"),
        (header(0, 28, 28), "holds no values"),
        (header(4, 28, 28), "is truncated: .* needs 3136 bytes, and it has 0"),
    ],
)
@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_headers_that_lie(tmp_path, content, message, compress):
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(compress(content))
    with pytest.raises(UserError, match=message):
        read_idx(path)


def test_no_more_is_decompressed_than_the_header_announces(tmp_path):
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(header(10, 2, 2) + bytes(1 << 26), 1))
    tracemalloc.start()
    with pytest.raises(
        UserError, match="longer than it should be: .* needs 40 bytes, and it has more"
    ):
        read_idx(path)
    assert tracemalloc.get_traced_memory()[1] < 10 * idx.BLOCK
    tracemalloc.stop()


@pytest.mark.parametrize(
    "pattern, message",
    [
        ("a-{0..999999999}.tar", "more than 100,000 files"),
        ("a-{0..99999999999999999999}.tar", "no shard"),  # no range: too many digits
        ("{0..999}{0..999}{0..999}.tar", "more than 100,000 files"),
        ("{a,b}" * 20, "more than 100,000 files"),
        ("{9..2}.tar", "a range in braces must go up"),
        ("{9..2}{0..99999}{0..99999}.tar", "more than 100,000 files"),
        ("a\0*", "printable characters"),
    ],
)
def test_patterns_of_shards(pattern, message):
    with pytest.raises(UserError, match=message):
        expand_shards(pattern)


@pytest.mark.parametrize("classes", [0, -1, 1_000_001, 10**12])
def test_numbers_of_classes(classes, tmp_path):
    data = ImageData(format="shards", splits={"train": "x"}, classes=classes)
    assert [
        line for line in problems(data) if line.startswith("classes must be from 1 to 1,000,000")
    ]


def test_labels_that_are_nested(tmp_path):
    write_shard(tmp_path / "a.tar", [("0.png", encoded()), ("0.json", b"[" * 100_000)])
    with pytest.raises(UserError, match="must be a JSON object with a whole number under 'label'"):
        ShardSource(str(tmp_path / "a.tar"), 3, 3)


def tar_header(name: str, size: bytes, kind: bytes = b"0") -> bytes:
    """The first block of a member, its size as it is given."""
    info = tarfile.TarInfo(name)
    info.type = kind
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT)[:512])
    block[124:136] = size
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def whole(name: str, content: bytes) -> bytes:
    return tar_header(name, b"%011o\0" % len(content)) + content + bytes(-len(content) % 512)


@pytest.mark.parametrize(
    "content",
    [
        tar_header(
            "0.png", b"\xff" * 11 + b"\x00"
        ),  # 256 bytes before the header: read again and again
        tar_header("0.png", b"\x80" + b"\0" * 3 + b"\x7f" * 8),
        tar_header("0.png", b"77777777777\0"),
        whole("0.png", encoded()) + tar_header("0.cls", b"\xff" * 12),
        b"".join(tar_header("long", b"%011o\0" % 1, b"L") + b"a" + bytes(511) for _ in range(3000)),
        b"".join(tar_header("pax", b"%011o\0" % 1, b"x") + b"a" + bytes(511) for _ in range(3000)),
    ],
)
@pytest.mark.timeout(30)
def test_tar_files_with_other_sizes(tmp_path, content):
    (tmp_path / "a.tar").write_bytes(content + bytes(1024))
    with pytest.raises(
        UserError, match="is truncated|is not a whole plain tar file|needs one image"
    ):
        ShardSource(str(tmp_path / "a.tar"), 3, 3)


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE]
)
def test_members_that_are_no_files(tmp_path, kind):
    write_shard(tmp_path / "a.tar", [("0.png", None)], kind, "/etc/passwd")
    with pytest.raises(UserError, match="is a link or a special file"):
        ShardSource(str(tmp_path / "a.tar"), 3, 3)


def test_sparse_members_are_refused(tmp_path):
    sparse = bytearray(tar_header("0.png", b"%011o\0" % 512, b"S"))
    sparse[386:410] = b"%011o\0%011o\0" % (0, 512)
    sparse[483:495] = b"%011o\0" % (1 << 29)
    sparse[148:156] = b" " * 8
    sparse[148:156] = b"%06o\0 " % sum(sparse)
    (tmp_path / "a.tar").write_bytes(
        bytes(sparse) + bytes(512) + whole("0.cls", b"1") + bytes(1024)
    )
    with pytest.raises(UserError, match="special file|is truncated"):
        ShardSource(str(tmp_path / "a.tar"), 3, 3)


def test_more_pixels_than_are_read(monkeypatch):
    monkeypatch.setattr(decoding, "MOST_PIXELS", 1000)
    assert decode(encoded(height=20, width=50), "name", 3).shape == (3, 20, 50)
    with pytest.raises(CorruptImage, match="51 x 20 pixels; at most 1,000 are read"):
        decode(encoded(height=20, width=51), "name", 3)


@pytest.mark.parametrize(
    "side", [10_000, 20_000]
)  # Pillow warns of the first, and refuses the second
def test_an_image_that_fills_the_memory(side):
    stream = io.BytesIO()
    Image.fromarray(np.zeros((1, 1), np.uint8)).save(stream, "PNG")
    content = bytearray(stream.getvalue())
    content[16:24] = struct.pack(">II", side, side)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    with pytest.raises(CorruptImage):
        decode(bytes(content), "name", 3)
