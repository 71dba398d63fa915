"""The files of a published checkpoint: found on disk or on the hub, and read once."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import GenerationConfig
from transformers.utils import (
    CONFIG_NAME,
    GENERATION_CONFIG_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
)
from transformers.utils.hub import cached_file

from hgrn.models.published.config import infer_fields, to_fields
from hgrn.models.published.layouts import OURS, layout_of_config, layout_of_names
from hgrn.models.published.record import ConversionError, Layout
from hgrn.models.published.tensors import from_published
from hgrn.untrusted import read_json

# How often the bytes of a file may be used; tied embeddings use some of them twice.
_MOST_SHARING = 4
# The arguments of `from_pretrained` that say how the hub is asked.
_HUB_OPTIONS = (
    "cache_dir",
    "force_download",
    "proxies",
    "token",
    "revision",
    "local_files_only",
    "subfolder",
)


@dataclass(frozen=True)
class PublishedCheckpoint:
    """A checkpoint in a published layout: a folder, a repository of the hub, or a file.

    Nothing is read twice: the object keeps the tensors.

    Attributes:
        path: where it is, as the caller named it.
        layout: its layout.
        config: its config.json; None if there is none.
    """

    path: str
    layout: Layout
    config: dict[str, Any] | None
    _files: Sequence["TensorFile"]

    @classmethod
    def find(cls, path: str | os.PathLike[str], arguments: Mapping[str, Any]) -> Self | None:
        """What is at `path`; None if it is in our own layout, or no checkpoint.

        Args:
            path: a folder, a file, or the name of a repository.
            arguments: those of `from_pretrained`, some of which say how the hub is asked.

        Raises:
            ConversionError: the layout is ambiguous or unknown, or a file cannot be read.
        """
        path = os.fspath(path)
        hub = _hub_options(arguments)
        if os.path.isfile(path):
            return cls._recognised_by_names(path, [TensorFile(path)])
        config_file = _locate(path, CONFIG_NAME, hub)
        if config_file is None:
            files = _tensor_files(path, hub)
            return cls._recognised_by_names(path, files) if files else None
        config = read_json(config_file)
        layout = layout_of_config(config)
        if layout is not OURS:
            return cls(path, layout, config, _tensor_files(path, hub))
        # transformers reads our own folders, and would follow any path in these files.
        for name in (SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_INDEX_NAME):
            index = os.path.join(path, name)
            if os.path.isfile(index):
                _shard_names(index)
        return None

    @classmethod
    def _recognised_by_names(cls, path: str, files: Sequence["TensorFile"]) -> Self | None:
        layout = layout_of_names([name for file in files for name in file.names], path)
        return None if layout is OURS else cls(path, layout, None, files)

    @property
    def names(self) -> list[str]:
        """The published names of all tensors."""
        return [name for file in self._files for name in file.names]

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """All tensors, under their published names.

        Raises:
            ConversionError: a file is missing, damaged, or holds something else.
        """
        if not self._files:
            raise ConversionError(
                f"{self.path} holds a config.json but neither {SAFE_WEIGHTS_NAME} nor "
                f"{WEIGHTS_NAME}"
            )
        tensors = {}
        for file in self._files:
            tensors |= file.tensors
        return tensors

    def fields(self, mixer_options: Any = None) -> dict[str, Any]:
        """Fields of `HGRNConfig`, from the configuration or, without one, from the tensors.

        Args:
            mixer_options: what the caller gives for this field. Options that it does not name stay
                those of the checkpoint.

        Raises:
            ConversionError: as `to_fields`; without a configuration as `from_published` and
                `infer_fields`.
        """
        if self.config is not None:
            fields = to_fields(self.config, self.layout)
        else:
            tensors = from_published(self.tensors, self.layout.name)
            fields = infer_fields(tensors, self.layout, self.path)
        if isinstance(mixer_options, dict):
            mixer_options = fields.get("mixer_options", {}) | mixer_options
        return fields if mixer_options is None else {**fields, "mixer_options": mixer_options}

    def loading_options(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The given arguments without the hub's, and the checkpoint's settings of generation."""
        hub = _hub_options(arguments)
        options = {key: value for key, value in arguments.items() if key not in hub}
        if "generation_config" in options or os.path.isfile(self.path):
            return options
        if _locate(self.path, GENERATION_CONFIG_NAME, hub):
            options["generation_config"] = GenerationConfig.from_pretrained(self.path, **hub)
        return options


class TensorFile:
    """A file of named tensors (safetensors or `torch.save`) that a stranger may have written.

    The names in a safetensors file are seen without reading its tensors.
    """

    def __init__(self, path: str):
        self.path = path

    @cached_property
    def names(self) -> list[str]:
        """The names of its tensors. Raises ConversionError as `tensors`."""
        if not self.path.endswith(".safetensors"):
            return list(self.tensors)
        try:
            with safe_open(self.path, "pt") as file:
                return list(_without_wrapper(dict.fromkeys(file.keys())))
        except Exception as error:
            raise self._unreadable(error) from error

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by their names.

        Raises:
            ConversionError: it cannot be read, or holds something else.
        """
        content = self._read()
        # Programs of training put the tensors under one of these keys, beside their own settings.
        for entry in ("model", "state_dict"):
            if isinstance(content, dict) and isinstance(content.get(entry), dict):
                content = content[entry]
        if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
            raise ConversionError(f"{self.path} does not hold tensors by their names")
        content = _without_wrapper(content)
        if strange := [name for name, value in content.items() if not _is_plain(value)]:
            raise ConversionError(
                f"{self.path}: not tensors: {', '.join(strange[:5])}; or not with all of their "
                "numbers"
            )
        if sum(value.nbytes for value in content.values()) > _MOST_SHARING * os.path.getsize(
            self.path
        ):
            raise ConversionError(
                f"{self.path} holds tensors that share their numbers too often; save each by itself"
            )
        return content

    def _read(self) -> Any:
        # PyTorch's reader fails on a damaged file with whatever error its own code runs into.
        try:
            if self.path.endswith(".safetensors"):
                return load_file(self.path)
            return torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> ConversionError:
        return ConversionError(
            f"{self.path} cannot be read as tensors: {error}. If it holds more than tensors "
            "(checkpoints of fairseq and Lightning hold their settings too), load it where you "
            "trust it and save its "
            'entry "model" alone with torch.save ("state_dict" in those of Lightning)'
        )


def _without_wrapper(content: dict[str, Any]) -> dict[str, Any]:
    """Wrappers for several devices put "module." in front of all names; take it off."""
    if all(name.startswith("module.") for name in content):
        return {name.removeprefix("module."): value for name, value in content.items()}
    return content


def _is_plain(value: Any) -> bool:
    """Whether a value is a tensor with a place in the file for each of its numbers."""
    # Strides of 0 would make many numbers of a few bytes.
    if not isinstance(value, Tensor) or value.device.type != "cpu":
        return False
    if value.layout != torch.strided or value.is_quantized:
        return False
    return value.nbytes <= value.untyped_storage().nbytes()


def _hub_options(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {key: arguments[key] for key in _HUB_OPTIONS if key in arguments}


def _locate(path: str, name: str, hub: Mapping[str, Any]) -> str | None:
    """Where a file of the folder or repository is on this machine; None if it has none."""
    return cached_file(path, name, _raise_exceptions_for_missing_entries=False, **hub)


def _tensor_files(path: str, hub: Mapping[str, Any]) -> list[TensorFile]:
    """The files with the tensors of a folder or repository; none if it has none."""
    for name, index in (
        (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME),
        (WEIGHTS_NAME, WEIGHTS_INDEX_NAME),
    ):
        if found := _locate(path, name, hub):
            return [TensorFile(found)]
        if found := _locate(path, index, hub):
            shards = [cached_file(path, shard, **hub) for shard in _shard_names(found)]
            return [TensorFile(shard) for shard in shards if shard is not None]
    return []


def _shard_names(index: str) -> list[str]:
    """The files that the index of a checkpoint in several files names, all beside it."""
    named = read_json(index).get("weight_map")
    names = list(named.values()) if isinstance(named, dict) else []
    if not names or not all(
        isinstance(name, str) and re.fullmatch(r"[\w-][\w.-]*", name) for name in names
    ):
        raise ConversionError(
            f'{index} must give under "weight_map" the file of each tensor, by its name alone'
        )
    return sorted(set(names))
