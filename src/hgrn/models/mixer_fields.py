"""The fields of a configuration that say which mixer its layers have, and how it is made."""

from dataclasses import fields
from typing import Any

from transformers import PreTrainedConfig

from hgrn.modules.mixers import OWN_MIXERS, differs, problem_of_options, record_of, unknown_mixer

# The fields that are options of an HGRU. Other mixers get those that are not their defaults.
_OF_HGRU = (
    *("complex_state", "gate_position", "gate_act", "gate_rank", "conv_size"),
    *("bidirectional", "shared_theta"),
)


def mixer_arguments(config: PreTrainedConfig) -> dict[str, Any]:
    """The options with which the mixers of a model are made, beside those of its stack."""
    defaults = {each.name: each.default for each in fields(config)}
    given = {name: getattr(config, name) for name in _OF_HGRU}
    if config.mixer != "hgru":
        given = {name: value for name, value in given.items() if value != defaults[name]}
    return given | (config.mixer_options or {})


def mixer_problems(config: PreTrainedConfig) -> list[str]:
    """A line for the first problem of mixer and mixer_options, if there is one.

    A checkpoint may record another class under the name (`record`); that is a problem too.
    """
    name = config.mixer
    options = config.mixer_options
    if problem := unknown_mixer(name):
        return [f"mixer: {problem}"]
    if options is not None and not isinstance(options, dict):
        return [f"mixer_options: must be arguments by name or None, got {options!r}"]
    if name == "hgru":
        rule = "mixer_options: must be None for the mixer hgru, whose options are fields"
        return [f"{rule}, got {options!r}"] if options else []
    if config.grid is True:
        return [f"grid: must be False with another mixer than hgru, got mixer={name!r}"]
    arguments = mixer_arguments(config)
    if problem := problem_of_options(name, config.hidden_size, arguments):
        return [f"mixer_options: {problem}"]
    recorded = getattr(config, "mixer_record", None)
    if recorded and (problem := differs(recorded, record_of(name, arguments))):
        return [f"mixer: {name!r} {problem}, so its weights would be another model"]
    return []


def record(config: PreTrainedConfig) -> None:
    """Write down the class of a registered mixer, and a digest of its options.

    They are for error messages: nothing is ever imported because a file names it.
    """
    if config.mixer not in OWN_MIXERS:
        config.mixer_record = record_of(config.mixer, mixer_arguments(config))
