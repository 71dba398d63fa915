"""All published layouts, and how a checkpoint's own is recognised.

To add one, write its record into the file of its family (`language_models.py`, `classifiers.py`,
`single_layers.py`) and add it to that file's tuple. No other code knows layouts by name. The help
of `hgrn convert` and docs/checkpoints.md describe them; a test sees to that.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from transformers import PreTrainedConfig

from hgrn.models.published.classifiers import CLASSIFIERS
from hgrn.models.published.language_models import LANGUAGE_MODELS
from hgrn.models.published.record import ConfigFile, ConversionError, Layout
from hgrn.models.published.single_layers import SINGLE_LAYERS

LAYOUTS = {layout.name: layout for layout in (*SINGLE_LAYERS, *LANGUAGE_MODELS, *CLASSIFIERS)}

# Our own layout. Nothing is converted there, so it only has to be recognised.
OURS = Layout(
    name="hgrn",
    has=(r"model\.stack\.",),
    config_file=ConfigFile(
        marks=("complex_state", "gate_position", "scale_embeddings", "mixer_options")
    ),
)


def layout_named(name: str) -> Layout:
    """The layout of this name. Raises ValueError if there is none."""
    if name not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {name!r}")
    return LAYOUTS[name]


def families() -> list[str]:
    """The layouts of whole models, as `hgrn convert --to` calls them."""
    return list(dict.fromkeys(layout.family for layout in LAYOUTS.values() if layout.has))


def variant_of(family: str, config: PreTrainedConfig) -> Layout:
    """The layout of this family for a model with this configuration.

    Raises ConversionError if there is no such family.
    """
    for layout in LAYOUTS.values():
        if layout.has and layout.family == family and layout.fits(config):
            return layout
    raise ConversionError(f"--to must be one of {', '.join(families())}, got {family!r}")


def layout_of_config(config: Mapping[str, Any]) -> Layout:
    """The layout whose keys a config.json has; our own if it has no other's.

    Raises:
        ConversionError: it has keys of several layouts.
    """
    files = {layout.name: layout.config_file for layout in (*LAYOUTS.values(), OURS)}
    known = [file.model_type for file in files.values() if file is not None]
    kind = config.get("model_type")
    kind = kind if kind in known else "hgrn"
    # Configurations of several packages have fields in common, so only marks count. Ours always do:
    # a published file with one of them would set a field that it should not.
    found: dict[str, list[str]] = {}
    for name, file in files.items():
        if file is None or (file.model_type != kind and name != OURS.name):
            continue
        if keys := [key for key in file.marks if key in config]:
            found[name] = keys
    if len(found) > 1:
        listed = "; ".join(f"{name} has {', '.join(keys)}" for name, keys in found.items())
        raise ConversionError(
            f"the configuration is ambiguous, with keys of several layouts: {listed}; remove the "
            "wrong ones"
        )
    name = next(iter(found), OURS.name)
    return OURS if name == OURS.name else LAYOUTS[name]


def layout_of_names(names: Iterable[str], path: str) -> Layout:
    """The layout of tensors with these names; `path` is where they are, for the message.

    Raises:
        ConversionError: they are in no layout of a whole model, or in several.
    """
    names = sorted(names)
    found = [layout for layout in (*LAYOUTS.values(), OURS) if layout.is_layout_of(names)]
    if len(found) == 1:
        return found[0]
    if found:
        problem = f"several ({', '.join(layout.family for layout in found)})"
    else:
        problem = "none that is known for whole models"
    first = ", ".join(names[:5]) or "missing"
    raise ConversionError(f"{path}: the layout of its tensors is {problem}; the first are {first}")
