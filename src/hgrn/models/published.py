"""Published checkpoints on disk: which layout they have, their configuration as ours and back, and their files."""

import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GenerationConfig
from transformers.utils import (
    CONFIG_NAME,
    GENERATION_CONFIG_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
    cached_file,
)

from hgrn.errors import UserError
from hgrn.files import reading, whole_folder
from hgrn.models import convert, published_classifiers
from hgrn.models.convert import ConversionError
from hgrn.untrusted import read_json

if TYPE_CHECKING:
    from hgrn.models.backbone import HGRNPreTrainedModel

_MOST_SHARING = (
    4  # how often the bytes of a file may be used; tied embeddings use some of them twice
)
_OWN_KINDS = (
    "HGRNForCausalLM",
    "HGRNForImageClassification",
    "HGRNForSequenceClassification",
    "HGRNForSequencePairClassification",
)
# What only the configuration of this layout has, and how the name of one of its tensors begins; "hgrn" is our own.
_KEYS = {
    "fla": ("attn_mode", "expand_ratio"),
    "opennlplab": ("decoder_embed_dim",),
    "hgrn": ("complex_state", "gate_position", "scale_embeddings"),
}
_NAMES = {
    "fla": r"model\.layers\.\d+\.attn\.",
    "opennlplab": r"model\.layers\.\d+\.token_mixer\.",
    "fairseq-lm": r"decoder\.layers\.\d+\.self_attn\.hgru\.",
    **published_classifiers.NAMES,
    "hgrn": r"model\.stack\.",
}
# Our fields, as every model of the layout has them.
_HGRU = dict(
    norm_type="layer",
    norm_eps=1e-5,
    complex_state=True,
    use_lower_bound=True,
    gate_position="after_norm",
    gate_act="silu",
    gate_rank=None,
)
_FIXED = {
    "fla": dict(
        glu_act="silu",
        bias=False,
        norm_type="rms",
        complex_state=False,
        use_lower_bound=True,
        gate_position="after_norm",
        gate_act="silu",
        gate_rank=None,
        scale_embeddings=False,
    ),
    "opennlplab": _HGRU | dict(glu_act="silu", conv_size=None),
    "fairseq-lm": _HGRU | dict(conv_size=None, scale_embeddings=True),
    **published_classifiers.FIXED,
}
# Published key -> the values that these models can have, first the one that we write; a key that is left out has it too.
_ALLOWED = {
    "fla": {
        "model_type": ("hgrn",),
        "expand_ratio": (1,),
        "use_lower_bound": (True,),
        "hidden_act": ("swish", "silu"),
        "elementwise_affine": (True,),
        "attn": (None,),
        "attnres_block_size": (None,),
    },
    # "swish" may have run as the identity there; see docs/checkpoints.md.
    "opennlplab": {
        "model_type": ("hgrn",),
        "act_fun": ("silu",),
        "glu_act": ("silu", "swish"),
        "norm_type": ("layernorm",),
        "causal": (True,),
    },
}
# Keys without a meaning for the numbers of the model.
_IGNORED = {
    "fla": (
        "attn_mode",
        "hidden_ratio",
        "max_position_embeddings",
        "num_heads",
        "initializer_range",
        "fuse_norm",
        "fuse_swiglu",
        "fuse_cross_entropy",
        "fuse_linear_cross_entropy",
        "use_l2warp",
        "auto_map",
    ),
    "opennlplab": ("use_triton", "init_std", "add_bos_token", "auto_map"),
}
_RENAMED = {
    "fla": {},
    "opennlplab": {
        "decoder_embed_dim": "hidden_size",
        "decoder_layers": "num_hidden_layers",
        "glu_dim": "intermediate_size",
    },
}
# What a key that is left out stands for, under our names; fairseq and single files keep no configuration at all.
_DEFAULTS = {
    "fla": dict(norm_eps=1e-6, tie_word_embeddings=False, bos_token_id=1, eos_token_id=2),
    "opennlplab": dict(bias=False, bos_token_id=0, eos_token_id=2, pad_token_id=1),
    "fairseq-lm": dict(glu_act="identity", bos_token_id=0, pad_token_id=1, eos_token_id=2),
}
_SHARED_FIELDS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "intermediate_size",
    "tie_word_embeddings",
    "use_cache",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)
_HUB = (
    "cache_dir",
    "force_download",
    "proxies",
    "token",
    "revision",
    "local_files_only",
    "subfolder",
)
_BESIDE = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "generation_config.json",
)


def layout_of_config(config: Mapping) -> str:
    """The layout whose keys a config.json has; "hgrn", our own, if it has no other's.

    Raises:
        ConversionError: it has keys of several.
    """
    found = {layout: [key for key in keys if key in config] for layout, keys in _KEYS.items()}
    found = {layout: keys for layout, keys in found.items() if keys}
    if len(found) > 1:
        listed = "; ".join(f"{layout} has {', '.join(keys)}" for layout, keys in found.items())
        raise ConversionError(
            f"the configuration is ambiguous, with keys of several layouts: {listed}; remove the wrong ones"
        )
    return next(iter(found), "hgrn")


def layout_of_names(names: Iterable[str], path: str) -> str:
    """The layout in which tensors have such names.

    Raises:
        ConversionError: it is none of a model, or several.
    """
    names = list(names)
    found = [
        layout for layout, start in _NAMES.items() if any(re.match(start, name) for name in names)
    ]
    if len(found) != 1:
        problem = (
            f"several ({', '.join(found)})" if found else "none that is known for whole models"
        )
        first = ", ".join(sorted(names)[:5]) or "missing"
        raise ConversionError(
            f"{path}: the layout of its tensors is {problem}; the first are {first}"
        )
    if found[0] in published_classifiers.LAYOUTS:
        return published_classifiers.form_of_names(found[0], names)
    return found[0]


def to_fields(config: Mapping, layout: str) -> dict:
    """A published configuration as fields of `HGRNConfig`; keys that belong to neither are left for it to refuse.

    Raises:
        ConversionError: naming every key whose value our models cannot have.
    """
    given = dict(config)
    problems = [
        f"{key}: must be {' or '.join(map(repr, allowed))}, got {given[key]!r}"
        for key, allowed in _ALLOWED[layout].items()
        if given.get(key, allowed[0]) not in allowed
    ]
    hidden_ratio = given.get("hidden_ratio") or 4
    for key in (*_ALLOWED[layout], *_IGNORED[layout]):
        given.pop(key, None)
    given = {_RENAMED[layout].get(key, key): value for key, value in given.items()}
    if layout == "fla":
        size = given.pop("conv_size", 4)
        has_conv = given.pop("use_short_conv", False)
        shared = given.pop("share_conv_kernel", None)
        given["conv_size"] = size if has_conv else None
        if has_conv and shared is not None:
            problems.append(
                f"share_conv_kernel: must be absent where use_short_conv is true (an older form), got {shared!r}"
            )
        width = given.get("hidden_size")
        if not isinstance(hidden_ratio, (int, float)) or not 0 < hidden_ratio < 1000:
            problems.append(f"hidden_ratio: must be a positive number, got {hidden_ratio!r}")
        elif (
            given.get("intermediate_size") is None
            and isinstance(width, int)
            and abs(width) < 1 << 31
        ):
            given["intermediate_size"] = 256 * -(-int(width * hidden_ratio * 2 / 3) // 256)
    else:
        given["scale_embeddings"] = not given.pop("no_scale_embedding", False)
    problems += [
        f"{name}: must be {value!r}, got {given[name]!r}"
        for name, value in _FIXED[layout].items()
        if given.get(name, value) != value
    ]
    if missing := [
        name for name in ("vocab_size", "hidden_size", "num_hidden_layers") if name not in given
    ]:
        problems.append(f"{', '.join(missing)}: not given")
    _raise(problems, f"a configuration of the layout {layout!r}")
    return _FIXED[layout] | dict(initialization="normal") | _DEFAULTS[layout] | given


def translated(config: Mapping) -> dict:
    """Any config.json as fields of `HGRNConfig`: ours as it is, a published one by `to_fields`."""
    layout = layout_of_config(config)
    return dict(config) if layout == "hgrn" else to_fields(config, layout)


def from_fields(config, layout: str) -> dict | None:
    """An `HGRNConfig` as the configuration of a published layout, None where the layout has no file of it.

    Raises:
        ConversionError: naming every field that is not as all models of the layout have it.
    """
    problems = [
        f"{name}: must be {value!r} there, is {getattr(config, name)!r}"
        for name, value in _FIXED[layout].items()
        if getattr(config, name) != value
    ]
    _raise(problems, f"a model for the layout {layout!r}")
    if layout not in _RENAMED:
        return None
    back = {ours: published for published, ours in _RENAMED[layout].items()}
    written = {
        key: allowed[0] for key, allowed in _ALLOWED[layout].items() if key != "attnres_block_size"
    }
    written |= {back.get(name, name): getattr(config, name) for name in _SHARED_FIELDS}
    if config.dtype is not None:
        written["dtype"] = str(config.dtype).removeprefix("torch.")
    if layout == "fla":
        conv = dict(use_short_conv=config.conv_size is not None, conv_size=config.conv_size or 4)
        return (
            written
            | conv
            | dict(
                norm_eps=config.norm_eps,
                attn_mode="fused_recurrent",
                architectures=["HGRNForCausalLM"],
            )
        )
    return written | dict(bias=config.bias, no_scale_embedding=not config.scale_embeddings)


class Published(NamedTuple):
    """A checkpoint in a published layout: a folder, a repository of the hub, or a single file of tensors.

    config is None where there is none; files hold the tensors.
    """

    path: str
    layout: str
    config: dict | None
    files: list[str]

    @classmethod
    def find(cls, path: str | os.PathLike, arguments: Mapping) -> Self | None:
        """What is at `path`; None where it is in our own layout, or not a checkpoint. `arguments` may say how the hub is asked.

        Raises:
            ConversionError: the layout is ambiguous or unknown, or a file cannot be read.
        """
        path = os.fspath(path)
        hub = {key: arguments[key] for key in _HUB if key in arguments}
        if os.path.isfile(path):
            return cls._by_names(path, [path])
        if config_file := _locate(path, CONFIG_NAME, hub):
            config = read_json(config_file)
            layout = layout_of_config(config)
            if layout != "hgrn":
                return cls(path, layout, config, _weight_files(path, hub))
            for index in (
                SAFE_WEIGHTS_INDEX_NAME,
                WEIGHTS_INDEX_NAME,
            ):  # transformers takes any path in them
                if os.path.isfile(os.path.join(path, index)):
                    _shards(os.path.join(path, index))
            return None
        files = _weight_files(path, hub)
        return cls._by_names(path, files) if files else None

    @classmethod
    def _by_names(cls, path: str, files: list[str]) -> Self | None:
        layout = layout_of_names(_read(files), path)
        return None if layout == "hgrn" else cls(path, layout, None, files)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors, under their published names.

        Raises:
            ConversionError: a file is missing, damaged, or holds something else.
        """
        if not self.files:
            raise ConversionError(
                f"{self.path} holds a config.json but neither {SAFE_WEIGHTS_NAME} nor {WEIGHTS_NAME}"
            )
        return _read(self.files)

    def fields(self, tensors: Mapping[str, Tensor]) -> dict:
        """Fields of `HGRNConfig`: what the configuration says; without one, what the tensors and the layout say.

        Raises:
            ConversionError: as `to_fields`; or without a configuration as `convert.from_published`.
        """
        if self.config is not None:
            return to_fields(self.config, self.layout)
        tensors = convert.from_published(tensors, self.layout)
        is_image = not any(
            line.ours == "model.embed_tokens.weight" for line in convert.LAYOUTS[self.layout]
        )
        embedding_name = (
            "model.embed_patches.proj.weight" if is_image else "model.embed_tokens.weight"
        )
        wanted = (
            embedding_name,
            "model.stack.bounds.logits",
            "model.stack.blocks.0.glu.down_proj.weight",
        )
        if missing := [name for name in wanted if name not in tensors]:
            raise ConversionError(
                f"{self.path}: the model's sizes cannot be told, since {', '.join(missing)} is missing"
            )
        embedding, bounds, down = (tensors[name] for name in wanted)
        sizes = dict(
            hidden_size=bounds.shape[1],
            num_hidden_layers=bounds.shape[0],
            intermediate_size=down.shape[-1],
        )
        if not is_image:
            sizes["vocab_size"] = embedding.shape[0]
        if self.layout in published_classifiers.FIXED:
            return _FIXED[self.layout] | sizes | published_classifiers.told(tensors, self.layout)
        conv = tensors.get("model.stack.blocks.0.mixer.short_conv.weight")
        sizes["conv_size"] = None if conv is None else conv.shape[-1]
        head = tensors.get("lm_head.weight", embedding)
        told = dict(
            bias="model.stack.blocks.0.mixer.in_proj.bias" in tensors,
            tie_word_embeddings=torch.equal(head, embedding),
        )
        ids = {
            k: v
            for k, v in _DEFAULTS[self.layout].items()
            if not k.endswith("_id") or v < sizes["vocab_size"]
        }
        return _FIXED[self.layout] | ids | sizes | told

    def kind(self, tensors: Mapping[str, Tensor]) -> str:
        """The name of the class that has the head of the checkpoint."""
        return (
            published_classifiers.head(tensors)
            if self.layout in published_classifiers.FIXED
            else "HGRNForCausalLM"
        )

    def options(self, arguments: Mapping) -> dict:
        """What remains of the arguments of `from_pretrained` when the tensors are at hand, and the settings of generation."""
        hub = {key: arguments[key] for key in _HUB if key in arguments}
        rest = {key: value for key, value in arguments.items() if key not in hub}
        if (
            "generation_config" not in rest
            and not os.path.isfile(self.path)
            and _locate(self.path, GENERATION_CONFIG_NAME, hub)
        ):
            rest["generation_config"] = GenerationConfig.from_pretrained(self.path, **hub)
        return rest


def convert_checkpoint(source: Path, out: Path, to: str | None = None, **fields) -> list[str]:
    """Writes the model in `source` into a new folder: a published one in our layout, one of ours in the layout `to`.

    Tokenizer files are copied. `fields` of `HGRNConfig` take the place of those that a published source says or implies.

    Returns:
        Lines that say what was read, assumed and written.

    Raises:
        UserError: out exists, the source is no checkpoint or does not fit together, or the layout cannot hold the model; nothing is
            left at `out`.
    """
    from hgrn import models

    with reading(out, "give another name"):
        if out.exists():
            raise UserError(f"{out} exists already; name a new folder")
    with reading(source):
        if not source.exists():
            raise UserError(f"there is no {source}: give a folder or a file of tensors")
    found = Published.find(source, {})
    if found is None:
        _check_own(source)
    layout = found.layout if found else "hgrn"
    target = to or "hgrn"
    if layout.split("-")[0] == target.split("-")[0]:
        raise UserError(
            f"{source} is in the layout {target!r} already"
            + ("; say which other with --to" if to is None else "")
        )
    if fields and not found:
        raise UserError(
            f"{source} is in our own layout, whose config.json decides {', '.join(fields)}"
        )
    try:
        kind = getattr(models, found.kind(found.tensors()) if found else _own_kind(source))
        model, report = kind.from_pretrained(source, output_loading_info=True, **fields)
    except UserError:
        raise
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{source} does not hold a model that can be loaded: {error}") from error
    _raise(
        [
            f"{kind}: {', '.join(map(str, sorted(names)))}"
            for kind, names in report.items()
            if names
        ],
        f"the model in {source}",
    )
    lines = [
        f"read {source}, layout {layout}: {sum(p.numel() for p in model.parameters()):,} parameters"
    ]
    if found and found.config is None:
        assumed = ("glu_act", "norm_eps", "bos_token_id", "eos_token_id", "pad_token_id")
        assumed = published_classifiers.assumed(layout) or assumed
        lines.append(
            "not in the source, and assumed: "
            + ", ".join(f"{name} {getattr(model.config, name)}" for name in assumed)
        )

    with whole_folder(out) as draft:
        if to is None:
            model.save_pretrained(draft)
        else:
            _save(model, draft, to)
        copied = _copy_beside(source, draft)
    return [
        *lines,
        f"wrote {out}, layout {target}" + (f", with {', '.join(copied)}" if copied else ""),
    ]


def _check_own(source: Path) -> None:
    """Raise ConversionError unless this, in which no published model was found, can hold one of ours."""
    file = source / CONFIG_NAME
    if not file.is_file():
        names = f"{CONFIG_NAME}, {SAFE_WEIGHTS_NAME} or {WEIGHTS_NAME}"
        raise ConversionError(
            f"{source} holds no model (no {names}): give the folder of a saved model, or a file of tensors"
        )
    kind = json.loads(file.read_text(encoding="utf-8")).get("model_type")
    if kind != "hgrn":
        raise ConversionError(
            f"{source} holds a model of type {kind!r}, and HGRN is converted here"
        )


def _own_kind(folder: Path) -> str:
    """The class that saved a folder in our own layout."""
    path = folder / CONFIG_NAME
    named = read_json(path).get("architectures") if path.is_file() else None
    first = named[0] if isinstance(named, list) and named else None
    return first if first in _OWN_KINDS else "HGRNForCausalLM"


def _save(model: "HGRNPreTrainedModel", out: Path, layout: str) -> None:
    if layout in published_classifiers.LAYOUTS:
        layout = published_classifiers.form_of_config(layout, model.config)
    config = from_fields(model.config, layout)
    save_file(convert.to_published(model, layout), out / SAFE_WEIGHTS_NAME, {"format": "pt"})
    if config is not None:
        (out / CONFIG_NAME).write_text(
            json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8"
        )


def _copy_beside(source: Path, out: Path) -> list[str]:
    """Copies the tokenizer and the settings of generation where they are in the source; returns the names."""
    names = [name for name in _BESIDE if (source / name).is_file() and not (out / name).exists()]
    for name in names:
        shutil.copyfile(source / name, out / name)
    return names


def _locate(path: str, name: str, hub: Mapping) -> str | None:
    return cached_file(path, name, _raise_exceptions_for_missing_entries=False, **hub)


def _weight_files(path: str, hub: Mapping) -> list[str]:
    for name, index in (
        (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME),
        (WEIGHTS_NAME, WEIGHTS_INDEX_NAME),
    ):
        if found := _locate(path, name, hub):
            return [found]
        if found := _locate(path, index, hub):
            return [cached_file(path, shard, **hub) for shard in _shards(found)]
    return []


def _shards(index: str) -> list[str]:
    """The files that the index of a checkpoint in several names, all of them beside it."""
    named = read_json(index).get("weight_map")
    names = list(named.values()) if isinstance(named, dict) else []
    if not names or not all(
        isinstance(name, str) and re.fullmatch(r"[\w-][\w.-]*", name) for name in names
    ):
        raise ConversionError(
            f'{index} must give under "weight_map" the file of each tensor, by its name alone'
        )
    return sorted(set(names))


def _read(files: Iterable[str]) -> dict[str, Tensor]:
    tensors = {}
    for file in files:
        read = _load(file)
        for entry in ("model", "state_dict"):
            if isinstance(read, dict) and isinstance(read.get(entry), dict):
                read = read[entry]
        if not isinstance(read, dict) or not all(isinstance(name, str) for name in read):
            raise ConversionError(f"{file} does not hold tensors by their names")
        if all(name.startswith("module.") for name in read):  # as wrappers for several devices save
            read = {name.removeprefix("module."): value for name, value in read.items()}
        if strange := [name for name, value in read.items() if not _is_plain(value)]:
            raise ConversionError(
                f"{file}: not tensors: {', '.join(strange[:5])}; or not with all of their numbers"
            )
        if sum(value.nbytes for value in read.values()) > _MOST_SHARING * os.path.getsize(file):
            raise ConversionError(
                f"{file} holds tensors that share their numbers too often; save each by itself"
            )
        tensors |= read
    return tensors


def _load(file: str) -> Any:
    """What is in a file of safetensors, or in one of `torch.save` that has no more than tensors and plain data."""
    try:
        return (
            load_file(file)
            if file.endswith(".safetensors")
            else torch.load(file, map_location="cpu", weights_only=True)
        )
    except (
        Exception
    ) as error:  # on a damaged file, PyTorch's reader fails with whatever its own code runs into
        raise ConversionError(
            f"{file} cannot be read as tensors: {error}. If it holds more than tensors (checkpoints of fairseq and Lightning hold "
            'their settings too), load it where you trust it and save its entry "model" alone with torch.save ("state_dict" in '
            "those of Lightning)"
        ) from error


def _is_plain(value: Any) -> bool:
    """Whether a value is a tensor with a place in the file for each of its numbers: strides of 0 make few bytes many."""
    if (
        not isinstance(value, Tensor)
        or value.layout != torch.strided
        or value.is_quantized
        or value.device.type != "cpu"
    ):
        return False
    return value.nbytes <= value.untyped_storage().nbytes()


def _raise(problems: list[str], what: str) -> None:
    if problems:
        raise ConversionError(
            f"{what} cannot be converted ({len(problems)} problem(s)):\n  " + "\n  ".join(problems)
        )
