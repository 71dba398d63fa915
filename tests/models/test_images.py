"""The image head: patches in order, rasters and grids, losses, and wrong inputs."""

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModel, AutoModelForImageClassification

from hgrn.models import (
    HGRNConfig,
    HGRNForCausalLM,
    HGRNForImageClassification,
    HGRNForSequenceClassification,
    HGRNModel,
)
from hgrn.modules import HGRU2d
from tests.tolerances import assert_close

BOTH = dict(bidirectional=True, shared_theta=False)


def make(**options) -> HGRNForImageClassification:
    torch.manual_seed(0)
    config = dict(patch_size=2, num_channels=3, hidden_size=8, num_hidden_layers=2, num_labels=3)
    model = HGRNForImageClassification(HGRNConfig(**config | options)).double().eval()
    torch.nn.init.normal_(model.model.stack.bounds.logits)
    for block in model.model.stack.blocks:
        torch.nn.init.normal_(block.mixer.theta)
    return model


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.randn(3, 3, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("final_norm", ["tokens", "pooled"])
@pytest.mark.parametrize(
    "options", [{}, BOTH, BOTH | dict(grid=True)], ids=["causal", "raster", "grid"]
)
def test_the_model_by_hand(options, final_norm, pixels):
    model = make(**options, final_norm=final_norm)
    stack = model.model.stack
    patches = pixels.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 4, 5, 1).reshape(3, 2, 3, 12)
    x = F.linear(patches, *model.model.embed_patches.proj.parameters())
    x = stack(x if "grid" in options else x.flatten(1, 2))[0]
    assert all(type(block.mixer) is HGRU2d for block in stack.blocks) == ("grid" in options)
    assert isinstance(stack.norm, torch.nn.Identity) == (final_norm == "pooled")
    mean = x.reshape(3, 6, 8).mean(1)
    if final_norm == "pooled":
        mean = mean / (mean.norm(dim=1, keepdim=True) / 8**0.5 + 1e-8)
    output = model(pixels, output_hidden_states=True)
    assert_close(output.logits, F.linear(mean, *model.score.parameters()))
    assert [h.shape for h in output.hidden_states] == [(3, 6, 8)] * 3
    assert_close(output.hidden_states[-1], x.reshape(3, 6, 8))


def test_a_fixed_table_is_added_in_raster_order(pixels):
    for options in (BOTH, BOTH | dict(grid=True)):
        model = make(**options, sinusoidal_positions=True)
        first = model(pixels, output_hidden_states=True).hidden_states[0]
        plain = model.model.embed_patches(pixels).flatten(1, 2)
        wanted = torch.tensor(
            [[n * 10000.0 ** (-2 * i / 8) for i in range(4)] for n in range(6)], dtype=torch.float64
        )
        assert_close(
            first - plain,
            torch.stack([wanted.sin(), wanted.cos()], -1).flatten(1).expand(3, -1, -1),
        )


def test_a_grid_treats_rows_and_columns_alike_and_a_raster_does_not(pixels):
    grid = make(**BOTH, grid=True, patch_size=1)
    raster = make(**BOTH, patch_size=1)
    raster.load_state_dict(grid.state_dict())
    turned = pixels.transpose(2, 3)
    assert_close(grid(turned).logits, grid(pixels).logits)
    assert (raster(turned).logits - raster(pixels).logits).abs().max() > 1e-4
    assert (raster(pixels).logits - grid(pixels).logits).abs().max() > 1e-4


def test_pixel_by_pixel_a_causal_model_sees_only_what_came_before():
    """Digits in 784 steps."""
    model = make(patch_size=1, num_channels=1, pooling="last", num_labels=10)
    digits = torch.rand(2, 1, 28, 28)
    hidden = model.model(pixel_values=digits).last_hidden_state
    assert hidden.shape == (2, 784, 8)
    changed = digits.clone()
    changed[:, :, 14, 3] += 1  # step 395
    other = model.model(pixel_values=changed).last_hidden_state
    assert torch.equal(other[:, :395], hidden[:, :395]) and (other[:, 395] != hidden[:, 395]).any()
    assert_close(model(digits).logits, model.score(hidden[:, -1]))


def test_any_size_of_image_goes_and_images_do_not_mix(pixels):
    model = make(**BOTH, grid=True)
    assert_close(model(pixels[1:2]).logits, model(pixels).logits[1:2])
    assert model(torch.rand(1, 3, 2, 10)).logits.shape == (1, 3)


@pytest.mark.parametrize(
    "num_labels, problem_type, labels, loss",
    [
        (
            3,
            None,
            torch.tensor([2, 0, -100]),
            lambda logits, labels: F.cross_entropy(logits[:2], labels[:2]),
        ),
        (
            3,
            None,
            torch.eye(3),
            lambda logits, labels: F.binary_cross_entropy_with_logits(logits, labels.double()),
        ),
        (
            1,
            None,
            torch.tensor([0.5, -2, 3]),
            lambda logits, labels: F.mse_loss(logits[:, 0], labels.double()),
        ),
        (3, "regression", torch.eye(3), lambda logits, labels: F.mse_loss(logits, labels.double())),
    ],
    ids=["classes", "several labels", "one value", "several values"],
)
def test_losses(num_labels, problem_type, labels, loss, pixels):
    model = make(num_labels=num_labels, problem_type=problem_type)
    output = model(pixels, labels=labels)
    assert_close(output.loss, loss(output.logits, labels))
    output.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_checkpoints_of_the_auto_classes(pixels, tmp_path):
    model = make(**BOTH, id2label={0: "cat", 1: "dog", 2: "tree"})
    model.save_pretrained(tmp_path)
    again = AutoModelForImageClassification.from_pretrained(tmp_path, dtype="auto")
    assert type(again) is HGRNForImageClassification
    assert all(
        torch.equal(again.get_parameter(name), parameter)
        for name, parameter in model.named_parameters()
    )
    assert_close(again(pixels).logits, model(pixels).logits)
    assert again.config.id2label[1] == "dog" and again.main_input_name == "pixel_values"
    bare = AutoModel.from_pretrained(tmp_path, dtype="auto")
    assert type(bare) is HGRNModel and bare.main_input_name == "pixel_values"
    assert_close(bare(pixel_values=pixels)[0], model.model(pixel_values=pixels)[0])
    assert (
        bare.get_input_embeddings() is bare.embed_patches
        and model.get_input_embeddings() is model.model.embed_patches
    )
    card = (tmp_path / "README.md").read_text()
    assert (
        "classification of images" in card
        and "whole images, from both ends" in card
        and "pipeline_tag: image-classification" in card
    )


IDS = torch.zeros(2, 3, dtype=torch.long)


@pytest.mark.parametrize(
    "arguments, kind, message",
    [
        (
            dict(),
            ValueError,
            r"configuration is one of images \(patch_size=2\), so give pixel_values",
        ),
        (
            dict(pixel_values=torch.zeros(2, 1, 4, 4)),
            ValueError,
            r"3 channel.s., got \(2, 1, 4, 4\)",
        ),
        (
            dict(pixel_values=torch.zeros(2, 3, 4, 5)),
            ValueError,
            "multiples of the patch size 2, and at least that, got 4 x 5",
        ),
        (
            dict(pixel_values=torch.zeros(2, 3, 1, 1)),
            ValueError,
            "multiples of the patch size 2, and at least that, got 1 x 1",
        ),
        (
            dict(pixel_values=IDS.view(1, 1, 2, 3).expand(1, 3, 2, 3)),
            TypeError,
            "pixel_values must hold floats",
        ),
        (
            dict(pixel_values=torch.zeros(2, 3, 4, 4), labels=torch.tensor([0, 3])),
            ValueError,
            "class numbers from 0 to 2.*got 3",
        ),
        (
            dict(pixel_values=torch.zeros(2, 3, 4, 4), labels=torch.zeros(3).long()),
            ValueError,
            r"labels must have shape \[2\]",
        ),
        (
            dict(pixel_values=torch.zeros(2, 3, 4, 4), output_attentions=True),
            ValueError,
            "no attention weights",
        ),
    ],
)
def test_inputs_that_do_not_fit_are_named(arguments, kind, message):
    with pytest.raises(kind, match=message):
        make().float()(**arguments)


def test_the_bare_model_takes_images_or_tokens():
    images = make().model.float()
    tokens = HGRNModel(HGRNConfig(vocab_size=5, hidden_size=8, num_hidden_layers=1)).eval()
    pixels = torch.zeros(1, 3, 4, 4)
    for wrong in (
        dict(input_ids=IDS),
        dict(inputs_embeds=torch.zeros(1, 2, 8)),
        dict(cu_seqlens=torch.tensor([0, 2])),
    ):
        with pytest.raises(
            ValueError,
            match="give pixel_values, and neither input_ids, attention_mask, inputs_embeds "
            "nor cu_seqlens",
        ):
            images(pixel_values=pixels, **wrong)
    with pytest.raises(
        ValueError,
        match="pixel_values need a configuration with patch_size, got patch_size=None; give "
        "input_ids",
    ):
        tokens(pixel_values=pixels)
    assert images(pixel_values=pixels).past_key_values is None
    for wrong in (dict(use_cache=True), dict(past_key_values=tokens(IDS).past_key_values)):
        with pytest.raises(
            ValueError, match="a model of images reads whole sequences and keeps no state"
        ):
            images(pixel_values=pixels, **wrong)


def test_heads_and_configurations_that_do_not_go_together():
    with pytest.raises(
        ValueError,
        match="HGRNForImageClassification reads images, so patch_size .* a positive "
        "integer.*got None",
    ):
        HGRNForImageClassification(HGRNConfig(hidden_size=8))
    with pytest.raises(
        ValueError,
        match="HGRNForSequenceClassification reads tokens, so patch_size .* must be None, got 4",
    ):
        HGRNForSequenceClassification(HGRNConfig(hidden_size=8, patch_size=4))
    for options in (
        dict(patch_size=4),
        dict(sinusoidal_positions=True),
        dict(mask_padding=False),
        dict(final_norm="pooled"),
        dict(norm_type="batch"),
    ):
        (name,), (value,) = options.keys(), options.values()
        with pytest.raises(
            ValueError,
            match=f"its configuration needs {name}=.*, got {value!r}; the classification models",
        ):
            HGRNForCausalLM(HGRNConfig(vocab_size=5, hidden_size=8, num_hidden_layers=1, **options))


@pytest.mark.parametrize("grid", [False, True])
def test_hidden_states_have_gradients(grid, pixels):
    model = make(bidirectional=True, grid=grid).model
    output = model(pixel_values=pixels, output_hidden_states=True)
    assert all(h.shape == (3, 6, 8) for h in output.hidden_states)
    gradients = torch.autograd.grad(output.last_hidden_state.square().sum(), output.hidden_states)
    assert all(gradient.abs().sum() > 0 for gradient in gradients)
    with torch.no_grad():
        assert torch.equal(model(pixel_values=pixels).last_hidden_state, output.last_hidden_state)
