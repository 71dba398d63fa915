"""The commands for images, end to end on a tiny run: what they print, write and refuse."""

import re

import pytest
import yaml
from PIL import Image

from hgrn.cli import main

COLOURS = {"blue": (20, 30, 220), "red": (220, 30, 20)}
RECIPE = {
    "name": "colours",
    "task": "image-classification",
    "model": {"patch_size": 4, "hidden_size": 8, "num_hidden_layers": 2, "bidirectional": True},
    "images": {"size": 8, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
    "augmentation": {"flip": 0.5},
    "batch": {"batch_size": 4},
    "optimizer": {"lr": 0.01},
    "schedule": {"name": "constant"},
    "training": {"steps": 30, "eval_every": 30, "save_every": 30, "threads": 1},
}


def width(path):
    with Image.open(path) as image:
        return image.width


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images of two colours, a bit different each; and a recipe."""
    root = tmp_path_factory.mktemp("colours")
    for split, count in (("train", 6), ("validation", 3), ("test", 5)):
        for name, (r, g, b) in COLOURS.items():
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (10, 12), (r + number, g + number, b)).save(
                    root / split / name / f"{number}.png"
                )
    (root / "recipe.yaml").write_text(
        yaml.safe_dump(RECIPE | {"data": {"format": "folder", "path": str(root)}})
    )
    return root


@pytest.fixture(scope="module")
def trained(folder):
    assert main(["train", str(folder / "recipe.yaml"), "--out", str(folder / "run")]) == 0
    return folder / "run"


def test_eval_says_accuracies_and_draws_the_confusion(trained, capsys):
    assert main(["eval", str(trained)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[:2]] == [["blue", "100.00%"], ["red", "100.00%"]]
    assert lines[2].startswith("10 examples, ") and lines[2].endswith(
        f"confusion matrix: {trained}/confusion_test.png"
    )
    assert lines[3] == "test top-1 accuracy: 100.00% (95 % interval 72.25% to 100.00%)"
    assert width(trained / "confusion_test.png") > 100
    assert main(["eval", str(trained), "--split", "validation"]) == 0
    assert "6 examples" in capsys.readouterr().out


def test_eval_of_other_images(trained, folder, tmp_path, capsys):
    for split in ("train", "test"):
        for name in COLOURS:
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("RGB", (9, 9), COLOURS["red"]).save(tmp_path / split / name / "all_red.png")
    assert main(["eval", str(trained), "--data", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "2 examples" in out and f"{tmp_path}, test: top-1 accuracy: 50.00%" in out
    picture = trained / f"confusion_test_{tmp_path.name}.png"  # that of the run's own data stays
    assert picture.is_file() and out.splitlines()[2].endswith(f"confusion matrix: {picture}")


def test_predict_names_the_likeliest_classes(trained, folder, capsys):
    files = [str(folder / "test" / name / "0.png") for name in COLOURS]
    assert main(["predict", str(trained), *files, "--top", "1"]) == 0
    for line, file, name in zip(capsys.readouterr().out.splitlines(), files, COLOURS, strict=True):
        assert re.fullmatch(rf"{re.escape(file)}: {name} \d+\.\d%", line)
    assert main(["predict", str(trained), files[0]]) == 0
    shares = [float(share) for share in re.findall(r"([\d.]+)%", capsys.readouterr().out)]
    assert (
        len(shares) == 2 and sum(shares) == pytest.approx(100, abs=0.11) and shares[0] > shares[1]
    )


def test_preview_writes_sheets(folder, tmp_path, capsys):
    assert (
        main(
            [
                "data",
                "preview",
                str(folder / "recipe.yaml"),
                "--out",
                str(tmp_path),
                "--mixing.mixup",
                "0.8",
            ]
        )
        == 0
    )
    written = capsys.readouterr().out.split()
    assert written == [str(tmp_path / f"{name}.png") for name in ("flip", "mixup", "all")]
    assert all(width(path) > 100 for path in written)


def test_what_cannot_be_done_is_said(trained, folder, tmp_path, fails):
    whole = (folder / "test" / "red" / "0.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) - 30])
    (tmp_path / "text.png").write_text("no image")
    assert "cut.png" in fails("predict", trained, tmp_path / "cut.png")
    assert "text.png: not an image that Pillow knows" in fails(
        "predict", trained, tmp_path / "text.png"
    )
    assert "nowhere.png cannot be read: No such file" in fails("predict", trained, "nowhere.png")
    assert "--top must be at least 1" in fails(
        "predict", trained, folder / "test" / "red" / "0.png", "--top", "0"
    )
    assert "previews are of image-classification" in fails(
        "data", "preview", "quickstart", "--out", tmp_path
    )
    assert "--data is an empty path" in fails("eval", trained, "--data", "")
    assert "--data takes one folder for a classifier, got 2" in fails(
        "eval", trained, "--data", "a", "b"
    )
    assert "path: there is no folder nowhere" in fails("eval", trained, "--data", "nowhere")
    assert "split must be one of" in fails("eval", trained, "--split", "tst")
    assert "predicts and generates from left to right" in fails(
        "generate", trained, "--prompt", "A"
    )


def test_a_language_model_is_no_classifier(tmp_path, fails):
    from hgrn.models import HGRNConfig, HGRNForCausalLM
    from hgrn.progress import without_bars

    with without_bars():
        HGRNForCausalLM(
            HGRNConfig(vocab_size=259, hidden_size=8, num_hidden_layers=1)
        ).save_pretrained(tmp_path)
    assert "it is a HGRNForCausalLM, and a classifier is needed" in fails(
        "predict", tmp_path, "image.png"
    )
