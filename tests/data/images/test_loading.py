"""Batches: the order, ranks, repeats, resuming, workers, and corrupt images."""

import logging

import numpy as np
import pytest
import torch

from hgrn.data.images.augment import (
    IMAGENET,
    LIGHT,
    Augmentation,
    EvaluationTransform,
    Normalisation,
    TrainingTransform,
)
from hgrn.data.images.loading import ImageLoader, evaluation_batches
from hgrn.data.images.mixing import Mixing
from hgrn.data.images.opening import ImageData, open_images
from hgrn.data.images.sampling import ImageSampler
from hgrn.data.images.source import TensorSource
from hgrn.errors import UserError

GREY = Normalisation((0.0,), (1.0,))
COLOUR = Normalisation((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def numbers(batch) -> list[int]:
    """Which of `tensors` an unaugmented batch holds."""
    return (batch.images[:, 0, 0, 0] * 255).round().long().tolist()


def plain_loader(source, batch_size=8, seed=0, **sizes):
    return ImageLoader(
        ImageSampler(source, batch_size, seed, **sizes), TrainingTransform(Augmentation(), 8, GREY)
    )


def test_an_epoch_takes_every_image_once(tensors):
    loader = plain_loader(tensors)
    epochs = []
    for _ in range(3):
        batches = [loader.next() for _ in range(loader.steps_per_epoch)]
        assert all(
            batch.labels.tolist() == [number % 4 for number in numbers(batch)] for batch in batches
        )
        epochs.append([number for batch in batches for number in numbers(batch)])
        assert sorted(epochs[-1]) == list(range(40))
    assert epochs[0] != epochs[1] != epochs[2]


@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("world", [2, 4])
def test_ranks_share_out_a_step(tensors, world, repeats):
    whole = ImageSampler(tensors, 8, 3, repeats=repeats)
    ranks = [ImageSampler(tensors, 8, 3, rank, world, repeats) for rank in range(world)]
    for _ in range(12):
        parts = np.stack([rank.next() for rank in ranks], axis=1)
        assert np.array_equal(parts.flatten(), whole.next())


def test_repeats_are_on_different_ranks():
    source = TensorSource(
        "many", torch.zeros(96, 1, 2, 2, dtype=torch.uint8), torch.zeros(96), ["a"]
    )
    ranks = [ImageSampler(source, 12, 0, rank, 4, repeats=3) for rank in range(4)]
    assert ranks[0].steps_per_epoch == 8
    seen = [np.concatenate([rank.next() for _ in range(8)]) for rank in ranks]
    images, counts = np.unique(np.concatenate(seen), return_counts=True)
    assert len(images) == 32 and (counts == 3).all()
    assert all(len(np.unique(each)) == len(each) for each in seen)  # none twice on one rank


def test_resumed_equals_never_stopped(tensors):
    def make(seed):
        transform = TrainingTransform(
            Augmentation(crop="resized", flip=0.5, randaugment=9, erasing=0.25), 6, GREY
        )
        return ImageLoader(
            ImageSampler(tensors, 8, seed), transform, Mixing(mixup=0.8, cutmix=1.0, smoothing=0.1)
        )

    straight = make(5)
    for _ in range(7):
        straight.next()
    state = straight.state_dict()
    assert state == {"epoch": 1, "index": 2, "seed": 5}
    resumed = make(99)
    resumed.next()
    resumed.load_state_dict(state)
    for _ in range(6):
        one = straight.next()
        other = resumed.next()
        assert torch.equal(one.images, other.images) and torch.equal(one.targets, other.targets)
        assert torch.equal(one.labels, other.labels) and one.targets.shape == (8, 4)
    assert straight.state_dict() == resumed.state_dict()
    with pytest.raises(ValueError, match="5 steps per epoch; was it saved with other data"):
        resumed.load_state_dict({"epoch": 0, "index": 5, "seed": 0})


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on one core
def test_workers_change_nothing(image_folder):
    source = open_images(ImageData(format="folder", path=str(image_folder)), "train")

    def make(workers):
        transform = TrainingTransform(IMAGENET, 8, COLOUR)
        return ImageLoader(
            ImageSampler(source, 4, 0, repeats=3), transform, Mixing(mixup=0.8), workers=workers
        )

    here = make(0)
    there = make(2)
    for step in range(7):
        one = here.next()
        other = there.next()
        assert torch.equal(one.images, other.images) and torch.equal(one.targets, other.targets), (
            step
        )
        assert here.state_dict() == there.state_dict()
    there.load_state_dict({"epoch": 0, "index": 1, "seed": 0})
    here.load_state_dict({"epoch": 0, "index": 1, "seed": 0})
    assert torch.equal(there.next().images, here.next().images)
    there.close()


@pytest.mark.parametrize("batch_size, world", [(7, 1), (7, 3), (40, 2), (64, 1)])
def test_evaluation_takes_every_image_once_in_order(tensors, batch_size, world):
    transform = EvaluationTransform(8, GREY)
    parts = [
        [
            number
            for batch in evaluation_batches(tensors, batch_size, transform, rank=rank, world=world)
            for number in numbers(batch)
        ]
        for rank in range(world)
    ]
    assert parts == [list(range(rank, 40, world)) for rank in range(world)]


@pytest.mark.parametrize("workers", [0, 1])
def test_corrupt_images_are_named_and_skipped_up_to_the_limit(image_folder, caplog, workers):
    for name in ("ant/1.png", "ant/2.png", "bee/5.png"):
        path = image_folder / "train" / name
        path.write_bytes(path.read_bytes()[:200])
    source = open_images(ImageData(format="folder", path=str(image_folder)), "train")
    transform = TrainingTransform(Augmentation(), 8, COLOUR)

    def make(limit):
        return ImageLoader(
            ImageSampler(source, 4, 0), transform, workers=workers, max_corrupt=limit
        )

    with caplog.at_level(logging.WARNING, logger="hgrn"):
        loader = make(3)
        assert all(len(loader.next().labels) == 4 for _ in range(9))
        loader.close()
    named = [record.message for record in caplog.records]
    assert len(named) == 3 and all(
        "skipped corrupt image" in message and "train/" in message for message in named
    )
    assert any("bee/5.png" in message for message in named) and "(3 of at most 3)" in named[-1]
    strict = make(2)
    with pytest.raises(
        UserError,
        match="(more than 2 images|3 images in a row) cannot be read, the last .*png: .*"
        "raise max_corrupt",
    ):
        for _ in range(9):
            strict.next()
    strict.close()

    batches = list(
        evaluation_batches(
            source, 5, EvaluationTransform(8, COLOUR), workers=workers, max_corrupt=3
        )
    )
    assert sum(len(batch.labels) for batch in batches) == 9
    with pytest.raises(UserError, match="more than 2 images cannot be read"):
        list(
            evaluation_batches(
                source, 5, EvaluationTransform(8, COLOUR), workers=workers, max_corrupt=2
            )
        )


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_smaller_than_a_patch_is_an_error_without_a_traceback(image_folder, workers):
    source = open_images(ImageData(format="folder", path=str(image_folder)), "train")
    message = "image .* of .*train is 12 x 16, smaller than a patch of 14 x 14; remove it, or use"
    loader = ImageLoader(
        ImageSampler(source, 4, 0), TrainingTransform(LIGHT, 28, COLOUR), workers=workers, patch=14
    )
    with pytest.raises(UserError, match=message) as caught:
        loader.next()
    assert "Traceback" not in str(caught.value)
    loader.close()
    with pytest.raises(UserError, match=message):
        list(
            evaluation_batches(
                source, 4, EvaluationTransform(28, COLOUR), workers=workers, patch=14
            )
        )


@pytest.mark.parametrize(
    "images, labels, message",
    [
        (torch.zeros(3, 2, 4, 4, dtype=torch.uint8), torch.zeros(3), "with 1 or 3 channels"),
        (torch.zeros(3, 1, 4, 4), torch.zeros(3), "must be uint8"),
        (torch.zeros(3, 1, 4, 4, dtype=torch.uint8), torch.zeros(2), "3 images and 2 labels"),
        (torch.zeros(0, 1, 4, 4, dtype=torch.uint8), torch.zeros(0), "holds no images"),
        (
            torch.zeros(2, 1, 4, 4, dtype=torch.uint8),
            torch.tensor([0, 2]),
            "label 2 of image 1 is out of range; 2 classes have labels 0 to 1",
        ),
    ],
)
def test_tensors_that_are_wrong(images, labels, message):
    with pytest.raises(UserError, match=message):
        TensorSource("x", images, labels, ["a", "b"])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"batch_size": 0}, "batch_size must be at least 1; got 0"),
        ({"world": 3}, "batch_size 8 must be a multiple of the 3 ranks"),
        ({"rank": 1}, r"rank must be in \[0, 1\); got 1"),
        ({"repeats": 0}, "repeats must be at least 1; got 0"),
        ({"batch_size": 41}, "forty has 40 images, fewer than the 41 of one step"),
    ],
)
def test_sizes_that_do_not_fit(tensors, change, message):
    with pytest.raises(ValueError, match=message):
        ImageSampler(tensors, **{"batch_size": 8, "seed": 0} | change)


def test_every_step_draws_anew():
    source = TensorSource(
        "black", torch.zeros(8, 1, 8, 8, dtype=torch.uint8), torch.zeros(8), ["a"]
    )
    ranks = [
        ImageLoader(
            ImageSampler(source, 4, 0, rank, 2),
            TrainingTransform(Augmentation(erasing=1.0), 8, GREY),
        )
        for rank in (0, 1)
    ]
    batches = [rank.next().images for rank in ranks for _ in range(5)]  # two epochs and a half
    assert len(torch.stack(batches).flatten(1).unique(dim=0)) == 10
