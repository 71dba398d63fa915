"""Configurations: a published config.json as our fields, and back; and fields from tensors."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig

from hgrn.models.mixer_fields import mixer_arguments
from hgrn.models.published.layouts import OURS, layout_of_config
from hgrn.models.published.record import ConversionError, Layout, raise_problems
from hgrn.modules.mixers import all_options

# Written under our names, or under those that the layout has in their place.
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


def as_our_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Any config.json as fields of `HGRNConfig`: ours as it is, a published one by `to_fields`."""
    layout = layout_of_config(config)
    return dict(config) if layout is OURS else to_fields(config, layout)


def to_fields(config: Mapping[str, Any], layout: Layout) -> dict[str, Any]:
    """A published configuration as fields of `HGRNConfig`.

    Keys that nobody knows stay, for `HGRNConfig` to refuse.

    Raises:
        ConversionError: naming every key whose value our models cannot have.
    """
    file = layout.config_file
    if file is None:
        raise ValueError(f"models of the layout {layout.name!r} have no config.json")
    given = dict(config)
    problems = [
        f"{key}: must be {' or '.join(map(repr, allowed))}, got {given[key]!r}"
        for key, allowed in file.allowed.items()
        if given.get(key, allowed[0]) not in allowed
    ]
    # Some of these have the name of a field of ours and mean something else.
    for key in (*file.allowed, *file.ignored):
        given.pop(key, None)
    given = {file.renamed.get(key, key): value for key, value in given.items()}
    problems += file.read(given)
    problems += [
        f"{name}: must be {value!r}, got {given[name]!r}"
        for name, value in layout.fixed.items()
        if given.get(name, value) != value
    ]
    sizes = ("vocab_size", "hidden_size", "num_hidden_layers")
    if missing := [name for name in sizes if name not in given]:
        problems.append(f"{', '.join(missing)}: not given")
    raise_problems(problems, f"a configuration of the layout {layout.name!r} cannot be converted")
    # A head that is added later starts as these packages start theirs.
    fields = {**layout.fixed, "initialization": "normal", **layout.defaults, **given}
    return fields | _mixer_options(fields, layout)


def from_fields(config: PreTrainedConfig, layout: Layout) -> dict[str, Any] | None:
    """An `HGRNConfig` as a published config.json; None if the layout has none.

    Raises:
        ConversionError: naming every field that is not as all models of the layout have it.
    """
    problems = [
        f"{name}: must be {value!r} there, is {getattr(config, name)!r}"
        for name, value in layout.fixed.items()
        if getattr(config, name) != value
    ]
    # The options of two mixers have nothing to do with each other.
    if config.mixer == layout.fixed["mixer"]:
        problems += _mixer_problems(config, layout)
    raise_problems(problems, f"a model for the layout {layout.name!r} cannot be converted")
    file = layout.config_file
    if file is None:
        return None
    published_name = {ours: published for published, ours in file.renamed.items()}
    written = {key: allowed[0] for key, allowed in file.allowed.items()}
    for name in _SHARED_FIELDS:
        written[published_name.get(name, name)] = getattr(config, name)
    if config.dtype is not None:
        written["dtype"] = str(config.dtype).removeprefix("torch.")
    return written | file.write(config)


def infer_fields(tensors: Mapping[str, Tensor], layout: Layout, path: str) -> dict[str, Any]:
    """Fields of `HGRNConfig` from tensors alone: their sizes, and what the layout implies.

    Args:
        tensors: all of them, under our names.
        layout: the layout from which they come.
        path: where they are, for the message.

    Raises:
        ConversionError: a tensor that tells a size is missing.
    """
    kind = "embed_patches.proj" if layout.reads_images else "embed_tokens"
    wanted = (
        f"model.{kind}.weight",
        "model.stack.bounds.logits",
        "model.stack.blocks.0.glu.down_proj.weight",
    )
    if missing := [name for name in wanted if name not in tensors]:
        raise ConversionError(
            f"{path}: the sizes of the model are unknown, since {', '.join(missing)} is missing"
        )
    embedding, bounds, down = (tensors[name] for name in wanted)
    sizes = dict(
        hidden_size=bounds.shape[1],
        num_hidden_layers=bounds.shape[0],
        intermediate_size=down.shape[-1],
    )
    defaults = dict(layout.defaults)
    if not layout.reads_images:
        sizes["vocab_size"] = embedding.shape[0]
        # A special token beyond the vocabulary is another vocabulary's.
        defaults = {
            name: value
            for name, value in defaults.items()
            if not name.endswith("_id") or value < sizes["vocab_size"]
        }
    found = {**layout.fixed, **defaults, **sizes, **layout.infer(tensors)}
    return found | _mixer_options(found, layout)


def _mixer_options(fields: Mapping[str, Any], layout: Layout) -> dict[str, Any]:
    """The field mixer_options, those that all models of the layout have included."""
    options = {**layout.mixer_options, **fields.get("mixer_options", {})}
    return {"mixer_options": options} if options else {}


def _mixer_problems(config: PreTrainedConfig, layout: Layout) -> list[str]:
    """A line for each option of the mixers that is not as all models of the layout have it."""
    of_stack = {name: getattr(config, name) for name in ("bias", "norm_eps", "norm_type")}
    given = all_options(config.mixer, of_stack | mixer_arguments(config))
    return [
        f"mixer_options: {name} must be {value!r} there, is {given[name]!r}"
        for name, value in (of_stack | dict(layout.mixer_options)).items()
        if given[name] != value
    ]
