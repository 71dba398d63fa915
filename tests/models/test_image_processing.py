"""The image processor: its numbers by hand, and what it refuses."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor

from hgrn.data.images.augment import EvaluationTransform, Normalisation
from hgrn.models import HGRNConfig, HGRNForImageClassification, HGRNImageProcessor
from tests.tolerances import assert_close


@pytest.fixture
def image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 400, 3), dtype=np.uint8))


def test_the_authors_evaluation_by_hand(image):
    found = HGRNImageProcessor()(image, return_tensors="pt").pixel_values
    resized = np.asarray(image.resize((341, 256), Image.Resampling.BICUBIC), dtype=np.float64) / 255
    crop = resized[16:240, 58:282]
    expected = (crop - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    assert found.shape == (1, 3, 224, 224) and found.dtype == torch.float32
    assert_close(found[0], torch.from_numpy(expected).permute(2, 0, 1))


@pytest.mark.parametrize("resize", [8, 9, 10, 11, 12, 13])
@pytest.mark.parametrize("wider", range(5))
def test_the_middle_is_that_of_the_evaluation_while_training(image, resize, wider):
    """Every remainder of what is cut off by 4; nothing is resized, so the numbers are the same."""
    half = (0.5, 0.5, 0.5)
    part = image.crop((0, 0, resize + wider, resize))
    processor = HGRNImageProcessor(
        size={"shortest_edge": resize},
        crop_size={"height": 8, "width": 8},
        image_mean=list(half),
        image_std=list(half),
    )
    transform = EvaluationTransform(8, Normalisation(half, half), resize)
    expected = transform(transform.fit(torch.from_numpy(np.array(part)).permute(2, 0, 1))[None])
    assert_close(processor(part, return_tensors="pt").pixel_values, expected)


def test_images_smaller_than_the_crop_are_padded(image):
    processor = HGRNImageProcessor(
        do_resize=False, do_normalize=False, crop_size={"height": 12, "width": 12}
    )
    found = processor(image.crop((0, 0, 8, 14)), return_tensors="pt").pixel_values
    assert (
        found.shape == (1, 3, 12, 12)
        and (found[..., :2] == 0).all()
        and (found[..., 2:10] > 0).any()
    )


def test_grey_pixels_as_they_are(image):
    processor = HGRNImageProcessor(
        num_channels=1, do_resize=False, do_center_crop=False, image_mean=[0.5], image_std=[0.5]
    )
    grey = np.asarray(image.convert("L"), dtype=np.float64) / 255
    for given in (
        image,
        image.convert("L"),
        image.convert("L").convert("P"),
        np.asarray(image.convert("L"))[None],
    ):
        assert_close(
            processor(given, return_tensors="pt").pixel_values[0, 0], torch.from_numpy(grey * 2 - 1)
        )


def test_saved_and_loaded_it_is_the_same(image, tmp_path):
    processor = HGRNImageProcessor(
        size={"shortest_edge": 40},
        crop_size={"height": 32, "width": 32},
        image_mean=[0.1, 0.2, 0.3],
    )
    HGRNForImageClassification(
        HGRNConfig(patch_size=8, hidden_size=8, num_hidden_layers=1)
    ).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(again) is HGRNImageProcessor and again.to_dict() == processor.to_dict()
    assert torch.equal(
        again(image, return_tensors="pt").pixel_values,
        processor(image, return_tensors="pt").pixel_values,
    )
    assert {path.name for path in tmp_path.iterdir()} == {
        "README.md",
        "config.json",
        "model.safetensors",
        "modeling_hgrn.py",
        "preprocessor_config.json",
    }


def test_what_does_not_fit_is_named(image):
    with pytest.raises(ValueError, match=r"num_channels must be 3 \(colour\) or 1 \(grey\), got 2"):
        HGRNImageProcessor(num_channels=2)
    with pytest.raises(
        ValueError, match=r"image_mean must have a value for each of 1 channel\(s\)"
    ):
        HGRNImageProcessor(num_channels=1)
    with pytest.raises(
        ValueError, match=r"image_std must have a value for each of 3 channel\(s\), got \[0.5\]"
    ):
        HGRNImageProcessor()(image, image_std=[0.5])
    with pytest.raises(
        ValueError,
        match=r"images must have 3 channel\(s\), got an array of 1; convert it, or set "
        r"num_channels",
    ):
        HGRNImageProcessor()(np.asarray(image.convert("L"))[None])
