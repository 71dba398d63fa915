"""The saved tokenizer gives the ids that the encoded data has, for texts that mislead others."""

import json

import numpy as np
import pytest
from transformers import AutoTokenizer

from hgrn.data.lra.listops import FILES, HEADER, ListOpsData
from hgrn.data.lra.listops_generator import Grammar, generate
from hgrn.data.lra.load import prepare
from hgrn.data.lra.retrieval import RetrievalData
from hgrn.data.lra.text import TextClassificationData
from hgrn.data.lra.tokenizer import build_tokenizer

TEXTS = [
    'He said\r\n  "no"\t.  ',
    "<eos> <pad> is text",
    "\u00e9e\u0301 \U0001f600\U0001f600",
    "",
    " ",
    "a" * 40,
    "\ufeff\x00\u2028",
    "<0x41>",
]
# The first texts are for training; the vocabulary of characters lacks what is only in the others.
UNSEEN = ["B\u4e2d\u4e2d\U0001f9d0", "~" * 50]


def saved(task, data, tmp_path):
    build_tokenizer(task, data).save_pretrained(tmp_path / "saved")
    return AutoTokenizer.from_pretrained(tmp_path / "saved")


@pytest.mark.parametrize("max_length", [20, 4096])
@pytest.mark.parametrize("level", ["characters", "bytes"])
def test_text(level, max_length, tmp_path):
    for split, texts in (("train", TEXTS), ("test", UNSEEN)):
        lines = [json.dumps({"text": text, "label": "no"}) + "\n" for text in texts]
        (tmp_path / f"{split}.jsonl").write_text("".join(lines))
    settings = {
        "level": level,
        "max_length": max_length,
        "min_count": 1,
        "cache": str(tmp_path / "cache"),
    }
    data = prepare(TextClassificationData(str(tmp_path), **settings))
    tokenizer = saved("text", data, tmp_path)
    for split, texts in (("train", TEXTS), ("test", UNSEEN)):
        for number, text in enumerate(texts):
            expected = data.splits[split].sequence(number).tolist()
            assert tokenizer(text, truncation=True)["input_ids"] == expected, text
            if len(expected) < max_length and (level == "bytes" or split == "train"):
                assert tokenizer.decode(expected, skip_special_tokens=True) == text
    batch = tokenizer(["a", "aa"], padding=True, return_tensors="np")
    assert sorted(batch) == ["attention_mask", "input_ids"]
    assert batch["input_ids"][0, -1] == tokenizer.pad_token_id == 0 and batch[
        "attention_mask"
    ].tolist() == [[1, 1, 0], [1, 1, 1]]


def test_half_a_surrogate_pair_in_the_vocabulary(tmp_path):
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text(
            json.dumps({"text": "z\ud83d\ue000y", "label": "no"}) + "\n"
        )
    data = prepare(
        TextClassificationData(str(tmp_path), cache=str(tmp_path / "cache"), min_count=1)
    )
    assert "\ud83d" in data.vocabulary.tokens
    assert (
        saved("text", data, tmp_path)("z\ue000y")["input_ids"]
        == data.vocabulary.encode("z\ue000y").tolist()
    )


def test_pairs_are_encoded_one_by_one(tmp_path):
    pairs = [('one "text"', "another"), ("third", "z")]
    for split in ("train", "test"):
        lines = [
            json.dumps({"text1": a, "text2": b, "label": number}) + "\n"
            for number, (a, b) in enumerate(pairs)
        ]
        (tmp_path / f"{split}.jsonl").write_text("".join(lines))
    data = prepare(RetrievalData(str(tmp_path), cache=str(tmp_path / "cache")))
    tokenizer = saved("retrieval", data, tmp_path)
    for number, texts in enumerate(pairs):
        for half, text in zip((data.splits["test"].first, data.splits["test"].second), texts):
            assert tokenizer(text)["input_ids"] == half.sequence(number).tolist()


@pytest.mark.parametrize("max_length", [30, 2048])
def test_listops(max_length, tmp_path):
    generate(tmp_path / "files", 0, 40, 5, 5, Grammar(min_length=10, max_length=60), processes=1)
    data = prepare(
        ListOpsData(str(tmp_path / "files"), cache=str(tmp_path / "cache"), max_length=max_length)
    )
    tokenizer = saved("listops", data, tmp_path)
    for split, name in FILES.items():
        header, *lines = (tmp_path / "files" / name).read_text().splitlines()
        assert header == HEADER
        for number, line in enumerate(lines):
            expected = data.splits[split].sequence(number)
            found = tokenizer(line.partition("\t")[0], truncation=True)["input_ids"]
            assert np.array_equal(found, expected)
            assert len(found) <= max_length and found[-1] == tokenizer.eos_token_id
    assert (
        tokenizer("( ( ( [FIRST 2 ) 9 ) ] )")["input_ids"]
        == data.vocabulary.encode(["[FIRST", "2", "9", "X"]).tolist()
    )
