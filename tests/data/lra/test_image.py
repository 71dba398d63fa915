"""CIFAR-10 in both published forms; split, grey and shifts are those of the published runs."""

import gzip
import pickle
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from hgrn.data.images.idx import read_idx
from hgrn.data.lra.image import ArenaImageData, augmented, prepare, to_grey
from hgrn.data.lra.splits import random_split
from hgrn.errors import UserError

EACH = 20  # images a file
TRAIN = tuple(f"data_batch_{number}" for number in range(1, 6))
TEST = "test_batch"


@pytest.fixture(scope="module")
def batches():
    rng = np.random.default_rng(0)
    return {
        name: (rng.integers(0, 256, (EACH, 3072), dtype=np.uint8), rng.integers(0, 10, EACH))
        for name in (*TRAIN, TEST)
    }


@pytest.fixture
def binary(tmp_path, batches):
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    for name, (pixels, labels) in batches.items():
        (folder / f"{name}.bin").write_bytes(
            np.column_stack([labels.astype(np.uint8), pixels]).tobytes()
        )
    return folder


def pickled(pixels: np.ndarray, labels: np.ndarray) -> bytes:
    """{"data": array, "labels": list} as Python 2 and its NumPy wrote it, with byte strings."""
    kind = (
        b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R"
        b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )
    shape = b"K" + bytes([len(pixels)]) + b"M" + struct.pack("<H", pixels.shape[1]) + b"\x86"
    raw = b"T" + struct.pack("<i", pixels.size) + pixels.tobytes()
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01"
        + shape
        + kind
        + b"\x89"
        + raw
        + b"tb"
    )
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\x02}(U\x04data" + array + b"U\x06labels" + numbers + b"u."


@pytest.fixture
def python(tmp_path, batches):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name, content in batches.items():
        (folder / name).write_bytes(pickled(*content))
    return folder


def load(folder, tmp_path, **settings):
    return prepare(ArenaImageData(str(folder), cache=str(tmp_path / "cache"), **settings))


def test_colours_and_split(binary, tmp_path, batches):
    data = load(binary, tmp_path, colour=True)
    pixels = np.concatenate([batches[name][0] for name in TRAIN]).reshape(-1, 3, 32, 32)
    labels = np.concatenate([batches[name][1] for name in TRAIN])
    parts = torch.utils.data.random_split(
        range(100), [90, 10], generator=torch.Generator().manual_seed(42)
    )
    for split, part in zip(("train", "validation"), parts):
        assert np.array_equal(data.splits[split].images, pixels[list(part)])
        assert np.array_equal(data.splits[split].labels, labels[list(part)])
    assert np.array_equal(data.splits["test"].images.reshape(EACH, -1), batches[TEST][0])
    assert data.num_classes == 10
    normal = data.normalised(np.full((1, 3, 1, 1), 255, np.uint8)).ravel().tolist()
    assert normal == pytest.approx(
        [(1 - 0.4914) / 0.247, (1 - 0.4822) / 0.243, (1 - 0.4465) / 0.261], rel=1e-6
    )


def test_grey_is_that_of_pillow(binary, tmp_path, batches):
    data = load(binary, tmp_path)
    assert data.splits["train"].images.shape == (90, 1, 32, 32)
    colours = batches[TEST][0].reshape(-1, 3, 32, 32)
    for number in range(EACH):
        grey = np.array(Image.fromarray(colours[number].transpose(1, 2, 0)).convert("L"))
        assert np.array_equal(data.splits["test"].images[number, 0], grey)
    assert data.normalised(np.full((1, 1, 1, 1), 255, np.uint8)).item() == pytest.approx(
        (255 - 122.6) / 61.0, rel=1e-6
    )


def test_both_kinds_of_file_are_the_same(binary, python, tmp_path):
    assert load(python, tmp_path).fingerprint == load(binary, tmp_path).fingerprint


def test_the_folder_around_is_found(binary, tmp_path):
    assert len(load(tmp_path, tmp_path).splits["train"]) == 90


class Harmful:
    def __reduce__(self):
        return (exec, ("raise SystemExit('run')",))


@pytest.mark.parametrize(
    "content, message",
    [
        (
            pickle.dumps({b"data": Harmful(), b"labels": []}),
            "data_batch_3: the pickle asks for builtins.exec, .*it was not run",
        ),
        (pickle.dumps({b"labels": []}), "data_batch_3 must be a dictionary with data and labels"),
        (
            pickled(np.zeros((2, 3072), np.uint8), [1]),
            "data_batch_3: labels must be 2 integers, one for each image",
        ),
        (b"", "data_batch_3 is not a whole pickle"),
    ],
)
def test_pickles_run_nothing(python, tmp_path, content, message):
    (python / TRAIN[2]).write_bytes(content)
    with pytest.raises(UserError, match=message):
        load(python, tmp_path)


def test_damaged_files_are_named(binary, tmp_path):
    (binary / "data_batch_2.bin").write_bytes(b"x" * 3072)
    with pytest.raises(
        UserError, match="data_batch_2.bin is truncated: 3072 bytes are not whole records of 3073"
    ):
        load(binary, tmp_path)
    (binary / "data_batch_2.bin").write_bytes(b"\x0a" * 3073)
    with pytest.raises(
        UserError, match="data_batch_2.bin: label 10 of image 0 is out of range; 10 classes"
    ):
        load(binary, tmp_path)
    (binary / "data_batch_2.bin").unlink()
    with pytest.raises(UserError, match="data_batch_2.bin not found; unpack"):
        load(binary, tmp_path)
    with pytest.raises(UserError, match="has no data_batch_1.bin and no data_batch_1"):
        load(tmp_path / "elsewhere", tmp_path)


@pytest.fixture
def idx(tmp_path):
    folder = tmp_path / "fashion-mnist"
    rng = np.random.default_rng(1)
    folder.mkdir()
    for split, number in (("train", 30), ("t10k", 7)):
        images = rng.integers(1, 256, (number, 28, 28), dtype=np.uint8)
        labels = rng.integers(0, 10, number, dtype=np.uint8)
        for name, values in (("images-idx3", images), ("labels-idx1", labels)):
            header = struct.pack(">HBB" + "I" * values.ndim, 0, 8, values.ndim, *values.shape)
            (folder / f"{split}-{name}-ubyte.gz").write_bytes(
                gzip.compress(header + values.tobytes())
            )
    return folder


def test_idx_files_stand_in_with_a_border(idx, tmp_path):
    data = load(idx, tmp_path)
    images = read_idx(idx / "train-images-idx3-ubyte.gz")
    labels = read_idx(idx / "train-labels-idx1-ubyte.gz")
    assert {name: len(split) for name, split in data.splits.items()} == {
        "train": 27,
        "validation": 3,
        "test": 7,
    }
    chosen = random_split(30, [27, 3])
    for split, numbers in zip(("train", "validation"), chosen):
        part = data.splits[split]
        assert (
            part.images.shape == (len(numbers), 1, 32, 32)
            and (part.labels == labels[numbers]).all()
        )
        assert (part.images[:, 0, 2:30, 2:30] == images[numbers]).all()
        assert (
            part.images.astype(int).sum() == images[numbers].astype(int).sum()
        )  # the border is black
    assert data.classes[9] == "Ankle boot"
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2)))
    digits = idx.rename(tmp_path / "digits")
    assert (
        load(digits, tmp_path).classes[9] == "9"
    )  # the name of the folder decides, whatever is cached
    np.testing.assert_allclose(
        [*data.mean, *data.std], [padded.mean() / 255, padded.std() / 255], rtol=1e-6
    )


def test_what_idx_files_cannot_be(idx, tmp_path):
    with pytest.raises(UserError, match="colour must be false"):
        load(idx, tmp_path, colour=True)
    (idx / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(UserError, match="has no t10k-labels-idx1-ubyte"):
        load(idx, tmp_path)
    header = struct.pack(">HBBIII", 0, 8, 3, 30, 40, 28)
    (idx / "train-images-idx3-ubyte.gz").write_bytes(header + bytes(30 * 40 * 28))
    (idx / "t10k-labels-idx1-ubyte").write_bytes(struct.pack(">HBBI", 0, 8, 1, 7) + bytes(7))
    with pytest.raises(UserError, match="at most 32 x 32 pixels, got 40 x 28"):
        load(idx, tmp_path)


def test_augmentation(batches):
    images = batches[TEST][0].reshape(-1, 3, 32, 32)
    examples = np.arange(EACH)
    result = augmented(images, examples, seed=1, epoch=0)
    padded = np.pad(images, ((0, 0), (0, 0), (4, 4), (4, 4)), mode="symmetric")
    seen = set()
    for number in range(EACH):
        places = [
            (top, left, flip)
            for top in range(9)
            for left in range(9)
            for flip in (1, -1)
            if np.array_equal(
                result[number], padded[number, :, top : top + 32, left : left + 32][:, :, ::flip]
            )
        ]
        assert len(places) == 1
        seen.update(places)
    assert len(seen) > EACH / 2 and {flip for *_, flip in seen} == {1, -1}
    order = examples[::-1].copy()  # what happens to one does not depend on the others
    assert np.array_equal(augmented(images[order], order, seed=1, epoch=0)[::-1], result)
    assert not np.array_equal(augmented(images, examples, seed=1, epoch=1), result)


def test_grey_of_extremes():
    assert (
        to_grey(np.full((1, 3, 1, 1), 255, np.uint8)).item() == 255
        and to_grey(np.zeros((1, 3, 1, 1), np.uint8)).item() == 0
    )
