"""The token mixers by name: the package's own, and those that a program registers.

A configuration holds a name. So that a checkpoint is never read with another class, it also records
the class and its options (`record_of`); nobody imports a class because a file names it.
"""

import hashlib
import inspect
import json
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from hgrn.errors import near
from hgrn.modules.hgrn2 import HGRN2Mixer
from hgrn.modules.hgru import HGRU
from hgrn.modules.mixer import Mixer

_Class = TypeVar("_Class", bound=type[Mixer])
OWN_MIXERS: dict[str, type[Mixer]] = {"hgru": HGRU, "hgrn2": HGRN2Mixer}
_registered: dict[str, type[Mixer]] = {}
# What a stack gives to every mixer.
_OF_STACK = ("self", "dim", "bias", "norm_eps", "norm_type")


def register_mixer(name: str) -> Callable[[_Class], _Class]:
    """Gives a class of mixers a name, for `HGRNConfig(mixer=name)` and `HGRN(mixer=name)`.

    A class decorator. To register the same class again, as when its file is imported under two
    names, changes nothing.

    Raises:
        ValueError: the name belongs to another class.
        TypeError: the class does not derive from `hgrn.modules.Mixer`.

    Example:
        >>> from hgrn.modules import HGRU, register_mixer
        >>> @register_mixer("my-hgru")
        ... class MyHGRU(HGRU):
        ...     pass
    """

    def register(cls: _Class) -> _Class:
        if not (isinstance(cls, type) and issubclass(cls, Mixer)):
            raise TypeError(f"a mixer must be a class derived from hgrn.modules.Mixer, got {cls!r}")
        known = OWN_MIXERS.get(name) or _registered.get(name)
        if known is not None and not _same(class_path(known), class_path(cls)):
            raise ValueError(
                f"the mixer {name!r} is {class_path(known)} already; give {class_path(cls)} "
                "another name"
            )
        if name not in OWN_MIXERS:
            _registered[name] = cls
        return cls

    return register


def mixer_names() -> list[str]:
    """The names that a mixer can have now."""
    return [*OWN_MIXERS, *_registered]


def mixer_named(name: str) -> type[Mixer]:
    """The mixer of this name.

    Raises ValueError if there is none.
    """
    if problem := unknown_mixer(name):
        raise ValueError(f"mixer {problem}")
    return OWN_MIXERS.get(name) or _registered[name]


def unknown_mixer(name: object) -> str:
    """What a name must be, in words, unless it is the name of a mixer; "" if it is."""
    if name in mixer_names():
        return ""
    hint = near(name, mixer_names()) if isinstance(name, str) else ""
    return (
        f"must be one of {', '.join(mixer_names())}, got {name!r}{hint}; a mixer of your own must "
        "be registered first: import the module that calls register_mixer (commands: --import "
        "MODULE)"
    )


def problem_of_options(name: str, dim: int, options: dict[str, Any]) -> str:
    """Why the mixer cannot be made with these options, in words; "" if it can."""
    cls = mixer_named(name)
    taken = _parameters(cls)
    unknown = [key for key in options if key not in taken]
    if not unknown:
        try:
            mixer_on_meta(name, dim, options)
        except (TypeError, ValueError) as error:
            return str(error)
        return ""
    known = [key for key in taken if key not in _OF_STACK]
    return (
        f"mixer {name!r} takes no {', '.join(unknown)}{near(unknown[0], known)}; it takes "
        f"{', '.join(known) or 'no options'}"
    )


def mixer_on_meta(name: str, dim: int, options: dict[str, Any]) -> Mixer:
    """Such a mixer without numbers, which costs no memory.

    Raises ValueError or TypeError if the mixer cannot be made with these options.
    """
    of_stack = {"bias": True, "norm_eps": 1e-5, "norm_type": "layer"}
    with torch.device("meta"):
        return mixer_named(name)(dim, **of_stack | options)


def all_options(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """These options and, by their defaults, all others that are not a stack's to give."""
    return {
        key: options.get(key, parameter.default)
        for key, parameter in _parameters(mixer_named(name)).items()
        if key not in _OF_STACK or key in options
    }


def record_of(name: str, options: dict[str, Any]) -> dict[str, str]:
    """What a checkpoint records of a mixer: its class, and a digest of all options it is made with.

    The options that were not given count with their defaults, so a changed default shows.
    """
    resolved = json.dumps(all_options(name, options), sort_keys=True, default=repr)
    digest = hashlib.sha256(resolved.encode())
    return {"class": class_path(mixer_named(name)), "options": digest.hexdigest()[:16]}


def differs(recorded: dict[str, str], found: dict[str, str]) -> str:
    """How the mixer of a checkpoint differs from the one of that name here; "" if it does not."""
    if not _same(recorded.get("class", ""), found["class"]):
        return f"is {recorded.get('class')} in the checkpoint, but {found['class']} here"
    if recorded.get("options") != found["options"]:
        return f"has other options, or other defaults of them, than {found['class']} has here"
    return ""


def class_path(cls: type) -> str:
    """Module and name of a class."""
    return f"{cls.__module__}.{cls.__qualname__}"


def _same(one: str, other: str) -> bool:
    """Whether two paths are of one class; a file that is run is called `__main__`."""
    if one == other:
        return True
    module, _, name = one.rpartition(".")
    other_module, _, other_name = other.rpartition(".")
    return name == other_name and "__main__" in (module, other_module)


def _parameters(cls: type) -> dict[str, inspect.Parameter]:
    """The arguments of a class by name; where it passes `**options` on, also its base's."""
    found: dict[str, inspect.Parameter] = {}
    for base in cls.__mro__:
        init = vars(base).get("__init__")
        if init is None:
            continue
        parameters = inspect.signature(init).parameters.values()
        named = [x for x in parameters if x.kind not in (x.VAR_KEYWORD, x.VAR_POSITIONAL)]
        found = {x.name: x for x in named} | found
        if not any(x.kind == x.VAR_KEYWORD for x in parameters):
            break
    return found
