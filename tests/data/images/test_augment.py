"""Augmentation and mixing: each does what its name says, and a seed says all of it."""

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from hgrn.data.images import augment
from hgrn.data.images.augment import (
    IMAGENET,
    LIGHT,
    Augmentation,
    EvaluationTransform,
    Normalisation,
    TrainingTransform,
    drawing_from,
)
from hgrn.data.images.mixing import Mixing, label_matrix, mix
from hgrn.data.images.preview import preview
from hgrn.data.images.randaugment import OPERATIONS, rand_augment
from hgrn.errors import UserError

PLAIN = Normalisation((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def pictures(count: int = 6, channels: int = 3, height: int = 16, width: int = 16) -> torch.Tensor:
    return torch.randint(
        256,
        (count, channels, height, width),
        dtype=torch.uint8,
        generator=torch.Generator().manual_seed(0),
    )


def as_pillow(image: torch.Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def from_pillow(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


# -------------------------------------------------------------------------------------- transforms


@pytest.mark.parametrize(
    "settings", [IMAGENET, LIGHT, Augmentation()], ids=["imagenet", "light", "none"]
)
@pytest.mark.parametrize("channels", [1, 3])
def test_equal_seeds_give_equal_batches_and_leave_the_global_generator(settings, channels):
    transform = TrainingTransform(settings, 12, Normalisation((0.5,) * channels, (0.2,) * channels))
    images = pictures(channels=channels)
    kept = images.clone()

    def call(seed: int) -> torch.Tensor:
        torch.manual_seed(len(made))
        return transform(transform.fit_batch(images, seed), seed)

    made: list[torch.Tensor] = []
    state = torch.get_rng_state()
    made += [call(1)]
    made += [call(1)]
    assert (
        made[0].shape == (6, channels, 12, 12)
        and made[0].dtype == torch.float32
        and made[0].isfinite().all()
    )
    assert torch.equal(made[0], made[1]) and torch.equal(images, kept)
    assert torch.equal(made[0], call(2)) == (settings == Augmentation())
    torch.set_rng_state(state)
    transform(transform.fit(images[0], 3).unsqueeze(0), 3)
    assert torch.equal(torch.get_rng_state(), state)


def test_nothing_is_done_by_default():
    images = pictures()
    transform = TrainingTransform(Augmentation(), 16, PLAIN)
    assert torch.equal(transform(transform.fit_batch(images, 0), 0), images / 255)


@pytest.mark.parametrize("height, width", [(40, 60), (61, 33), (20, 20), (9, 14)])
def test_evaluation_resizes_as_pillow_does(height, width):
    """Within what rounding between the two passes of Pillow gives."""
    yy, xx = torch.meshgrid(
        torch.linspace(0, 9, height), torch.linspace(0, 7, width), indexing="ij"
    )
    image = (127 + 120 * torch.stack([yy.sin(), xx.cos(), (xx + yy).sin()])).to(torch.uint8)
    made = EvaluationTransform(16, PLAIN, resize=20).fit(image)
    shorter = min(height, width)
    resized = as_pillow(image).resize(
        (int(20 * width / shorter), int(20 * height / shorter)), Image.Resampling.BICUBIC
    )
    left = round((resized.width - 16) / 2)
    top = round((resized.height - 16) / 2)
    expected = np.array(resized.crop((left, top, left + 16, top + 16))).astype(int)
    assert np.abs(made.permute(1, 2, 0).numpy().astype(int) - expected).max() <= 1


def test_normalisation():
    images = torch.rand(2, 3, 4, 4)
    made = Normalisation((0.1, 0.2, 0.3), (1.0, 2.0, 4.0))(images)
    assert torch.allclose(made[:, 2], (images[:, 2] - 0.3) / 4)
    with pytest.raises(UserError, match="images have 3 channels, and mean and std 1"):
        Normalisation((0.5,), (0.5,))(images)
    with pytest.raises(UserError, match="std above 0"):
        Normalisation((0.5,), (0.0,))
    with pytest.raises(UserError, match="size 20, resize 16"):
        EvaluationTransform(20, PLAIN, resize=16)


def test_padded_crop_moves_by_at_most_the_padding():
    images = torch.zeros(64, 1, 9, 9)
    images[..., 4, 4] = 1
    with drawing_from(0):
        places = augment.padded_crop(images, 2).squeeze(1).nonzero()[:, 1:]
    assert len(places) == 64
    assert places.min() == 2 and places.max() == 6 and len(places.unique(dim=0)) > 10


def test_flip_takes_its_share():
    images = torch.rand(400, 1, 2, 3)
    with drawing_from(0):
        made = augment.flip(images, 0.25)
    flipped = [torch.equal(one, other.flip(-1)) for one, other in zip(made, images)]
    kept = [torch.equal(one, other) for one, other in zip(made, images)]
    assert sum(flipped) + sum(kept) == 400 and 70 < sum(flipped) < 130


def test_resized_crops_cover_the_stated_parts():
    """In a ramp from 0 to 1 one sees where each part begins and ends, and so its area."""
    ramp = torch.linspace(0, 1, 64)
    images = torch.stack([ramp.expand(64, 64), ramp.unsqueeze(1).expand(64, 64)]).expand(
        200, 2, 64, 64
    )
    with drawing_from(0):
        made = augment.random_resized_crop(images, 16, (0.25, 0.5), (0.75, 4 / 3))
    width = (made[:, 0, 8, -1] - made[:, 0, 8, 0]) * 16 / 15
    height = (made[:, 1, -1, 8] - made[:, 1, 0, 8]) * 16 / 15
    area = width * height
    ratio = width / height
    assert area.min() > 0.2 and area.max() < 0.57 and area.std() > 0.04
    assert ratio.min() > 0.65 and ratio.max() < 1.5 and ratio.std() > 0.1


def test_a_small_part_of_a_photograph_is_not_grainy():
    """A low-pass filter makes a checkerboard of pixels grey when it gets 8 times smaller."""
    board = (
        ((torch.arange(128).unsqueeze(0) + torch.arange(128).unsqueeze(1)) % 2)
        .float()
        .expand(4, 3, 128, 128)
    )
    with drawing_from(0):
        made = augment.random_resized_crop(board, 16, (0.9, 1.0), (1.0, 1.0))
    assert (made[..., 2:-2, 2:-2] - 0.5).abs().max() < 0.1


def test_erasing_fills_boxes_with_noise():
    images = torch.full((300, 3, 32, 32), 9.0)
    with drawing_from(0):
        made = augment.erase(images, 0.25)
    changed = (made != 9).all(dim=1)
    erased = changed.flatten(1).any(dim=1)
    assert 50 < erased.sum() < 100
    shares = changed[erased].float().mean((1, 2))
    assert shares.min() > 0.01 and shares.max() < 0.36
    for mask in changed[erased]:
        rows = mask.any(1).sum()
        columns = mask.any(0).sum()
        assert mask.sum() == rows * columns  # one box
    noise = made[made != 9]
    assert noise.mean().abs() < 0.02 and (noise.std() - 1).abs() < 0.02


@pytest.mark.parametrize(
    "change, message",
    [
        ({"crop": "random"}, "crop must be 'centre', 'padded' or 'resized'; got 'random'"),
        ({"flip": 1.5}, r"flip must be in \[0, 1\]"),
        ({"randaugment": 11}, r"randaugment must be in \[0, 10\]; got 11"),
        ({"scale": (0.5, 0.2)}, "scale must be"),
        ({"ratio": (0, 1)}, "ratio must be"),
        ({"padding": -1}, "padding must be"),
        ({"erasing": -1}, "erasing must be"),
        ({"randaugment_deviation": -1}, "randaugment_deviation must be"),
    ],
)
def test_settings_that_are_wrong(change, message):
    with pytest.raises(UserError, match=message):
        TrainingTransform(Augmentation(**change), 8, PLAIN)


# ------------------------------------------------------------------------------------- RandAugment

PILLOW = {
    "auto contrast": lambda image, level: ImageOps.autocontrast(image),
    "equalize": lambda image, level: ImageOps.equalize(image),
    "invert": lambda image, level: ImageOps.invert(image),
    "posterize": lambda image, level: ImageOps.posterize(image, 4 - int(level * 4)),
    "solarize": lambda image, level: ImageOps.solarize(image, 256 - int(level * 256)),
    "solarize add": lambda image, level: image.point(
        [min(255, v + int(level * 110)) if v < 128 else v for v in range(256)] * 3
    ),
    "color": lambda image, level: ImageEnhance.Color(image).enhance(1 + 0.9 * level),
    "contrast": lambda image, level: ImageEnhance.Contrast(image).enhance(1 + 0.9 * level),
    "brightness": lambda image, level: ImageEnhance.Brightness(image).enhance(1 + 0.9 * level),
    "sharpness": lambda image, level: ImageEnhance.Sharpness(image).enhance(1 + 0.9 * level),
    "rotate": lambda image, level: image.rotate(30 * level, Image.Resampling.BICUBIC),
    "shear x": lambda image, level: image.transform(
        image.size,
        Image.Transform.AFFINE,
        (1, -0.3 * level, 0.3 * level * 15.5, 0, 1, 0),
        Image.Resampling.BICUBIC,
    ),
    "shear y": lambda image, level: image.transform(
        image.size,
        Image.Transform.AFFINE,
        (1, 0, 0, -0.3 * level, 1, 0.3 * level * 15.5),
        Image.Resampling.BICUBIC,
    ),
    "translate x": lambda image, level: image.transform(
        image.size,
        Image.Transform.AFFINE,
        (1, 0, -0.45 * level * 32, 0, 1, 0),
        Image.Resampling.BICUBIC,
    ),
    "translate y": lambda image, level: image.transform(
        image.size,
        Image.Transform.AFFINE,
        (1, 0, 0, 0, 1, -0.45 * level * 32),
        Image.Resampling.BICUBIC,
    ),
}


@pytest.mark.parametrize("level", [0.25, 0.5, 0.9])
@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_are_those_of_pillow(name, level):
    """Pillow, which the authors' library calls, gives the same away from the empty corners."""
    yy, xx = torch.meshgrid(torch.linspace(0, 6, 32), torch.linspace(0, 5, 32), indexing="ij")
    image = (127 + 110 * torch.stack([yy.sin(), xx.cos(), (xx + yy).sin()])).to(torch.uint8)
    made = OPERATIONS[name]((image / 255).unsqueeze(0), torch.tensor([level])).clamp(0, 1)[0]
    expected = from_pillow(PILLOW[name](as_pillow(image), level))
    inside = (
        expected.abs().sum(0, keepdim=True) > 0
        if name[:5] in ("rotat", "shear", "trans")
        else torch.ones(1, 32, 32, dtype=bool)
    )
    difference = (made - expected).abs()[inside.expand(3, 32, 32)]
    # Other roundings, and at the borders of what moved another filter: means, not single pixels.
    assert inside.float().mean() > 0.5
    assert difference.mean() < 0.02, difference.mean()


def test_each_image_has_operations_of_its_own():
    images = pictures(1).expand(64, 3, 16, 16) / 255
    with drawing_from(0):
        made = rand_augment(images, 9, 0.5)
    assert made.min() >= 0 and made.max() <= 1
    kinds = made.flatten(1).unique(dim=0)
    assert len(kinds) > 30
    unchanged = sum(torch.equal(one, images[0]) for one in made)
    assert 5 < unchanged < 32  # a quarter have neither of the two applied


def test_two_operations_an_image_each_applied_half_of_the_time(monkeypatch):
    applied = []

    def note(images, levels):
        applied.append(len(images))
        assert levels.shape == (len(images),) and levels.abs().max() <= 1
        return images

    for name in OPERATIONS:
        monkeypatch.setitem(OPERATIONS, name, note)
    with drawing_from(0):
        rand_augment(torch.rand(400, 3, 4, 4), 9, 0.5)
    assert 340 < sum(applied) < 460
    assert len(applied) == 2 * len(OPERATIONS)


# ------------------------------------------------------------------------------------------ mixing


def test_label_matrix():
    matrix = label_matrix(torch.tensor([2, 0]), 4, 0.1)
    assert torch.allclose(
        matrix, torch.tensor([[0.025, 0.025, 0.925, 0.025], [0.925, 0.025, 0.025, 0.025]])
    )
    assert torch.equal(label_matrix(torch.tensor([1]), 3), torch.tensor([[0.0, 1.0, 0.0]]))


def constants(count: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """Images whose pixels are all 0, 1, 2, ..., and as many labels."""
    values = torch.arange(count, dtype=torch.float32)
    return values.view(count, 1, 1, 1).expand(count, 3, 10, 14), torch.arange(count)


@pytest.mark.parametrize(
    "settings", [Mixing(mixup=0.8), Mixing(cutmix=1.0), Mixing(mixup=0.8, cutmix=1.0)]
)
def test_targets_say_how_much_of_each_image_there_is(settings):
    images, labels = constants()
    kept = images.clone()
    shares = []
    for seed in range(40):
        mixed, targets = mix(images, labels, 5, settings, seed)
        assert torch.allclose(targets.sum(1), torch.ones(5))
        # The mean of the pixels is linear in the shares: sum over k of target[k] * k.
        assert torch.allclose(mixed.mean((1, 2, 3)), targets @ torch.arange(5.0), atol=1e-5)
        shares.append(float(targets[0, 0]))
        assert targets[2, 2] == 1  # the one in the middle meets itself
    assert torch.equal(images, kept)
    assert np.std(shares) > 0.1  # not one share for every batch
    assert all(
        torch.equal(a, b)
        for a, b in zip(mix(images, labels, 5, settings, 7), mix(images, labels, 5, settings, 7))
    )


def test_mixed_labels_are_smoothed_first():
    images, labels = constants(2)
    mixed, targets = mix(images, labels, 2, Mixing(mixup=0.8, smoothing=0.1), 0)
    share = 1 - float(mixed[0, 0, 0, 0])
    assert torch.allclose(targets[0], torch.tensor([0.05 + 0.9 * share, 0.05 + 0.9 * (1 - share)]))


def test_cutmix_is_a_box_and_mixup_is_even():
    images, labels = constants(2)
    boxes = 0
    for seed in range(60):
        mixed, targets = mix(images, labels, 2, Mixing(mixup=0.8, cutmix=1.0), seed)
        values = mixed[0].unique()
        if len(values) == 2:
            box = mixed[0, 0] == 1
            assert box.sum() == box.any(0).sum() * box.any(1).sum()
            assert math.isclose(targets[0, 1], box.float().mean(), abs_tol=1e-6)
            boxes += 1
        else:
            assert len(values) == 1
    assert 15 < boxes < 45


def test_lambda_has_the_moments_of_its_distribution():
    images, labels = constants(2)
    for settings, alpha in ((Mixing(mixup=0.8), 0.8), (Mixing(mixup=0.2), 0.2)):
        shares = [float(mix(images, labels, 2, settings, seed)[1][0, 0]) for seed in range(1500)]
        assert abs(np.mean(shares) - 0.5) < 0.04
        assert abs(np.var(shares) - 1 / (4 * (2 * alpha + 1))) < 0.01


def test_mixing_can_be_left_out():
    images, labels = constants()
    assert torch.equal(mix(images, labels, 5, Mixing(), 0)[0], images)
    untouched = sum(
        mix(images, labels, 5, Mixing(mixup=0.8, probability=0.3), seed)[0] is images
        for seed in range(300)
    )
    assert 180 < untouched < 240
    assert len(Mixing(mixup=-1, cutmix=-1, probability=2, switch=-1, smoothing=1).problems()) == 5


# ----------------------------------------------------------------------------------------- preview


def test_preview_writes_a_sheet_for_each_augmentation(tmp_path, tensors):
    paths = preview(
        tensors, tmp_path / "sheets", 8, IMAGENET, Mixing(mixup=0.8, cutmix=1.0), columns=5, rows=2
    )
    assert [path.stem for path in paths] == [
        "resized_crop",
        "flip",
        "randaugment",
        "erasing",
        "mixup",
        "cutmix",
        "all",
    ]
    for path in paths:
        with Image.open(path) as sheet:
            assert sheet.size == (5 * 58 + 2, 3 * 58 + 8) and sheet.mode == "RGB"
    again = preview(
        tensors, tmp_path / "again", 8, IMAGENET, Mixing(mixup=0.8, cutmix=1.0), columns=5, rows=2
    )
    assert [path.read_bytes() for path in paths] == [path.read_bytes() for path in again]
    with pytest.raises(UserError, match="no augmentation is on"):
        preview(tensors, tmp_path, 8, Augmentation(), Mixing())
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be made"):
        preview(tensors, tmp_path / "file" / "x", 8, LIGHT, Mixing())
