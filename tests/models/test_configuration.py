"""The configuration: published sizes, and every mistake named at once."""

import pytest
import torch

from hgrn.models import (
    HGRNConfig,
    HGRNForCausalLM,
    HGRNForImageClassification,
    HGRNForSequenceClassification,
    HGRNForSequencePairClassification,
)


@pytest.mark.parametrize(
    "preset, parameters",
    [
        ("wikitext103", 46_247_936),
        ("lm-150m", 146_065_920),
        ("lm-350m", 351_598_592),
        ("lm-1b", 975_704_064),
    ],
)
def test_published_sizes(preset, parameters):
    with torch.device("meta"):
        model = HGRNForCausalLM(HGRNConfig.preset(preset))
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize(
    "preset, kind, parameters",
    [
        ("vit-tiny", HGRNForImageClassification, 6_107_560),
        ("vit-small", HGRNForImageClassification, 23_715_688),
        ("lra-listops", HGRNForSequenceClassification, "66K"),
        ("lra-text", HGRNForSequenceClassification, "683K"),
        ("lra-retrieval", HGRNForSequencePairClassification, "132K"),
        ("lra-image", HGRNForImageClassification, "15.8M"),
        ("lra-pathfinder", HGRNForImageClassification, "999K"),
        ("lra-pathx", HGRNForImageClassification, "254K"),
    ],
)
def test_published_sizes_of_classifiers(preset, kind, parameters):
    """Those of images are published; those of Long Range Arena follow from the authors' script."""
    config = HGRNConfig.preset(preset)
    with torch.device("meta"):
        model = kind(config)
    count = sum(p.numel() for p in model.parameters())
    if isinstance(parameters, str):
        count = f"{count / 1e6:.1f}M" if count > 1e6 else f"{count / 1e3:.0f}K"
    assert count == parameters
    mixer = model.model.stack.blocks[0].mixer
    assert mixer.bidirectional and mixer.theta.shape == (2, config.hidden_size)
    assert (type(mixer).__name__ == "HGRU2d") == (
        preset in ("lra-image", "lra-pathfinder", "lra-pathx")
    )


def test_dropout_of_the_long_range_arena_presets_is_the_authors():
    """Text alone has dropout; the module that adds positions has one of its own."""
    rates = {
        name: tuple(
            getattr(HGRNConfig.preset(f"lra-{name}"), field)
            for field in ("dropout", "glu_dropout", "embedding_dropout")
        )
        for name in ("listops", "text", "retrieval", "image", "pathfinder", "pathx")
    }
    assert rates == {
        "listops": (0, 0, 0.1),
        "text": (0.1, 0.1, 0.1),
        "retrieval": (0, 0, 0.1),
        "image": (0, 0, 0.1),
        "pathfinder": (0, 0, None),
        "pathx": (0, 0, None),
    }
    model = HGRNForSequenceClassification(HGRNConfig.preset("lra-listops", hidden_size=8)).model
    assert (
        model.dropout.p == 0.1
        and model.stack.blocks[0].dropout.p == 0
        and model.stack.blocks[0].glu.dropout.p == 0
    )
    model = HGRNForSequenceClassification(
        HGRNConfig.preset("lra-text", hidden_size=8, embedding_dropout=None, dropout=0.3)
    ).model
    assert (
        model.dropout.p == 0.3
        and model.stack.blocks[0].dropout.p == 0.3
        and model.stack.blocks[0].glu.dropout.p == 0.1
    )


def test_a_narrower_preset_keeps_the_ratio_inside_the_glu():
    assert HGRNConfig.preset("lra-pathx", hidden_size=16).intermediate_size == 16
    assert HGRNConfig.preset("lra-retrieval", hidden_size=16).intermediate_size == 32
    assert (
        HGRNConfig.preset("lra-retrieval", hidden_size=16, intermediate_size=8).intermediate_size
        == 8
    )


@pytest.mark.parametrize(
    "options",
    [dict(), dict(bidirectional=True), dict(patch_size=2), dict(patch_size=2, bidirectional=False)],
)
def test_a_grid_needs_images_and_both_directions(options):
    with pytest.raises(
        ValueError,
        match="grid: must be False unless patch_size is set and bidirectional is True, got "
        "patch_size=",
    ):
        HGRNConfig(grid=True, **options)
    HGRNConfig(grid=True, patch_size=2, bidirectional=True)


def test_presets_are_overridden_field_by_field():
    config = HGRNConfig.preset("wikitext103", dropout=0.3)
    assert config.dropout == 0.3 and config.pad_token_id == 1 and config.intermediate_size == 1024
    small = HGRNConfig.preset("wikitext103", vocab_size=258, hidden_size=64, eos_token_id=256)
    assert small.intermediate_size == 128
    assert (
        small.pad_token_id is None and small.eos_token_id == 256
    )  # the published ids mean nothing here


def test_unknown_presets_are_named():
    with pytest.raises(ValueError, match="preset must be one of .*'lm-150M'; did you mean lm-150m"):
        HGRNConfig.preset("lm-150M")


def test_every_problem_is_named_at_once():
    with pytest.raises(ValueError) as error:
        HGRNConfig(
            hiden_size=3,
            vocab_size=0,
            num_hidden_layers=2.5,
            gate_rank=-1,
            glu_act="relu",
            dropout=1,
            bias="no",
            norm_eps=0,
            norm_type="group",
            conv_size=0,
            eos_token_id=[1, -2],
            pad_token_id=[3],
            initialization="xavier",
            temperature=2.0,
            patch_size=0,
            num_channels=None,
            grid="no",
            mask_padding=1,
            sinusoidal_positions=None,
            final_norm="none",
            glu_dropout=None,
            embedding_dropout=-0.1,
        )
    message = str(error.value)
    assert "hiden_size: no such field; did you mean hidden_size?" in message
    for name in (
        "vocab_size",
        "num_hidden_layers",
        "gate_rank",
        "glu_act",
        "dropout",
        "bias",
        "norm_eps",
        "norm_type",
        "conv_size",
        "eos_token_id",
        "pad_token_id",
        "initialization",
        "temperature",
        "patch_size",
        "num_channels",
        "grid",
        "mask_padding",
        "sinusoidal_positions",
        "final_norm",
        "glu_dropout",
        "embedding_dropout",
    ):
        assert f"\n  {name}: " in message
    assert "22 problem(s)" in message


def test_a_field_spoilt_later_is_not_saved(tmp_path):
    config = HGRNConfig()
    config.dropout = -1
    with pytest.raises(ValueError, match="dropout: must be a number"):
        config.save_pretrained(tmp_path)


def test_what_we_save_reloads(tmp_path):
    config = HGRNConfig(
        vocab_size=30,
        hidden_size=6,
        intermediate_size=7,
        gate_rank=2,
        eos_token_id=[1, 2],
        num_labels=5,
        dtype=torch.bfloat16,
        output_hidden_states=True,
        name_or_path="somewhere",
    )
    config.save_pretrained(tmp_path)
    again = HGRNConfig.from_pretrained(tmp_path)
    again.save_pretrained(tmp_path)
    assert again.to_diff_dict() == config.to_diff_dict()
    assert again.num_labels == 5 and again.gate_rank == 2 and again.dtype == torch.bfloat16


def test_a_foreign_configuration_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "hgrn", "n_embd": 64}')
    with pytest.raises(ValueError, match="n_embd: no such field"):
        HGRNConfig.from_pretrained(tmp_path)
