"""Contact sheets: one picture for each augmentation, with its effect on some images."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from hgrn.data.images import augment
from hgrn.data.images.augment import Augmentation, drawing_from, resize_and_crop
from hgrn.data.images.decoding import pillow
from hgrn.data.images.mixing import Mixing, mix
from hgrn.data.images.randaugment import rand_augment
from hgrn.data.images.source import CorruptImage, ImageSource
from hgrn.data.shuffle import hashed, shuffled
from hgrn.errors import UserError
from hgrn.files import whole_file

if TYPE_CHECKING:
    from PIL.Image import Image

GAP = 2  # pixels between images
SMALL = 56  # smaller images are drawn this large

Change = Callable[[torch.Tensor, int], torch.Tensor]


def preview(
    source: ImageSource,
    folder: Path,
    size: int,
    settings: Augmentation,
    mixing: Mixing,
    *,
    columns: int = 12,
    rows: int = 4,
    seed: int = 0,
) -> list[Path]:
    """Write NAME.png for each augmentation that is on, and `all.png`; return the paths.

    The first row of a sheet shows the images as they are, and every other row one draw. size: the
    model's image size. Raises UserError if nothing is on, and for whatever is wrong with settings
    or images.
    """
    if found := settings.problems() + mixing.problems():
        raise UserError("; ".join(found))
    images, labels = _some(source, columns, size, seed)
    changes = _changes(settings)
    whole = list(changes.values())
    # `all.png` mixes as training does, by mixup or cutmix; each of the two also gets a sheet.
    if mixing.mixup or mixing.cutmix:
        whole.append(_mixed(mixing, labels, len(source.classes)))
    for name in ("mixup", "cutmix"):
        if alpha := getattr(mixing, name):
            changes[name] = _mixed(Mixing(**{name: alpha}), labels, len(source.classes))
    if not changes:
        raise UserError(
            "no augmentation is on, so there is nothing to preview; turn some on in the recipe"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"folder {folder} cannot be made: {error.strerror}") from None
    written = []
    for name, change in [*changes.items(), ("all", _chain(whole))]:
        drawn = [change(images, hashed(seed, row) >> 1) for row in range(rows)]
        path = folder / f"{name}.png"
        with whole_file(path) as draft:
            _sheet([images, *drawn]).save(draft, optimize=True)
        written.append(path)
    return written


def _some(
    source: ImageSource, count: int, size: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Images float [count, C, size, size], drawn from the whole source, and their labels.

    Corrupt ones are passed over.
    """
    images = []
    labels = []
    for index in shuffled(np.arange(len(source)), len(source), seed, 0).tolist():
        try:
            image, label = source.read(index)
        except CorruptImage:
            continue
        images.append(resize_and_crop(image.unsqueeze(0), size, size)[0].float() / 255)
        labels.append(label)
        if len(images) == count:
            break
    if not images:
        raise UserError(f"{source.name} has no image that can be read")
    return torch.stack(images), torch.tensor(labels, device="cpu")


def _changes(settings: Augmentation) -> dict[str, Change]:
    """The augmentations that are on, in the order of training.

    Each takes images in [0, 1] and a seed.
    """
    made: dict[str, Change] = {}
    if settings.crop == "padded":
        made["padded_crop"] = _drawn(lambda images: augment.padded_crop(images, settings.padding))
    if settings.crop == "resized":
        made["resized_crop"] = _drawn(
            lambda images: augment.random_resized_crop(
                images, images.shape[-1], settings.scale, settings.ratio
            )
        )
    if settings.flip:
        made["flip"] = _drawn(lambda images: augment.flip(images, settings.flip))
    if settings.randaugment:
        made["randaugment"] = _drawn(
            lambda images: rand_augment(
                images, settings.randaugment, settings.randaugment_deviation
            )
        )
    if settings.erasing:
        # Training fills with noise after the normalisation. Here that is (x - 1/2) * 4, so that
        # noise around 0 shows as noise around grey.
        made["erasing"] = _drawn(
            lambda images: augment.erase((images - 0.5) * 4, settings.erasing) / 4 + 0.5
        )
    return made


def _mixed(mixing: Mixing, labels: torch.Tensor, classes: int) -> Change:
    return lambda images, seed: mix(images, labels, classes, mixing, seed)[0]


def _drawn(change: Callable[[torch.Tensor], torch.Tensor]) -> Change:
    def call(images: torch.Tensor, seed: int) -> torch.Tensor:
        with drawing_from(seed):
            return change(images)

    return call


def _chain(changes: list[Change]) -> Change:
    def call(images: torch.Tensor, seed: int) -> torch.Tensor:
        for number, change in enumerate(changes):
            images = change(images, hashed(seed, number) >> 1)
        return images

    return call


def _sheet(rows: list[torch.Tensor]) -> "Image":
    """Draw rows of images, each row [n, C, H, W] in [0, 1], with a wider gap below the first."""
    pillow_image = pillow()
    height, width = rows[0].shape[-2:]
    scale = max(1, SMALL // height)
    across = width * scale + GAP
    down = height * scale + GAP
    sheet = np.full((down * len(rows) + 4 * GAP, across * len(rows[0]) + GAP, 3), 255, np.uint8)
    for number, row in enumerate(rows):
        levels = (row.clamp(0, 1) * 255).round().to(torch.uint8)
        pixels = levels.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()  # grey becomes RGB
        top = GAP + number * down + (3 * GAP if number else 0)
        for column, image in enumerate(pixels):
            left = GAP + column * across
            large = image.repeat(scale, 0).repeat(scale, 1)
            sheet[top : top + height * scale, left : left + width * scale] = large
    return pillow_image.fromarray(sheet)
