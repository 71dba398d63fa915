"""The pipelines of transformers, in programs that never import hgrn."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import pipeline

from hgrn.data.tokenizer import byte_tokenizer
from hgrn.models import (
    HGRNConfig,
    HGRNForCausalLM,
    HGRNForImageClassification,
    HGRNForSequenceClassification,
    HGRNImageProcessor,
)
from tests.models.test_registration import run

TEXTS = ["To be, or not to be", "O", "that is the question: é", "Whether"]
CONFIG = dict(
    vocab_size=259,
    hidden_size=16,
    num_hidden_layers=2,
    bos_token_id=256,
    eos_token_id=257,
    pad_token_id=258,
)

PROGRAM = """
import json, logging, sys
from transformers import pipeline
assert not any(name.split(".")[0] == "hgrn" for name in sys.modules)
folder, task = sys.argv[1:3]
inputs, options = map(json.loads, sys.argv[3:5])
logging.getLogger("transformers").setLevel(logging.WARNING)
pipe = pipeline(task, model=folder, trust_remote_code=True)
alone = [pipe(x, **options) for x in inputs]
result = dict(alone=alone, batched=pipe(inputs, batch_size=4, **options))
result["kind"] = type(pipe.model).__name__
print(json.dumps(result))
"""


@pytest.fixture
def folder(tmp_path):
    byte_tokenizer().save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def pipe(task: str, folder, tmp_path, inputs=TEXTS, **options) -> dict:
    result = run(
        PROGRAM, folder, task, json.dumps(inputs), json.dumps(options), home=tmp_path / "home"
    )
    assert result.returncode == 0, result.stderr
    assert "not supported" not in result.stderr, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    "options",
    [dict(), dict(bidirectional=True, shared_theta=False, pooling="last")],
    ids=["plain", "bidirectional"],
)
def test_text_classification(options, folder, tmp_path):
    torch.manual_seed(0)
    config = HGRNConfig(**CONFIG, **options, id2label={0: "verse", 1: "prose", 2: "neither"})
    model = HGRNForSequenceClassification(config).eval()
    torch.nn.init.normal_(model.score.weight)  # so that the texts differ
    model.save_pretrained(folder)
    found = pipe("text-classification", folder, tmp_path, top_k=None)
    assert found["kind"] == "HGRNForSequenceClassification"
    for text, alone, batched in zip(TEXTS, found["alone"], found["batched"], strict=True):
        scores = model(torch.tensor([list(text.encode())])).logits.softmax(-1)[0]
        expected = {
            config.id2label[n]: pytest.approx(score, abs=1e-5)
            for n, score in enumerate(scores.tolist())
        }
        assert {row["label"]: row["score"] for row in alone} == expected
        assert {row["label"]: row["score"] for row in batched} == expected
    assert abs(found["alone"][0][0]["score"] - found["alone"][1][0]["score"]) > 1e-3


def test_text_generation(folder, tmp_path):
    torch.manual_seed(0)
    model = HGRNForCausalLM(HGRNConfig(**CONFIG)).eval()
    model.save_pretrained(folder)
    found = pipe("text-generation", folder, tmp_path, max_new_tokens=12, do_sample=False)
    assert found["kind"] == "HGRNForCausalLM"
    for text, (alone,), (batched,) in zip(TEXTS, found["alone"], found["batched"], strict=True):
        ids = model.generate(
            torch.tensor([list(text.encode())]), max_new_tokens=12, do_sample=False
        )
        expected = byte_tokenizer().decode(ids[0], skip_special_tokens=True)
        assert alone["generated_text"] == batched[
            "generated_text"
        ] == expected and expected.startswith(text)


@pytest.mark.parametrize("channels", [3, 1])
def test_image_classification(channels, tmp_path):
    """From files of several sizes and kinds."""
    torch.manual_seed(0)
    config = HGRNConfig(
        patch_size=4,
        num_channels=channels,
        hidden_size=16,
        num_hidden_layers=2,
        bidirectional=True,
        final_norm="pooled",
        id2label={0: "cat", 1: "dog", 2: "tree"},
    )
    model = HGRNForImageClassification(config).eval()
    torch.nn.init.normal_(model.score.weight)
    model.save_pretrained(tmp_path / "saved")
    options = {} if channels == 3 else dict(image_mean=[0.4], image_std=[0.2])
    processor = HGRNImageProcessor(
        num_channels=channels,
        size={"shortest_edge": 20},
        crop_size={"height": 16, "width": 16},
        **options,
    )
    processor.save_pretrained(tmp_path / "saved")

    generator = np.random.default_rng(0)
    files = []
    images = []
    for n, (kind, size) in enumerate(
        (("RGB", (30, 40, 3)), ("L", (25, 21)), ("RGBA", (20, 20, 4)))
    ):
        image = Image.fromarray(generator.integers(0, 255, size, dtype=np.uint8))
        assert image.mode == kind
        image.save(tmp_path / f"{n}.png")
        files.append(str(tmp_path / f"{n}.png"))
        images.append(image.convert("RGB"))  # as the pipeline reads files
    found = pipe("image-classification", tmp_path / "saved", tmp_path, inputs=files, top_k=3)
    assert found["kind"] == "HGRNForImageClassification"
    scores = model(**processor(images, return_tensors="pt")).logits.softmax(-1)
    for row, alone, batched in zip(scores.tolist(), found["alone"], found["batched"], strict=True):
        expected = {
            config.id2label[n]: pytest.approx(score, abs=1e-5) for n, score in enumerate(row)
        }
        assert {entry["label"]: entry["score"] for entry in alone} == expected
        assert {entry["label"]: entry["score"] for entry in batched} == expected
    assert (scores[0] - scores[1]).abs().max() > 1e-3


def test_a_program_that_imports_hgrn_is_not_asked_to_run_code(tmp_path, monkeypatch):
    HGRNForImageClassification(
        HGRNConfig(patch_size=4, hidden_size=8, num_hidden_layers=1)
    ).save_pretrained(tmp_path)
    HGRNImageProcessor(do_resize=False, do_center_crop=False).save_pretrained(tmp_path)
    questions = []
    monkeypatch.setattr("builtins.input", lambda *question: questions.append(question) or "n")
    for task in ("image-classification", "image-feature-extraction"):
        found = pipeline(task, model=str(tmp_path))
        assert isinstance(found.image_processor, HGRNImageProcessor)
        found(Image.new("RGB", (8, 8)))
    assert not questions
