"""Models from strangers: files that cost more than they say, or ask to run code."""

import json
import shutil
import tracemalloc

import pytest
import torch
from safetensors.torch import load_file

from hgrn.cli import inference
from hgrn.data.tokenizer import byte_tokenizer, load_tokenizer
from hgrn.errors import UserError
from hgrn.models import HGRNConfig, HGRNForCausalLM, HGRNImageProcessor
from hgrn.models.published.convert import convert_checkpoint


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A model of ours with its tokenizer, and the same in a published layout."""
    root = tmp_path_factory.mktemp("models")
    config = HGRNConfig(
        vocab_size=259,
        hidden_size=8,
        num_hidden_layers=1,
        complex_state=False,
        norm_type="rms",
        bias=False,
        scale_embeddings=False,
        tie_word_embeddings=False,
    )
    HGRNForCausalLM(config).save_pretrained(root / "ours")
    byte_tokenizer().save_pretrained(root / "ours")
    convert_checkpoint(root / "ours", root / "fla", "fla")
    return root


@pytest.fixture
def ours(whole, tmp_path):
    return shutil.copytree(whole / "ours", tmp_path / "ours")


@pytest.fixture
def fla(whole, tmp_path):
    return shutil.copytree(whole / "fla", tmp_path / "fla")


def change(folder, **settings):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "is not valid JSON"),
        (b"{", "is not valid JSON"),
        (b"\xff\xfe{", "is not valid JSON"),
        (b"[" * 100_000, "nested too deep"),
        (b'{"a":' * 60 + b"1" + b"}" * 60, "nested more than 50 levels deep"),
        (b"[]", "must hold a JSON object; it holds a list"),
        (b"5", "it holds a int"),
        (b'{"vocab_size": ' + b"9" * 5000 + b"}", "is not valid JSON"),
        (b"{}", "not hold a model|not valid|cannot be"),
    ],
)
@pytest.mark.parametrize("layout", ["ours", "fla"])
def test_configurations_that_are_none(ours, fla, content, message, layout, tmp_path):
    folder = {"ours": ours, "fla": fla}[layout]
    (folder / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=message):
        inference.load(folder)
    with pytest.raises(UserError):
        convert_checkpoint(folder, tmp_path / "out", "fla" if layout == "ours" else None)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "settings, message",
    [
        (
            dict(hidden_size=10**9),
            "hidden_size: the model would have more than 10,000,000,000,000 parameters",
        ),
        (dict(num_hidden_layers=10**9), "num_hidden_layers: must be at most 10,000"),
        (dict(num_labels=10**9), "num_labels: must be an integer from 1 to 1,000,000"),
        (dict(id2label=5), "id2label: must be a name for each number"),
        (dict(id2label={"x": "y"}), "id2label: must be a name for each number"),
        (dict(label2id=[1]), "label2id: must be"),
        (dict(dtype="load"), "dtype: must be the name of a type of PyTorch"),
        (dict(dtype=[1]), "dtype: must be the name of a type of PyTorch"),
        (dict(norm_eps=1e999), "norm_eps: must be a positive number"),
        (dict(problem_type="x"), "problem_type: must be one of"),
        (dict(quantization_config=5), "quantization_config: must be an object"),
        (dict(output_hidden_states="x"), "output_hidden_states: must be True, False or None"),
        (dict(attn_implementation="somebody/kernel"), "attn_implementation: must be None"),
        (dict(_attn_implementation="somebody/kernel"), "attn_implementation: must be None"),
        (dict(per_layer_config={"0": {}}), "per_layer_config: must be None"),
        (dict(__class__="x"), "__class__: no such field"),
        (dict(_anything=1), "_anything: no such field"),
    ],
)
def test_fields_that_hold_something_else(ours, settings, message):
    with pytest.raises(ValueError, match=message):
        HGRNConfig(**settings)
    change(ours, **settings)
    with pytest.raises(UserError, match=message):
        inference.load(ours)


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(self=1), "self: no such field"),
        (dict(architectures=5), "architectures in its config.json must be a list of names"),
        (dict(architectures=[5]), "architectures in its config.json must be a list of names"),
        (
            dict(configuration_files=["../config.4.0.0.json"]),
            "names other files to be read in its place",
        ),
        *(
            (sizes, "describes a model of .* parameters or more, and its files have")
            for sizes in (
                dict(vocab_size=10**9),
                dict(hidden_size=4096),
                dict(num_hidden_layers=9000),
                dict(intermediate_size=10**6),
                dict(conv_size=10**8),
            )
        ),
    ],
)
def test_configurations_that_do_not_belong_to_the_files(ours, settings, message):
    change(ours, **settings)
    tracemalloc.start()
    with pytest.raises(UserError, match=message):
        inference.load(ours)
    assert tracemalloc.get_traced_memory()[1] < 50_000_000
    tracemalloc.stop()


@pytest.mark.parametrize(
    "settings",
    [
        dict(hidden_size="8"),
        dict(hidden_size=10**400),
        dict(hidden_ratio="x"),
        dict(hidden_ratio=1e999),
        dict(hidden_ratio=[], intermediate_size=None),
        dict(vocab_size=10**9),
        dict(num_hidden_layers=9000),
        dict(intermediate_size=[]),
        dict(expand_ratio={}),
        dict(decoder_embed_dim=8),
        dict(norm_eps=None),
    ],
)
def test_published_configurations(fla, settings, tmp_path):
    change(fla, **settings)
    with pytest.raises(UserError):
        convert_checkpoint(fla, tmp_path / "out")


def bin_file(folder, tensors):
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")


def test_tensors_that_repeat_one_number(fla, tmp_path):
    tensors = load_file(fla / "model.safetensors")
    bin_file(fla, tensors | {"lm_head.weight": torch.ones(1).expand(1 << 20, 1 << 16)})
    with pytest.raises(
        UserError, match="not tensors: lm_head.weight; or not with all of their numbers"
    ):
        convert_checkpoint(fla, tmp_path / "out")
    bin_file_again = tensors | {
        f"model.layers.{n}.attn.i_proj.weight": tensors["lm_head.weight"] for n in range(50)
    }
    torch.save(bin_file_again, fla / "pytorch_model.bin")
    with pytest.raises(UserError, match="share their numbers too often"):
        convert_checkpoint(fla, tmp_path / "out")


@pytest.mark.parametrize(
    "other",
    [
        {"x": torch.ones(2).to_sparse()},
        {"x": torch.ones(2, device="meta")},
        {"x": 5},
        {5: torch.ones(1)},
        [torch.ones(1)],
        7,
    ],
)
def test_what_is_no_tensor_by_its_name(fla, tmp_path, other):
    bin_file(fla, other)
    with pytest.raises(UserError, match="not tensors|does not hold tensors by their names"):
        convert_checkpoint(fla, tmp_path / "out")


@pytest.mark.parametrize(
    "index",
    [
        {},
        {"weight_map": 5},
        {"weight_map": {}},
        {"weight_map": {"a": 5}},
        {"weight_map": {"a": "../../other/model.safetensors"}},
        {"weight_map": {"a": "/etc/passwd"}},
        {"weight_map": {"a": "sub/x.safetensors"}},
    ],
)
@pytest.mark.parametrize("layout", ["ours", "fla"])
def test_shards_lie_beside_their_index(ours, fla, tmp_path, index, layout):
    folder = {"ours": ours, "fla": fla}[layout]
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(
        UserError, match='must give under "weight_map" the file of each tensor, by its name alone'
    ):
        inference.load(folder)


def test_a_tokenizer_that_asks_to_run_code(ours, monkeypatch):
    """On a terminal transformers would ask, and run it for a y."""
    file = ours / "tokenizer_config.json"
    asks = {"auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}, "tokenizer_class": "Evil"}
    file.write_text(json.dumps(json.loads(file.read_text()) | asks))
    (ours / "evil.py").write_text("open('ran', 'w')\n")
    monkeypatch.chdir(ours)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    with pytest.raises(UserError, match="cannot be loaded"):
        load_tokenizer(str(ours))
    assert not (ours / "ran").exists()


@pytest.mark.parametrize(
    "settings",
    [
        dict(size=5.5),
        dict(crop_size={"height": 10**9, "width": 1}),
        dict(image_mean="x"),
        dict(image_std=[0]),
        dict(do_resize="x"),
        dict(resample=99),
        dict(num_channels=2),
        dict(num_channels=[1]),
        dict(rescale_factor=float("inf")),
    ],
)
def test_image_processors(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        HGRNImageProcessor(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        dict(model_max_length="x"),
        dict(eos_token=5),
        dict(extra_special_tokens="x"),
        dict(padding_side="x"),
    ],
)
def test_settings_of_a_tokenizer(ours, settings):
    file = ours / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    with pytest.raises(UserError, match="cannot be loaded"):
        load_tokenizer(str(ours))
