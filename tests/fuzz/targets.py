"""Every reader of files that may come from elsewhere, each with small whole files that it reads."""

import bz2
import gzip
import hashlib
import json
import lzma
import pickle
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from hgrn.cli import inference
from hgrn.data.images.cifar import open_cifar
from hgrn.data.images.folders import FolderSource
from hgrn.data.images.idx import open_idx
from hgrn.data.images.shards import ShardSource
from hgrn.data.lra import load
from hgrn.data.lra.image import ArenaImageData
from hgrn.data.lra.listops import ListOpsData
from hgrn.data.lra.pathfinder import HARD, PathfinderData
from hgrn.data.lra.retrieval import FILES, RetrievalData
from hgrn.data.lra.text import TextClassificationData
from hgrn.data.text import SplitText, TextData, TextSplit
from hgrn.data.tokenizer import byte_tokenizer
from hgrn.data.tokens import prepare
from hgrn.models import (
    HGRNConfig,
    HGRNForCausalLM,
    HGRNForImageClassification,
    HGRNImageProcessor,
    Session,
)
from hgrn.models.published.convert import convert_checkpoint
from hgrn.training.checkpointing import load_state
from hgrn.training.manifests import Manifest, SavedFile, find_checkpoint
from hgrn.training.recipe import load_recipe, recipe_from_yaml, recipe_to_yaml
from hgrn.training.runfolder import LOCK, locked
from hgrn.training.runlog import read_rows
from tests.data.images.conftest import encoded
from tests.data.images.test_files import write_shard
from tests.data.images.test_fixed import write_cifar, write_idx
from tests.fuzz.run import Target
from tests.training.tiny_arena import write_arena
from tests.training.tiny_runs import tiny_recipe, tiny_text

TEXT = "".join(
    f'{{"text": "line {number} of a text", "label": {number % 3}, "year": {1900 + number}}}\n'
    for number in range(8)
)


def make_targets(root: Path) -> list[Target]:
    """All targets, their whole files in folders below `root`."""
    root.mkdir(parents=True)
    return [
        *_of_models(root),
        *_of_text(root),
        *_of_images(root),
        *_of_the_arena(root),
        *_of_runs(root),
    ]


def _language_model(folder: Path) -> HGRNForCausalLM:
    torch.manual_seed(0)
    model = HGRNForCausalLM(
        HGRNConfig(
            vocab_size=259,
            hidden_size=8,
            num_hidden_layers=2,
            complex_state=False,
            norm_type="rms",
            bias=False,
            scale_embeddings=False,
            tie_word_embeddings=False,
        )
    ).eval()
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return model


def _of_models(root: Path) -> list[Target]:
    model = _language_model(root / "model")
    torch.manual_seed(0)
    images = HGRNConfig(
        patch_size=4, num_channels=1, hidden_size=8, num_hidden_layers=1, num_labels=3
    )
    HGRNForImageClassification(images).save_pretrained(root / "classifier")
    HGRNImageProcessor(
        num_channels=1, image_mean=[0.5], image_std=[0.5], do_resize=False, do_center_crop=False
    ).save_pretrained(root / "classifier")
    convert_checkpoint(root / "model", root / "published", "fla")
    (root / "published-bin").mkdir()
    shutil.copy(root / "published" / "config.json", root / "published-bin")
    torch.save(
        load_file(root / "published" / "model.safetensors"),
        root / "published-bin" / "pytorch_model.bin",
    )
    shutil.copytree(root / "model", root / "checkpoint")
    torch.save(
        {"step": 4, "rng": torch.get_rng_state(), "optimizer": {"state": {0: torch.ones(3)}}},
        root / "checkpoint" / "rank-0.pt",
    )
    files = [
        SavedFile(file.name, file.stat().st_size, hashlib.sha256(file.read_bytes()).hexdigest())
        for file in sorted((root / "checkpoint").iterdir())
    ]
    (root / "checkpoint" / "manifest.json").write_text(
        json.dumps(asdict(Manifest(4, 1, "data", files)), indent=1)
    )
    session = Session(model)
    session.read([[1, 2, 3]])
    (root / "session").mkdir()
    session.branch(2).save(root / "session" / "talk")
    image = torch.zeros(1, 8, 8, dtype=torch.uint8)

    def load_session(folder: Path) -> None:
        Session.load(folder / "talk", model)
        raise AssertionError("a damaged session was used")

    def classify(folder: Path) -> None:
        model, processor = inference.load_classifier(folder)
        inference.classify(model, processor, image)

    def convert(folder: Path) -> None:
        convert_checkpoint(folder, folder / "out")

    def generate(folder: Path) -> None:
        model, tokenizer = inference.load(folder)
        inference.generate(model, tokenizer, "text", lambda _: None, max_new_tokens=2, seed=0)

    return [
        Target("model config", root / "model", ["config.json"], inference.load, 2),
        Target("model weights", root / "model", ["model.safetensors"], inference.load),
        Target(
            "tokenizer", root / "model", ["tokenizer.json", "tokenizer_config.json"], generate, 2
        ),
        Target("generation config", root / "model", ["generation_config.json"], generate),
        Target(
            "classifier",
            root / "classifier",
            ["config.json", "preprocessor_config.json"],
            classify,
            2,
        ),
        Target("convert config", root / "published", ["config.json"], convert, 2),
        Target("convert safetensors", root / "published", ["model.safetensors"], convert),
        Target("convert bin", root / "published-bin", ["pytorch_model.bin"], convert, 3),
        Target("manifest", root / "checkpoint", ["manifest.json"], find_checkpoint, 2),
        Target(
            "rank state",
            root / "checkpoint",
            ["rank-0.pt"],
            lambda folder: load_state(folder, 0),
            3,
        ),
        Target("session", root / "session", ["talk"], load_session, 4),
    ]


def _of_text(root: Path) -> list[Target]:
    folder = root / "text"
    folder.mkdir()
    (folder / "plain.txt").write_text(tiny_text())
    (folder / "lines.jsonl").write_text(TEXT)
    for suffix, compress in (
        (".gz", gzip.compress),
        (".bz2", bz2.compress),
        (".xz", lzma.compress),
    ):
        (folder / f"lines.jsonl{suffix}").write_bytes(compress(TEXT.encode()))
    cached = root / "token cache"
    cached.mkdir()
    (cached / "plain.txt").write_text(tiny_text())

    def data(folder: Path, name: str, **settings) -> TextData:
        return TextData(
            files=[str(folder / name)],
            splits={"train": TextSplit(**settings)},
            cache=str(folder / "cache"),
        )

    def read(folder: Path) -> None:
        for file in folder.iterdir():
            for unit in SplitText(data(folder, file.name), "train").units(whole_characters=True):
                b"".join(unit.blocks)

    # The name of a cache entry depends on the path of the text. So the cache is made of this text,
    # and each mutant gets a copy of the cache.
    text = data(cached, "plain.txt")
    whole = prepare(text, "train")
    expected = whole.read(0, len(whole))

    def prepare_again(folder: Path) -> None:
        tokens = prepare(
            TextData(files=text.files, splits=text.splits, cache=str(folder / "cache")), "train"
        )
        assert np.array_equal(tokens.read(0, len(tokens)), expected), "damaged tokens were used"

    (entry,) = (cached / "cache").glob("*/meta.json")
    entry = entry.parent.relative_to(cached)
    return [
        Target("text", folder, ["plain.txt"], read),
        Target("json lines", folder, ["lines.jsonl"], read, 3),
        Target(
            "compressed lines",
            folder,
            ["lines.jsonl.gz", "lines.jsonl.bz2", "lines.jsonl.xz"],
            read,
            3,
        ),
        Target(
            "token cache",
            cached,
            [f"{entry}/{name}" for name in ("meta.json", "tokens.bin", "documents.bin")],
            prepare_again,
            4,
        ),
    ]


def _of_images(root: Path) -> list[Target]:
    write_idx(root / "idx", 12, 4)
    write_idx(root / "idx plain", 12, 4, compress=False)
    binary, _ = write_cifar(root / "cifar binary", 100, "bin", 2)
    pickles, _ = write_cifar(root / "cifar pickle", 10, "py", 2)
    (root / "cifar pickle 5").mkdir()
    for file in pickles.iterdir():
        content = pickle.loads(file.read_bytes(), encoding="bytes")
        (root / "cifar pickle 5" / file.name).write_bytes(pickle.dumps(content, 5))
    for number, form in enumerate(("PNG", "JPEG", "WEBP")):
        place = root / "images" / "class"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}.{form.lower()}").write_bytes(encoded(number, form=form))
    (root / "shards").mkdir()
    labels = (("cls", b"1"), ("json", b'{"label": 1, "name": "a"}'), ("txt", b"2\n"))
    members = [
        (f"{n}.{suffix}", content)
        for n, (kind, label) in enumerate(labels)
        for suffix, content in (("png", encoded(n)), (kind, label))
    ]
    write_shard(root / "shards" / "part-0.tar", members)
    (root / "shards" / "pattern").write_text("part-{0..0}.tar")

    def read_folder(folder: Path) -> None:
        source = FolderSource(folder, 3)
        for number in range(len(source)):
            source.read(number)

    def read_shards(folder: Path) -> None:
        pattern = (folder / "pattern").read_bytes().decode("utf-8", "surrogateescape")
        source = ShardSource(f"{folder}/{pattern}", 3, 3)
        for number in range(len(source)):
            source.read(number)

    idx = ["train-images-idx3-ubyte", "train-labels-idx1-ubyte"]
    return [
        Target("idx", root / "idx plain", idx, lambda folder: open_idx(folder, "train"), 2),
        Target(
            "idx compressed",
            root / "idx",
            [f"{name}.gz" for name in idx],
            lambda folder: open_idx(folder, "train"),
            2,
        ),
        Target(
            "cifar binary",
            binary,
            ["test.bin", "fine_label_names.txt"],
            lambda folder: open_cifar(folder, "test"),
        ),
        Target(
            "cifar pickle 2",
            pickles,
            ["test_batch", "batches.meta"],
            lambda folder: open_cifar(folder, "test"),
            5,
        ),
        Target(
            "cifar pickle 5",
            root / "cifar pickle 5",
            ["test_batch", "batches.meta"],
            lambda folder: open_cifar(folder, "test"),
            5,
        ),
        Target(
            "images",
            root / "images",
            [f"class/{name}" for name in ("0.png", "1.jpeg", "2.webp")],
            read_folder,
            4,
        ),
        Target("shards", root / "shards", ["part-0.tar", "part-0.tar", "pattern"], read_shards, 5),
    ]


def _of_the_arena(root: Path) -> list[Target]:
    for kind in ("listops", "retrieval", "pathfinder"):
        write_arena(kind, root / kind)
    (root / "labelled text").mkdir()
    for split in ("train", "test"):
        (root / "labelled text" / f"{split}.jsonl").write_text(TEXT)
    shutil.copytree(root / "pathfinder", root / "pathfinder numpy")
    table = root / "pathfinder numpy" / HARD / "metadata" / "0.npy"
    rows = [line.split() for line in table.read_text().splitlines()]
    np.save(table, np.array(rows))
    cached = root / "arena cache"
    cached.mkdir()
    expected = load.prepare(ListOpsData(path=str(root / "listops"), cache=str(cached))).fingerprint

    def prepare_again(folder: Path) -> None:
        data = load.prepare(ListOpsData(path=str(root / "listops"), cache=str(folder)))
        assert data.fingerprint == expected, "a damaged entry was used"

    entry = next(cached.glob("*/meta.json")).parent
    files = [str(file.relative_to(cached)) for file in entry.rglob("*") if file.is_file()]
    pictures = [f"{HARD}/imgs/0/{number}.png" for number in range(3)]

    def opened(kind: type, **settings):
        return lambda folder: load.prepare(
            kind(path=str(folder), cache=str(folder / "cache"), **settings)
        )

    return [
        Target(
            "listops", root / "listops", ["basic_train.tsv", "basic_test.tsv"], opened(ListOpsData)
        ),
        Target("retrieval", root / "retrieval", list(FILES.values()), opened(RetrievalData), 2),
        Target(
            "labelled text",
            root / "labelled text",
            ["train.jsonl", "test.jsonl"],
            opened(TextClassificationData, min_count=1),
            3,
        ),
        Target(
            "pathfinder",
            root / "pathfinder",
            [f"{HARD}/metadata/0.npy", *pictures],
            opened(PathfinderData),
        ),
        Target(
            "pathfinder numpy",
            root / "pathfinder numpy",
            [f"{HARD}/metadata/0.npy"],
            opened(PathfinderData),
            2,
        ),
        Target(
            "arena image",
            root / "idx plain",
            ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"],
            opened(ArenaImageData),
        ),
        Target("arena cache", cached, files, prepare_again, 2),
    ]


def _of_runs(root: Path) -> list[Target]:
    folder = root / "run"
    recipe = tiny_recipe(folder)
    (folder / "recipe.yaml").write_text(recipe_to_yaml(recipe))
    rows = [
        {"kind": "train", "step": step, "loss": 2.5 / step, "tokens_per_s": 1e3, "time_left": 4.0}
        for step in range(1, 6)
    ]
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / LOCK).write_text(json.dumps({"host": "elsewhere", "pid": 1, "started": 5.0}))

    def lock(folder: Path) -> None:
        with locked(folder):
            pass

    def load_all(folder: Path) -> None:
        load_recipe(folder / "recipe.yaml")
        load_recipe(folder / "tiny.yaml", {"data.files": [str(root / "run" / "tiny.txt")]})

    return [
        Target("recipe", folder, ["tiny.yaml", "recipe.yaml"], load_all, 4),
        Target(
            "saved recipe",
            folder,
            ["recipe.yaml"],
            lambda folder: recipe_from_yaml(folder / "recipe.yaml"),
            4,
        ),
        Target("log", folder, ["log.jsonl"], lambda folder: read_rows(folder / "log.jsonl")),
        Target("run lock", folder, [LOCK], lock),
    ]
