"""The authors' image and Long Range Arena models (golden 10 to 12), and their files."""

from dataclasses import dataclass, replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from hgrn.cli import main
from hgrn.models import (
    HGRNConfig,
    HGRNForCausalLM,
    HGRNForImageClassification,
    HGRNForSequenceClassification,
    HGRNForSequencePairClassification,
    HGRNModel,
)
from hgrn.models.published import (
    LAYOUTS,
    ConversionError,
    from_published,
    load_published,
    to_published,
)
from hgrn.models.published.record import ROLL
from hgrn.models.published.tensors import named_tensors
from tests.golden_files import FOLDER, read
from tests.tolerances import RELATIVE, assert_close, error

DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])


@dataclass
class Case:
    """A golden file, and what it is for us."""

    name: str
    kind: type
    layout: str
    is_shared_file: bool = False


CASES = [
    Case("10a_hgrn1d_vit", HGRNForImageClassification, "vit", is_shared_file=True),
    Case(
        "10b_hgrn1d_vit_paramshare", HGRNForImageClassification, "vit-shared", is_shared_file=True
    ),
    Case("11a_lra1d_batchnorm", HGRNForSequenceClassification, "lra-text"),
    Case("11b_lra1d_layernorm", HGRNForSequenceClassification, "lra-text-shared"),
    Case("11c_lra1d_retrieval", HGRNForSequencePairClassification, "lra-text"),
    Case("12a_lra2d_batchnorm", HGRNForImageClassification, "lra-image-nopos"),
    Case("12b_lra2d_layernorm", HGRNForImageClassification, "lra-image-shared"),
]


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request) -> Case:
    return request.param


@pytest.fixture
def folder(request, case):
    """Where the golden file of the case is."""
    return request.getfixturevalue("shared") / "golden" if case.is_shared_file else FOLDER


@pytest.fixture
def file(case, folder, tmp_path):
    """The authors' tensors alone, in float32, as a file."""
    tensors = read(case.name, torch.float32, folder).parameters
    save_file(tensors, tmp_path / "theirs.safetensors")
    return tmp_path / "theirs.safetensors"


def inputs(case: Case, golden) -> dict:
    """What the authors' model was given, as ours takes it."""
    if case.kind is HGRNForImageClassification:
        x = golden.input["image"] if "image" in golden.input else golden.input["x"]
        if x.ndim == 3:
            side = round(x.shape[1] ** 0.5)
            x = x.transpose(1, 2).unflatten(2, (side, side))
        return dict(pixel_values=x)
    ids = golden.input["x"]
    lengths = golden.input["lengths"]
    mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    assert not mask.all()
    if case.kind is HGRNForSequencePairClassification:
        (ids, ids_b), (mask, mask_b) = ids.chunk(2), mask.chunk(2)
        return dict(input_ids=ids, attention_mask=mask, input_ids_b=ids_b, attention_mask_b=mask_b)
    return dict(input_ids=ids, attention_mask=mask)


def fields(case: Case, golden) -> dict:
    """Our fields of the golden model, from its metadata."""
    given = golden.metadata["config"]
    if "img_size" in given:
        return dict(
            patch_size=given["patch_size"],
            hidden_size=given["embed_dim"],
            intermediate_size=given["glu_dim"],
            num_hidden_layers=given["depth"],
            num_labels=given["num_classes"],
            bidirectional=True,
            final_norm="pooled",
            shared_theta=given["param_share"],
        )
    model, (hgru, glu) = given["model"], given["model"]["layer"]
    is_image = given["n_tokens"] is None
    return dict(
        hidden_size=model["d_model"],
        num_hidden_layers=model["n_layers"],
        norm_type=model["norm"],
        bidirectional=True,
        intermediate_size=model["d_model"] * glu["glu_expand_ratio"],
        num_labels=given["n_classes"],
        mask_padding=False,
        shared_theta=hgru["param_share"],
        sinusoidal_positions="id" not in given["encoder"],
        **(
            dict(patch_size=1, num_channels=given["d_input"], grid=True)
            if is_image
            else dict(vocab_size=given["n_tokens"], scale_embeddings=False)
        ),
    )


def golden_model(case: Case, folder, dtype):
    golden = read(case.name, dtype, folder)
    model = case.kind(HGRNConfig(**fields(case, golden))).to(dtype)
    load_published(model, golden.parameters, case.layout)
    return model, golden


@DTYPES
def test_logits_gradients_and_statistics_are_the_authors(case, dtype, folder):
    """In training with batch statistics, then in evaluation with those that the file has."""
    model, golden = golden_model(case, folder, dtype)
    arguments = inputs(case, golden)
    if "pixel_values" in arguments:
        arguments["pixel_values"].requires_grad_()
    logits = model.eval()(**arguments).logits
    assert_close(
        logits,
        golden.output.get("logits_eval", golden.output["logits"]),
        name="logits in evaluation",
    )
    assert_close(model.model.stack.bounds(), golden.aux["lower_bounds"])

    logits = model.train()(**arguments).logits
    assert_close(logits, golden.output["logits"], name="logits in training")
    (logits * golden.cotangent["logits"]).sum().backward()
    expected = from_published(golden.grad, case.layout)
    assert expected.keys() == dict(model.named_parameters()).keys()
    largest = max(gradient.abs().max() for gradient in expected.values())
    for key, parameter in model.named_parameters():
        if (
            expected[key].abs().max() < 1e-13
        ):  # biases in front of a batch norm, which takes them away
            assert parameter.grad.abs().max() <= RELATIVE[dtype] * largest, key
        else:
            assert_close(parameter.grad, expected[key], name=f"grad {key}")
    if golden.grad_input:
        (theirs,) = golden.grad_input.values()
        assert_close(
            inputs_as_theirs(arguments["pixel_values"].grad, theirs),
            theirs,
            name="grad of the pixels",
        )

    after = from_published(golden.after_train_forward, case.layout)
    assert after.keys() == dict(model.named_buffers()).keys()
    assert bool(after) == (model.config.norm_type == "batch")
    for key, statistic in after.items():
        assert_close(model.get_buffer(key).to(dtype), statistic.to(dtype), name=key)


def inputs_as_theirs(pixels: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    return pixels if theirs.ndim == 4 else pixels.flatten(2).transpose(1, 2)


def test_the_test_above_sees_a_table_that_is_rolled(case, folder, monkeypatch):
    """Language models need the roll (tests/models/test_convert.py); with it these differ."""
    lines = [
        line._replace(change=ROLL) if (line.ours or "").endswith("bounds.logits") else line
        for line in LAYOUTS[case.layout].lines
    ]
    spoilt = replace(LAYOUTS[case.layout], lines=tuple(lines))
    monkeypatch.setitem(LAYOUTS, case.layout, spoilt)
    model, golden = golden_model(case, folder, torch.float64)
    assert error(model.train()(**inputs(case, golden)).logits, golden.output["logits"]) > 1e-3
    assert error(model.model.stack.bounds(), golden.aux["lower_bounds"]) > 1e-2


def test_the_features_are_the_authors(shared):
    case = CASES[0]
    model, golden = golden_model(case, shared / "golden", torch.float64)
    features = model.model(pixel_values=golden.input["image"]).last_hidden_state
    assert_close(features.mean(1), golden.output["features"])


def test_a_file_loads_directly(case, file, folder):
    golden = read(case.name, torch.float32, folder)
    model, report = case.kind.from_pretrained(file, output_loading_info=True)
    assert not any(report.values()) and not model.training
    assert_close(
        model(**inputs(case, golden)).logits,
        golden.output.get("logits_eval", golden.output["logits"]),
    )
    wanted = HGRNConfig(**fields(case, golden))
    for name in fields(case, golden):
        assert getattr(model.config, name) == getattr(wanted, name), name
    bare = HGRNModel.from_pretrained(file)
    for name, tensor in named_tensors(bare).items():
        assert torch.equal(tensor, named_tensors(model)[f"model.{name}"]), name


def test_there_and_back_gives_the_same_bits(case, file, tmp_path, capsys):
    theirs = load_file(file)
    to = case.layout.split("-")[0]
    assert main(["convert", str(file), str(tmp_path / "ours")]) == 0
    printed = capsys.readouterr().out
    assert f"layout {case.layout}" in printed and "not in the source, and assumed: " in printed
    assert ("grid True" in printed) == ("image" in case.layout)
    assert main(["convert", str(tmp_path / "ours"), str(tmp_path / "back"), "--to", to]) == 0
    assert [path.name for path in (tmp_path / "back").iterdir()] == ["model.safetensors"]
    back = load_file(tmp_path / "back" / "model.safetensors")
    # The fixed table is made by whoever runs the model.
    assert back.keys() == {name for name in theirs if not name.endswith(".pe")}
    assert all(
        torch.equal(back[name], theirs[name]) and back[name].dtype == theirs[name].dtype
        for name in back
    )
    assert main(["convert", str(tmp_path / "back"), str(tmp_path / "again"), "--to", to]) == 2
    assert f"is in the layout '{to}' already" in capsys.readouterr().err


def test_files_of_their_programs(tmp_path):
    """Lightning's, with more around the tensors, and one of a wrapper for several devices."""
    case = CASES[2]
    golden = read(case.name, torch.float32)
    torch.save(
        {"state_dict": golden.parameters, "epoch": 3, "global_step": 17}, tmp_path / "last.ckpt"
    )
    torch.save(
        {"model": {f"module.{name}": tensor for name, tensor in golden.parameters.items()}},
        tmp_path / "wrapped.pth",
    )
    for name in ("last.ckpt", "wrapped.pth"):
        model = case.kind.from_pretrained(tmp_path / name)
        assert_close(model(**inputs(case, golden)).logits, golden.output["logits_eval"])


def test_everything_that_does_not_fit_is_named(tmp_path):
    golden = read("11a_lra1d_batchnorm", torch.float32)
    tensors = dict(golden.parameters)
    del (
        tensors["model.layers.1.norm.norm.running_var"],
        tensors["model.layers.2.layer.hgru.gate.weight"],
    )
    tensors["encoder.1.pe"] = tensors["encoder.1.pe"] + 0.1
    tensors["model.layers.3.layer.l4.weight"] = torch.zeros(3)
    tensors["model.layers.0.layer.l1.weight"] = torch.zeros(3)  # of a layer that has an HGRU
    tensors["model.norm.norm.running_mean"] = torch.zeros(5)
    model = HGRNForSequenceClassification(HGRNConfig(**fields(CASES[2], golden)))
    with pytest.raises(ConversionError) as raised:
        load_published(model, tensors, "lra-text")
    for line in (
        "7 problem(s)",
        "missing: model.stack.blocks.0.glu_norm.running_var, which comes from "
        "model.layers.1.norm.norm.running_var",
        "not model.layers.2.layer.hgru.gate.weight",
        "other: encoder.1.pe is not the fixed table of sines and cosines",
        "unexpected: model.layers.3.layer.l4.weight is not in the layout",
        "unexpected: model.layers.0.layer.l1.weight is not in the layout",
        "reshaped: model.stack.norm.running_mean is (5,), in the model (12,); it comes from "
        "model.norm.norm.running_mean",
    ):
        assert line in str(raised.value)


def test_another_head_than_the_files_is_an_error(tmp_path):
    save_file(read("11c_lra1d_retrieval", torch.float32).parameters, tmp_path / "pairs.safetensors")
    with pytest.raises(
        ConversionError,
        match="missing: score.weight, which comes from decoder.output_transform.weight",
    ):
        HGRNForSequenceClassification.from_pretrained(tmp_path / "pairs.safetensors")
    with pytest.raises(ValueError, match="HGRNForImageClassification reads images.*got None"):
        HGRNForImageClassification.from_pretrained(tmp_path / "pairs.safetensors")


def test_what_the_layouts_cannot_hold_is_named(tmp_path, capsys):
    def fails(to: str) -> str:
        assert main(["convert", str(tmp_path / "ours"), str(tmp_path / "out"), "--to", to]) == 2
        return capsys.readouterr().err

    HGRNForImageClassification(
        HGRNConfig(
            patch_size=2, hidden_size=8, num_hidden_layers=1, bidirectional=True, glu_act="identity"
        )
    ).save_pretrained(tmp_path / "ours")
    message = fails("vit")
    assert (
        all(f"\n  {name}: must be " in message for name in ("glu_act", "final_norm"))
        and "2 problem(s)" in message
    )
    assert all(
        f"\n  {name}: must be " in fails("lra")
        for name in ("glu_act", "mask_padding", "patch_size")
    )
    assert "bias: must be False there" in fails("fla") and not (tmp_path / "out").exists()
    with pytest.raises(
        ConversionError, match="unexpected: lm_head.weight|unexpected: model.embed_tokens.weight"
    ):
        to_published(
            HGRNForCausalLM(HGRNConfig(vocab_size=5, hidden_size=8, num_hidden_layers=1)),
            "vit-shared",
        )
