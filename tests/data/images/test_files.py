"""Folders, data sets and shards of encoded images."""

import io
import json
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from hgrn.data.images.decoding import decode
from hgrn.data.images.folders import FolderSource
from hgrn.data.images.opening import ImageData, open_images, problems
from hgrn.data.images.shards import ShardSource, expand_shards
from hgrn.data.images.source import CorruptImage
from hgrn.errors import UserError
from tests.data.images.conftest import encoded

# ---------------------------------------------------------------------------------------- decoding


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_decoding_gives_the_pixels(form):
    data = encoded(form=form)
    image = decode(data, "a", 3)
    assert image.shape == (3, 12, 16) and image.dtype == torch.uint8 and image.is_contiguous()
    assert np.array_equal(
        image.permute(1, 2, 0).numpy(), np.array(Image.open(io.BytesIO(data)).convert("RGB"))
    )


def test_channels():
    assert decode(encoded(mode="L"), "a", 1).shape == (1, 12, 16)
    grey = decode(encoded(mode="L"), "a", 3)
    assert torch.equal(grey[0], grey[2])
    assert decode(encoded(mode="RGBA"), "a", 3).shape == (3, 12, 16)
    with pytest.raises(
        UserError, match=r"a.png has colour \(mode RGB\), and channels is 1; set channels to 3"
    ):
        decode(encoded(), "a.png", 1)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_truncated_and_foreign_data_is_corrupt(form):
    data = encoded(height=64, width=64, form=form)
    for damaged in (data[: len(data) // 2], data[:20], b"", b"GIF89a"):
        with pytest.raises(CorruptImage, match="^x.jpg: "):
            decode(damaged, "x.jpg", 3)
    deep = io.BytesIO()
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(deep, "PNG")
    with pytest.raises(CorruptImage, match="8 bits a channel"):
        decode(deep.getvalue(), "x.png", 1)


# ----------------------------------------------------------------------------------------- folders


def test_folders_are_classes(image_folder):
    data = ImageData(format="folder", path=str(image_folder))
    assert problems(data) == []
    parts = {split: open_images(data, split) for split in ("train", "validation", "test")}
    assert [len(part) for part in parts.values()] == [12, 4, 4]
    train = parts["train"]
    assert train.classes == ["ant", "bee"]
    for index in range(12):
        image, label = train.read(index)
        assert label == index // 6
        assert torch.equal(image, decode(encoded(100 * label + index % 6), "", 3))
    assert (
        train.fingerprint()
        == open_images(data, "train").fingerprint()
        != parts["test"].fingerprint()
    )


def test_validation_is_held_out_where_there_is_none(image_folder):
    (image_folder / "val").rename(image_folder / "unused")
    data = ImageData(format="folder", path=str(image_folder), validation=5)
    train = open_images(data, "train")
    validation = open_images(data, "validation")
    assert len(train) == 7 and len(validation) == 5 and train.classes == ["ant", "bee"]
    assert sorted([*train.indices, *validation.indices]) == list(range(12))
    assert {validation.read(index)[1] for index in range(5)} == {0, 1}
    with pytest.raises(
        UserError, match="12 images cannot be held out of 12; give a number between 1 and 11"
    ):
        open_images(ImageData(format="folder", path=str(image_folder), validation=12), "train")


def test_folders_that_are_wrong(image_folder):
    train = image_folder / "train"
    with pytest.raises(UserError, match="ant has no classes: .* its images lie side by side"):
        FolderSource(train / "ant", 3)
    (train / "cow").mkdir()
    with pytest.raises(UserError, match="class folder .*cow has no .jpg, .jpeg, .png, .webp files"):
        FolderSource(train, 3)
    with pytest.raises(
        UserError, match="cow has no classes: it must hold one folder of images for each class$"
    ):
        FolderSource(train / "cow", 3)
    (train / "cow").rmdir()
    with pytest.raises(UserError, match="must hold the 1000 folders .*; ant is not such a name"):
        open_images(ImageData(format="imagenet", path=str(image_folder)), "train")
    (image_folder / "val" / "bee").rename(image_folder / "val" / "wasp")
    with pytest.raises(
        UserError, match="other classes than the training set: bee, wasp in one of them only"
    ):
        open_images(ImageData(format="folder", path=str(image_folder)), "validation")
    with pytest.raises(UserError, match="there is no folder .*nowhere"):
        open_images(ImageData(format="folder", path=str(image_folder / "nowhere")), "train")
    with pytest.raises(UserError, match="has no folder train"):
        open_images(ImageData(format="folder", path=str(train)), "train")


def test_imagenet_has_its_thousand_classes(tmp_path):
    picture = encoded(height=4, width=4)
    for number in range(1000):
        folder = tmp_path / "train" / f"n{number:08d}"
        folder.mkdir(parents=True)
        (folder / "a.JPEG").write_bytes(picture)
    data = ImageData(format="imagenet", path=str(tmp_path), validation=10)
    assert len(open_images(data, "train")) == 990
    (folder / "a.JPEG").unlink()
    folder.rmdir()
    with pytest.raises(UserError, match="there are 999"):
        open_images(data, "train")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"channels": 2}, "channels must be 1 or 3; got 2"),
        ({"format": "idx"}, "format idx has 1 channels; got 3: set channels: 1"),
        ({"validation": 0}, "validation must be at least 1; got 0"),
        ({"path": None}, "path is missing; format folder needs it"),
        ({"splits": {"dev": "x"}}, "splits: dev is not one of train, validation, test"),
        ({"format": "shards"}, "splits: train is missing"),
        ({"format": "shards"}, "classes is missing"),
        (
            {"format": "shards", "classes": 2, "splits": {"train": "nowhere-{0..1}.tar"}},
            "splits: train: no shard nowhere-0.tar",
        ),
    ],
)
def test_problems_of_the_description(tmp_path, change, message):
    found = problems(ImageData(**{"format": "folder", "path": str(tmp_path)} | change))
    assert any(each.startswith(message) for each in found), found


# --------------------------------------------------------------------------------------- data sets


def test_data_sets(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    features = datasets.Features(
        {
            "img": datasets.Image(),
            "kind": datasets.ClassLabel(names=["ant", "bee"]),
            "note": datasets.Value("string"),
        }
    )
    pictures = [encoded(number) for number in range(6)]
    pictures[4] = pictures[4][:40]
    rows = {
        "img": [{"bytes": data, "path": None} for data in pictures],
        "kind": [0, 1, 0, 1, 0, 1],
        "note": ["x"] * 6,
    }
    whole = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict({"train": whole, "dev": whole}).save_to_disk(str(tmp_path / "saved"))
    data = ImageData(
        format="dataset",
        path=str(tmp_path / "saved"),
        image_field="img",
        label_field="kind",
        splits={"validation": "dev"},
    )
    for split in ("train", "validation"):
        source = open_images(data, split)
        assert len(source) == 6 and source.classes == ["ant", "bee"]
        image, label = source.read(3)
        assert torch.equal(image, decode(pictures[3], "", 3)) and label == 1
        with pytest.raises(
            CorruptImage, match=f"image 4 of split '{'dev' if split == 'validation' else 'train'}'"
        ):
            source.read(4)
    with pytest.raises(UserError, match="it has no split 'test'; there is train, dev"):
        open_images(data, "test")
    held = ImageData(
        format="dataset", path=data.path, image_field="img", label_field="kind", validation=2
    )
    assert [len(open_images(held, split)) for split in ("train", "validation")] == [4, 2]
    for fields, message in (
        (
            {"image_field": "image", "label_field": "kind"},
            "column 'image' must be of type Image, and it is not there",
        ),
        (
            {"image_field": "img", "label_field": "note"},
            "column 'note' must be of type ClassLabel, and it is of type Value",
        ),
    ):
        with pytest.raises(UserError, match=message):
            open_images(
                ImageData(format="dataset", path=data.path, splits={"validation": "dev"}, **fields),
                "train",
            )


# ------------------------------------------------------------------------------------------ shards


def write_shard(path, members, kind=None, linkname=""):
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if content is None:
                info.type = kind
                info.linkname = linkname
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def sample(number: int, label: int, suffix: str = "cls"):
    content = json.dumps({"label": label}) if suffix == "json" else f"{label}\n"
    return [
        (f"{number:04d}.png", encoded(number, 4, 4)),
        (f"{number:04d}.{suffix}", content.encode()),
    ]


@pytest.fixture
def shards(tmp_path):
    """Three shards of 5, 9 and 6 samples with labels number % 3, in all three forms of labels."""
    number = 0
    for shard, (count, suffix) in enumerate(((5, "cls"), (9, "json"), (6, "txt"))):
        members = []
        for _ in range(count):
            members += sample(number, number % 3, suffix)
            number += 1
        write_shard(tmp_path / f"part-{shard:03d}.tar", members)
    return str(tmp_path / "part-{000..002}.tar")


def test_shards_are_read_as_written(shards):
    source = ShardSource(shards, 3, 3)
    assert len(source) == 20 and source.classes == ["0", "1", "2"]
    for number in range(20):
        image, label = source.read(number)
        assert label == number % 3 and torch.equal(image, decode(encoded(number, 4, 4), "", 3))


def test_shards_are_shuffled_by_shard_and_within_a_buffer(shards):
    places = np.arange(20)
    ordered = ShardSource(shards, 3, 3, buffer=1)
    borders = [range(5), range(5, 14), range(14, 20)]
    seen = set()
    for epoch in range(8):
        order = ordered.order(places, 0, epoch).tolist()
        runs = sorted(borders, key=lambda run: order.index(run[0]))
        assert order == [index for run in runs for index in run]
        seen.add(tuple(order))
    assert len(seen) > 2
    shuffled = ShardSource(shards, 3, 3, buffer=4)
    order = shuffled.order(places, 5, 1)
    assert sorted(order.tolist()) == list(range(20)) and np.array_equal(
        order, shuffled.order(places, 5, 1)
    )
    assert not np.array_equal(order, shuffled.order(places, 5, 2)) and not np.array_equal(
        order, shuffled.order(places, 6, 1)
    )
    assert np.array_equal(shuffled.order(np.array([3, 17]), 5, 1), order[[3, 17]])
    straight = ordered.order(
        places, 5, 1
    ).tolist()  # reading stays near the order on disk: none comes early by 4 or more
    assert all(straight.index(index) - place < 4 for place, index in enumerate(order.tolist()))


def test_patterns(shards, tmp_path):
    assert len(expand_shards(str(tmp_path / "part-*.tar"))) == 3
    assert [path.name for path in expand_shards(str(tmp_path / "part-00{0,2}.tar"))] == [
        "part-000.tar",
        "part-002.tar",
    ]
    assert len(expand_shards(str(tmp_path / "pa{rt,rt}-{000..002}.tar"))) == 3
    with pytest.raises(UserError, match="no shard .*part-003.tar"):
        expand_shards(str(tmp_path / "part-{000..003}.tar"))
    with pytest.raises(UserError, match=r"no shard .*other-\*.tar"):
        expand_shards(str(tmp_path / "other-*.tar"))


PICTURE = encoded(0, 4, 4)


@pytest.mark.parametrize(
    "members, message",
    [
        (
            [*sample(0, 1), ("0001.npy", b"x")],
            "member '0001.npy' is neither an image .* nor a label",
        ),
        ([*sample(0, 1), ("README", b"x")], "member 'README' is neither"),
        ([("0.png", PICTURE)], "sample 0 needs one image and a label, and has .png"),
        ([("0.cls", b"1")], "sample 0 needs one image and a label, and has .cls"),
        ([("0.png", PICTURE), ("0.jpg", PICTURE), ("0.cls", b"1")], "needs one image"),
        ([("0.png", PICTURE), ("0.png", PICTURE), ("0.cls", b"1")], "two members .png"),
        (sample(0, 3), "member '0000.cls' has label 3; 3 classes have labels 0 to 2"),
        (sample(0, -1), "has label -1; 3 classes"),
        (
            [("0.png", PICTURE), ("0.cls", b"ant")],
            "member '0.cls' must be a whole number; it starts 'ant'",
        ),
        (
            [("0.png", PICTURE), ("0.json", b'{"label": true}')],
            "JSON object with a whole number under 'label'",
        ),
        ([("0.png", PICTURE), ("0.json", b"[1")], "JSON object with a whole number under 'label'"),
        ([("/0.png", PICTURE), ("/0.cls", b"1")], "member '/0.png' has a path that leads out"),
        ([("a/../../0.png", PICTURE)], "has a path that leads out"),
        ([], "holds no samples"),
    ],
)
def test_shards_that_are_wrong(tmp_path, members, message):
    write_shard(tmp_path / "a.tar", members)
    with pytest.raises(UserError, match=message):
        ShardSource(str(tmp_path / "a.tar"), 3, 3)


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE]
)
def test_links_and_devices_are_refused(tmp_path, kind):
    write_shard(tmp_path / "a.tar", [("0.png", None), ("0.cls", b"1")], kind, "/etc/hostname")
    with pytest.raises(UserError, match="member '0.png' is a link or a special file"):
        ShardSource(str(tmp_path / "a.tar"), 3, 3)


def test_damaged_shards(tmp_path, shards):
    whole = (tmp_path / "part-001.tar").read_bytes()
    path = tmp_path / "b.tar"
    for content in (
        whole[:700],
        whole[: whole.rfind(b'{"label"') + 3],
        b"no tar at all" * 100,
        b"",
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match="b.tar (is not a whole plain tar file|is truncated)"):
            ShardSource(str(path), 3, 3)
