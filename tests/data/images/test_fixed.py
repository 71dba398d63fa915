"""idx and CIFAR: what is read is what was written, and every damage has its message."""

import gzip
import pickle
import struct

import numpy as np
import pytest
import torch

from hgrn.data.images.cifar import load_plain_pickle, open_cifar
from hgrn.data.images.idx import open_idx, read_idx
from hgrn.data.images.opening import ImageData, open_images
from hgrn.errors import UserError

RANDOM = np.random.default_rng(0)


def idx(array: np.ndarray, kind: int = 8) -> bytes:
    return (
        struct.pack(f">BBBB{array.ndim}I", 0, 0, kind, array.ndim, *array.shape) + array.tobytes()
    )


def write_idx(folder, train: int = 30, test: int = 5, compress: bool = True):
    folder.mkdir()
    arrays = {}
    for stem, count in (("train", train), ("t10k", test)):
        arrays[stem] = (
            RANDOM.integers(256, size=(count, 6, 5), dtype=np.uint8),
            RANDOM.integers(10, size=count, dtype=np.uint8),
        )
        for name, array in zip(("images-idx3", "labels-idx1"), arrays[stem]):
            data = idx(array)
            path = folder / f"{stem}-{name}-ubyte{'.gz' if compress else ''}"
            path.write_bytes(gzip.compress(data, mtime=0) if compress else data)
    return arrays


@pytest.mark.parametrize("compress", [True, False])
def test_idx_is_read_as_written(tmp_path, compress):
    arrays = write_idx(tmp_path / "mnist", compress=compress)
    for split, stem in (("train", "train"), ("test", "t10k")):
        source = open_idx(tmp_path / "mnist", split)
        assert np.array_equal(source.images.squeeze(1).numpy(), arrays[stem][0])
        assert np.array_equal(source.labels.numpy(), arrays[stem][1])
        assert source.classes == list("0123456789") and source.channels == 1
        image, label = source.read(2)
        assert (
            image.shape == (1, 6, 5) and image.dtype == torch.uint8 and label == arrays[stem][1][2]
        )


def test_the_last_images_of_the_training_set_are_for_validation(tmp_path):
    arrays = write_idx(tmp_path / "fashion-mnist")
    data = ImageData(format="idx", path=str(tmp_path / "fashion-mnist"), channels=1, validation=7)
    parts = {split: open_images(data, split) for split in ("train", "validation", "test")}
    assert {split: len(part) for split, part in parts.items()} == {
        "train": 23,
        "validation": 7,
        "test": 5,
    }
    assert np.array_equal(parts["validation"].labels.numpy(), arrays["train"][1][-7:])
    assert np.array_equal(parts["train"].labels.numpy(), arrays["train"][1][:-7])
    assert parts["train"].classes[9] == "Ankle boot"
    assert len({part.fingerprint() for part in parts.values()}) == 3
    with pytest.raises(UserError, match="has 30 images, and validation would hold out 30"):
        open_images(ImageData(format="idx", path=data.path, channels=1, validation=30), "train")


GOOD = idx(np.zeros((4, 3, 3), np.uint8))


@pytest.mark.parametrize(
    "content, message",
    [
        (GOOD[:-1], r"is truncated: \(4, 3, 3\) needs 36 bytes, and it has 35"),
        (GOOD + b"x", "is longer than it should be"),
        (GOOD[:9], "ends within its header"),
        (gzip.compress(GOOD, mtime=0)[:-9], "may be truncated"),
        (b"PK" + GOOD, "must start with two zero bytes"),
        (b"", "must start with two zero bytes"),
        (idx(np.zeros((4, 3, 3), np.float32), kind=0x0D), "only unsigned bytes"),
    ],
)
def test_damaged_idx(tmp_path, content, message):
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_idx(path)


def test_idx_parts_that_do_not_fit(tmp_path):
    folder = tmp_path / "mnist"
    write_idx(folder)
    labels = folder / "train-labels-idx1-ubyte.gz"
    labels.write_bytes(idx(np.zeros(29, np.uint8)))
    with pytest.raises(UserError, match="30 images and 29 labels"):
        open_idx(folder, "train")
    labels.write_bytes(idx(np.full(30, 10, np.uint8)))
    with pytest.raises(
        UserError, match="label 10 of image 0 is out of range; 10 classes have labels 0 to 9"
    ):
        open_idx(folder, "train")
    labels.unlink()
    with pytest.raises(UserError, match="has no train-labels-idx1-ubyte"):
        open_idx(folder, "train")


def test_fashion_mnist_whole(shared):
    data = ImageData(format="idx", path=str(shared / "data" / "fashion-mnist"), channels=1)
    assert [len(open_images(data, split)) for split in ("train", "validation", "test")] == [
        55000,
        5000,
        10000,
    ]
    train = open_images(data, "train")
    assert train.images.shape == (55000, 1, 28, 28)
    assert train.labels.bincount().min() > 5000


# ------------------------------------------------------------------------------------------- CIFAR


def write_cifar(root, classes: int, form: str, per_file: int = 4):
    """Returns the images and labels of train, and of test."""
    folder = (
        root
        / {
            (10, "bin"): "cifar-10-batches-bin",
            (10, "py"): "cifar-10-batches-py",
            (100, "bin"): "cifar-100-binary",
            (100, "py"): "cifar-100-python",
        }[classes, form]
    )
    folder.mkdir(parents=True)
    names = [f"class{number}" for number in range(classes)]
    if form == "bin":
        (folder / ("batches.meta.txt" if classes == 10 else "fine_label_names.txt")).write_text(
            "\n".join(names) + "\n\n"
        )
    else:
        key = b"label_names" if classes == 10 else b"fine_label_names"
        (folder / ("batches.meta" if classes == 10 else "meta")).write_bytes(
            pickle.dumps({key: [name.encode() for name in names]}, 2)
        )
    stems = {
        "train": [f"data_batch_{n}" for n in range(1, 6)] if classes == 10 else ["train"],
        "test": ["test_batch" if classes == 10 else "test"],
    }
    written = {}
    for split, files in stems.items():
        images = []
        labels = []
        for file in files:
            pixels = RANDOM.integers(256, size=(per_file, 3072), dtype=np.uint8)
            fine = RANDOM.integers(classes, size=per_file)
            images.append(pixels)
            labels.append(fine)
            if form == "bin":
                columns = (
                    [fine[:, None]] if classes == 10 else [np.zeros((per_file, 1)), fine[:, None]]
                )
                (folder / f"{file}.bin").write_bytes(
                    np.concatenate([*columns, pixels], 1).astype(np.uint8).tobytes()
                )
            else:
                content = {
                    b"data": pixels,
                    (b"labels" if classes == 10 else b"fine_labels"): fine.tolist(),
                    b"coarse_labels": [0],
                    b"filenames": [b"x.png"],
                    b"batch_label": b"one",
                }
                (folder / file).write_bytes(pickle.dumps(content, 2))
        written[split] = np.concatenate(images), np.concatenate(labels)
    return folder, written


@pytest.mark.parametrize("form", ["bin", "py"])
@pytest.mark.parametrize("classes", [10, 100])
def test_cifar_is_read_as_written(tmp_path, classes, form):
    folder, written = write_cifar(tmp_path, classes, form)
    for place in (folder, tmp_path):
        for split in ("train", "test"):
            source = open_cifar(place, split)
            images, labels = written[split]
            assert np.array_equal(
                source.images.numpy(), images.reshape(-1, 3, 32, 32)
            )  # red plane, green, blue
            assert np.array_equal(source.labels.numpy(), labels)
            assert source.classes == [f"class{number}" for number in range(classes)]


def test_damaged_cifar(tmp_path):
    folder, _ = write_cifar(tmp_path, 10, "bin")
    path = folder / "data_batch_3.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(
        UserError, match="data_batch_3.bin is truncated: 12291 bytes are not whole records of 3073"
    ):
        open_cifar(folder, "train")
    path.write_bytes(b"\x0a" + bytes(3072))
    with pytest.raises(UserError, match="data_batch_3.bin: label 10 of image 0 is out of range"):
        open_cifar(folder, "train")
    path.unlink()
    with pytest.raises(UserError, match="data_batch_3.bin cannot be read: No such file"):
        open_cifar(folder, "train")
    with pytest.raises(UserError, match="holds no CIFAR"):
        open_cifar(tmp_path / "elsewhere", "train")


@pytest.mark.parametrize(
    "content, message",
    [
        ({b"data": np.zeros((2, 3072), np.uint8)}, "must be a dictionary with data and labels"),
        ([1, 2], "must be a dictionary"),
        (
            {b"data": np.zeros((2, 3073), np.uint8), b"labels": [0, 1]},
            r"must be uint8 \[N, 3072\], 3 channels of 32 x 32",
        ),
        ({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0]}, "must be 2 integers"),
        ({b"data": np.zeros((2, 3072), np.uint8), b"labels": ["a", "b"]}, "must be 2 integers"),
    ],
)
def test_pickles_of_other_content(tmp_path, content, message):
    folder, _ = write_cifar(tmp_path, 10, "py")
    (folder / "test_batch").write_bytes(pickle.dumps(content, 2))
    with pytest.raises(UserError, match=message):
        open_cifar(folder, "test")


class Evil:
    """A pickle that calls something when it is read."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def test_a_pickle_that_is_a_program_is_refused_before_it_runs(tmp_path):
    import codecs
    import os

    marker = tmp_path / "marker"
    path = tmp_path / "test_batch"
    for evil in (
        Evil(os.mkdir, str(marker)),
        Evil(eval, f"open({str(marker)!r}, 'w')"),
        Evil(getattr, "text", "upper"),
        {b"data": [Evil(os.system, f"touch {marker}")]},
    ):
        path.write_bytes(pickle.dumps(evil, 2))
        with pytest.raises(UserError, match="which plain data never needs; it was not run"):
            load_plain_pickle(path)
        assert not marker.exists()
    path.write_bytes(pickle.dumps(Evil(codecs.encode, "text", "rot13"), 2))
    with pytest.raises(UserError, match="asks for the codec 'rot13'"):
        load_plain_pickle(path)
    pickle.loads(pickle.dumps(Evil(os.mkdir, str(marker)), 2))
    assert marker.exists()  # the ordinary reader does run it


@pytest.mark.parametrize("protocol", range(2, 6))
def test_every_protocol_of_plain_data(tmp_path, protocol):
    path = tmp_path / "data"
    path.write_bytes(
        pickle.dumps(
            {b"data": RANDOM.integers(9, size=(3, 4)), b"x": [1, 2.5, "s", b"\xff", None]}, protocol
        )
    )
    assert load_plain_pickle(path)[b"data"].shape == (3, 4)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match="is not a whole pickle"):
        load_plain_pickle(path)
