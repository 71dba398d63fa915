"""Custom parts of a model: those that its configuration does not describe.

A checkpoint records them, so that it is never read as plain HGRN, which would be another model.
"""

import torch
from torch import nn

from hgrn.errors import UserError
from hgrn.modules import GLU, BatchNorm, Int8Linear, Mixer

# What these compute depends on their settings too. The settings of all other modules are sizes,
# which the weights show.
_WITH_SETTINGS = (Mixer, GLU, nn.LayerNorm, nn.RMSNorm, BatchNorm)


def custom_modules(found: nn.Module, plain: nn.Module) -> dict[str, str]:
    """Names and descriptions of the modules in `found` that are not in `plain`, or not so.

    Dropout is left out, because it computes nothing in evaluation.
    """
    expected = dict(plain.named_modules())
    custom = {}
    for name, module in found.named_modules():
        is_inside = any(name.startswith(f"{outer}.") for outer in custom)
        if not is_inside and not _is_same(module, expected.get(name)):
            custom[name] = _described(module)
    return custom


def check_custom_modules(recorded: object, found: dict[str, str], path: object) -> None:
    """Raise UserError unless a model has the parts that its checkpoint records."""
    parts = str(recorded)
    if isinstance(recorded, dict):
        if all(found.get(name) == what for name, what in recorded.items()):
            return
        parts = "; ".join(f"{name or 'model'} is {what}" for name, what in recorded.items())
    raise UserError(
        f"{path} was saved from a model with parts of its own (custom_modules in its config.json: "
        f"{parts}), and as plain HGRN its weights would be another model. Load it with a class "
        "whose __init__ puts these parts in place, or build the model, replace its parts and load "
        "the weights with load_state_dict"
    )


def _is_same(module: nn.Module, plain: nn.Module | None) -> bool:
    if plain is None:
        return False
    if isinstance(plain, nn.Dropout):
        return True
    # The forward that accelerate puts there moves weights and changes no numbers.
    if "forward" in vars(module) and not hasattr(module, "_hf_hook"):
        return False
    kinds = (type(plain), nn.Linear, Int8Linear) if isinstance(plain, nn.Linear) else (type(plain),)
    settings_agree = (
        not isinstance(plain, _WITH_SETTINGS) or module.extra_repr() == plain.extra_repr()
    )
    return _class(module) in kinds and settings_agree


def _class(module: nn.Module) -> type:
    """The class of a module, as it was before it was sharded."""
    if torch.distributed.is_available():
        from torch.distributed.fsdp import FSDPModule

        if isinstance(module, FSDPModule):
            return type(module).__mro__[2]  # after the sharded class and FSDPModule
    return type(module)


def _described(module: nn.Module) -> str:
    settings = f"({module.extra_repr()})" if isinstance(module, _WITH_SETTINGS) else ""
    own = " with a forward of its own" if "forward" in vars(module) else ""
    # The file of the class is left out: it has one name where it is run and another where it is
    # imported.
    return f"{_class(module).__name__}{settings}{own}"
