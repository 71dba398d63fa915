"""Which parts of a model are not those that its configuration describes, so that no checkpoint is read as plain HGRN that is none."""

import torch
from torch import nn

from hgrn.errors import UserError
from hgrn.modules import GLU, HGRU, BatchNorm, Int8Linear

# Their settings decide, with the weights, what they compute; those of others are sizes, which the weights have.
_WITH_SETTINGS = (HGRU, GLU, nn.LayerNorm, nn.RMSNorm, BatchNorm)


def custom_modules(found: nn.Module, plain: nn.Module) -> dict[str, str]:
    """Names and descriptions of the modules in `found` that `plain` has not, or has as something else.

    Dropout is left out, since it computes nothing in evaluation.
    """
    expected = dict(plain.named_modules())
    custom = {}
    for name, module in found.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in custom)
        if not inside and not _is_same(module, expected.get(name)):
            custom[name] = _described(module)
    return custom


def check_custom_modules(recorded: object, found: dict[str, str], path: object) -> None:
    """Raises UserError unless a model has the parts that the configuration of its checkpoint records."""
    if isinstance(recorded, dict) and all(
        found.get(name) == what for name, what in recorded.items()
    ):
        return
    parts = (
        "; ".join(f"{name or 'model'} is {what}" for name, what in recorded.items())
        if isinstance(recorded, dict)
        else recorded
    )
    raise UserError(
        f"{path} was saved from a model with parts of its own (custom_modules in its config.json: {parts}), and as plain HGRN its "
        "weights would be another model. Load it with a class whose __init__ puts these parts in place, or build the model, replace "
        "its parts and load the weights with load_state_dict"
    )


def _is_same(module: nn.Module, plain: nn.Module | None) -> bool:
    if plain is None:
        return False
    if isinstance(plain, nn.Dropout):
        return True
    if "forward" in vars(module) and not hasattr(
        module, "_hf_hook"
    ):  # those of accelerate move weights and change no numbers
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
            return type(module).__mro__[2]  # the sharded class, FSDPModule, the class itself
    return type(module)


def _described(module: nn.Module) -> str:
    settings = f"({module.extra_repr()})" if isinstance(module, _WITH_SETTINGS) else ""
    own = " with a forward of its own" if "forward" in vars(module) else ""
    return f"{_class(module).__name__}{settings}{own}"  # not its file, which has another name where it is run and where it is imported
