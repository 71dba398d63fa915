"""Pickles are read as data: batches of every protocol load, and no file gets anything called."""

import pickle
import tracemalloc

import numpy as np
import pytest

from hgrn.data.images import plain_pickle
from hgrn.data.images.cifar import load_plain_pickle, open_cifar
from hgrn.errors import UserError
from tests.data.images.test_fixed import write_cifar

# As Python 2 wrote the published files: byte strings, and an array made by `_reconstruct`.
PYTHON_2 = (
    b"\x80\x02}q\x01(U\x0bbatch_labelq\x02U\x03oneq\x03U\x06labelsq\x04]q\x05(K\x06K\x09e"
    b"U\x04dataq\x06"
    b"cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08K\x00\x85U\x01b\x87Rq\t"
    b"(K\x01K\x02K\x03\x86"
    b"cnumpy\ndtype\nq\nU\x02u1K\x00K\x01\x87Rq\x0b"
    b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x06abcdeftbu."
)
DTYPE = b"cnumpy\ndtype\nX\x02\0\0\0u1\x89\x88\x87R"


def read(tmp_path, content: bytes):
    (tmp_path / "batch").write_bytes(content)
    return load_plain_pickle(tmp_path / "batch")


def test_a_batch_that_python_2_wrote(tmp_path):
    content = read(tmp_path, PYTHON_2)
    assert content[b"batch_label"] == b"one" and content[b"labels"] == [6, 9]
    assert (
        content[b"data"].dtype == np.uint8
        and content[b"data"].tobytes() == b"abcdef"
        and content[b"data"].shape == (2, 3)
    )


@pytest.mark.parametrize("protocol", range(6))
def test_what_numpy_and_python_3_write(tmp_path, protocol):
    written = {
        "labels": np.arange(5),
        "numbers": list(np.arange(-3, 300, dtype=np.int32)),
        "big": 2**70,
        "none": None,
        "empty": b"",
        "columns first": np.asfortranarray(np.arange(6, dtype=">i4").reshape(2, 3)),
        "nested": [(1, 2, 3, 4), {"a": True}, "é"],
    }
    found = read(tmp_path, pickle.dumps(written, protocol))
    assert found.keys() == written.keys()
    for name in ("labels", "columns first"):
        assert (
            np.array_equal(found[name], written[name]) and found[name].dtype == written[name].dtype
        )
    assert all(
        found[name] == written[name]
        for name in written
        if not isinstance(written[name], np.ndarray)
    )


def test_a_batch_with_keys_of_text(tmp_path):
    folder, written = write_cifar(tmp_path, 10, "py")
    for file in folder.iterdir():
        content = pickle.loads(file.read_bytes(), encoding="bytes")
        file.write_bytes(pickle.dumps({key.decode(): value for key, value in content.items()}, 4))
    assert np.array_equal(open_cifar(folder, "test").labels.numpy(), written["test"][1])


@pytest.mark.parametrize(
    "content, message",
    [
        # An array of Python objects at an address that the file chooses; a state that crashes
        # numpy; zero strides.
        (b"\x80\x03cnumpy\nndarray\n(I1\n\x85X\x01\0\0\0OC\x08AAAAAAAAtR.", "calls numpy.ndarray"),
        (
            b"\x80\x02" + DTYPE + b"(K\x03X\x01\0\0\0|NJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb.",
            "no dictionary of plain data",
        ),
        (
            b"\x80\x03cnumpy\nndarray\n(J\0\0\0\x7f\x85X\x02\0\0\0u1C\x01AK\0K\0\x85tR.",
            "calls numpy.ndarray",
        ),
        # Sizes that the bytes do not hold, whose product wraps, that are none; objects.
        (
            PYTHON_2.replace(b"K\x02K\x03\x86", b"J\0\0\0\x7fJ\0\0\0\x7f\x86"),
            "needs .* bytes, and 6 are there",
        ),
        (
            PYTHON_2.replace(b"K\x02K\x03\x86", b"\x8a\x09" + b"\0" * 8 + b"\x01K\0\x86"),
            "sizes are not all positive",
        ),
        (
            PYTHON_2.replace(b"K\x02K\x03\x86", b"J\xff\xff\xff\xffJ\xfa\xff\xff\xff\x86"),
            "sizes are not all positive",
        ),
        (PYTHON_2.replace(b"U\x02u1", b"U\x02O8"), "another type than integers"),
        (PYTHON_2.replace(b"U\x01|NNN", b"U\x01ZNNN"), "another type than integers"),
        # Other operations, other things to build, keys that are slow to compare.
        (
            b"\x80\x02cos\nsystem\nX\x02\0\0\0ls\x85R.",
            "asks for os.system, which plain data never needs",
        ),
        (
            b"\x80\x02(X\x02\0\0\0lsios\nsystem\n.",
            "the operation INST, which plain data never needs",
        ),
        (b"\x80\x02}}b.", "needs a tuple, not a dict"),
        (b"\x80\x02})K\x01s.", "keys that are text or whole numbers"),
        (b"\x80\x02N" + b"\x8c\xff", "is not a whole pickle"),
    ],
)
def test_what_is_no_batch_is_refused(tmp_path, content, message):
    tracemalloc.start()
    with pytest.raises(UserError, match=message):
        read(tmp_path, content)
    assert tracemalloc.get_traced_memory()[1] < 100 * len(content) + 1_000_000
    tracemalloc.stop()


def test_a_long_program_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(plain_pickle, "MOST_OPERATIONS", 30_000)
    with pytest.raises(UserError, match="more than 30,000 operations"):
        read(tmp_path, b"\x80\x02N" + b"\x85" * 60_000 + b".")
