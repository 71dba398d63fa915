"""Opens the labelled images that a recipe names.

Examples, as YAML under `data:` of a recipe:

    {format: idx, path: fashion-mnist, channels: 1}
    {format: cifar, path: cifar-10-batches-bin}
    {format: imagenet, path: imagenet}
    {format: dataset, path: uoft-cs/cifar10, image_field: img}

    format: shards
    splits: {train: "in1k-train-{0000..1023}.tar", validation: "in1k-val-*.tar"}
    classes: 1000
"""

from dataclasses import dataclass, field
from typing import Literal

from hgrn.data.images.cifar import open_cifar
from hgrn.data.images.folders import FolderSource, check_imagenet, split_folder
from hgrn.data.images.hub import HubSource
from hgrn.data.images.idx import open_idx
from hgrn.data.images.shards import ShardSource, expand_shards
from hgrn.data.images.source import ImageSource, hold_out
from hgrn.errors import UserError
from hgrn.files import expanded

MOST_CLASSES = 1_000_000
SPLITS = ("train", "validation", "test")
CHANNELS = {"idx": 1, "cifar": 3}


@dataclass(frozen=True, kw_only=True)
class ImageData:
    """The section `data` of a recipe for images; the splits are train, validation and test.

    format: "idx" (MNIST, Fashion-MNIST); "cifar" (10 or 100, binary or pickle); "folder"
    (train/CLASS/..., and validation or val, test); "imagenet" (the same with its 1000 classes);
    "shards" (WebDataset); "dataset" (Hugging Face `datasets`).

    path: a folder, or for "dataset" a name. splits: for "shards" a pattern for each split, for
    "dataset" the names of splits that are called otherwise there. channels: 1 or 3. classes: for
    "shards" their number or names, for "idx" their names. validation: how many training images are
    held out where there is no validation split: the last ones of idx and CIFAR, whose published
    order is random, and a fixed random draw of the others. config, image_field: for "dataset".
    label_field: for "dataset" the column of labels, for "shards" the key in .json members. buffer:
    for "shards", how many samples are shuffled among each other.
    """

    __pydantic_config__ = {"extra": "forbid"}

    format: Literal["idx", "cifar", "folder", "imagenet", "shards", "dataset"]
    path: str | None = None
    splits: dict[str, str] = field(default_factory=dict)
    channels: int = 3
    classes: int | list[str] | None = None
    validation: int = 5000
    config: str | None = None
    image_field: str = "image"
    label_field: str = "label"
    buffer: int = 1000


def problems(data: ImageData) -> list[str]:
    """Everything that can be seen to be wrong without reading images or asking a network."""
    found = []
    if data.channels not in (1, 3):
        found.append(f"channels must be 1 or 3; got {data.channels}")
    elif data.channels != CHANNELS.get(data.format, data.channels):
        needed = CHANNELS[data.format]
        found.append(
            f"format {data.format} has {needed} channels; got {data.channels}: set channels: "
            f"{needed}"
        )
    if data.validation < 1:
        found.append(f"validation must be at least 1; got {data.validation}")
    if isinstance(data.classes, int) and not 1 <= data.classes <= MOST_CLASSES:
        found.append(f"classes must be from 1 to {MOST_CLASSES:,}; got {data.classes}")
    if data.buffer < 1:
        found.append(f"buffer must be at least 1; got {data.buffer}")
    if odd := [name for name in data.splits if name not in SPLITS]:
        found.append(f"splits: {odd[0]} is not one of {', '.join(SPLITS)}")
    if data.format == "shards":
        found += _shard_problems(data)
    elif data.path is None:
        found.append(f"path is missing; format {data.format} needs it")
    elif data.format != "dataset" and not expanded(data.path).is_dir():
        found.append(f"path: there is no folder {data.path}")
    return found


def open_images(data: ImageData, split: str) -> ImageSource:
    """Open one split, "train", "validation" or "test".

    Raises UserError for whatever is wrong with it.
    """
    if split not in SPLITS:
        raise UserError(f"split must be one of {', '.join(SPLITS)}; got {split!r}")
    if found := problems(data):
        raise UserError("\n".join(f"data: {problem}" for problem in found))
    if data.format in ("idx", "cifar"):
        return _open_fixed(data, split)
    if data.format in ("folder", "imagenet"):
        return _open_folder(data, split)
    return _open_listed(data, split)


def _open_fixed(data: ImageData, split: str) -> ImageSource:
    """A split of idx or CIFAR files, whose published form has no validation split."""
    folder = expanded(_path(data))
    published = "test" if split == "test" else "train"
    if data.format == "idx":
        classes = data.classes if isinstance(data.classes, list) else None
        whole = open_idx(folder, published, classes)
    else:
        whole = open_cifar(folder, published)
    if split == "test":
        return whole
    # The validation images come last, so both parts are slices that share memory.
    border = len(whole) - data.validation
    if border < 1:
        raise UserError(
            f"{whole.name} has {len(whole)} images, and validation would hold out "
            f"{data.validation}; use fewer"
        )
    start, stop = (border, len(whole)) if split == "validation" else (0, border)
    return whole.part(f"{folder} {split}", start, stop)


def _open_folder(data: ImageData, split: str) -> ImageSource:
    """A split of a folder of folders; classes are those of the training set."""
    root = expanded(_path(data))
    folder = split_folder(root, split)
    train_folder = split_folder(root, "train")
    if train_folder is None:
        raise UserError(
            f"{root} has no folder train; it must hold train, and may hold validation (or val) and "
            "test, each with one folder of images for each class"
        )
    if split == "test" and folder is None:
        raise UserError(f"{root} has no folder test; use the validation split")
    # Read for every split, because all must have the classes of the training set.
    train = FolderSource(train_folder, data.channels)
    if data.format == "imagenet":
        check_imagenet(train)
    if split_folder(root, "validation") is None and split != "test":
        return hold_out(train, data.validation, validation=split == "validation")
    if split == "train" or folder is None:
        return train
    return FolderSource(folder, data.channels, classes=train.classes)


def _open_listed(data: ImageData, split: str) -> ImageSource:
    """A split of shards or of a data set, by the names in `splits`."""

    def open_named(name: str) -> ImageSource:
        if data.format == "shards":
            assert data.classes is not None  # `problems` has seen to that
            return ShardSource(
                data.splits[name], data.channels, data.classes, data.label_field, data.buffer
            )
        return HubSource(
            _path(data),
            data.config,
            data.splits.get(name, name),
            data.image_field,
            data.label_field,
            data.channels,
        )

    # If the recipe names no validation split, it is drawn from the training set.
    if "validation" in data.splits or split == "test":
        if data.format == "shards" and split not in data.splits:
            raise UserError(f"data: splits: {split} is missing; there is {', '.join(data.splits)}")
        return open_named(split)
    return hold_out(open_named("train"), data.validation, validation=split == "validation")


def _path(data: ImageData) -> str:
    assert data.path is not None  # `problems` has seen to that
    return data.path


def _shard_problems(data: ImageData) -> list[str]:
    found = []
    if "train" not in data.splits:
        found.append("splits: train is missing; format shards needs a pattern for each split")
    if data.classes is None:
        found.append("classes is missing; format shards needs their number or names")
    for name, pattern in data.splits.items():
        try:
            expand_shards(pattern)
        except UserError as error:
            found.append(f"splits: {name}: {error}")
    return found
