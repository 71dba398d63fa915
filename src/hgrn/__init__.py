"""HGRN: hierarchically gated recurrent networks, from the recurrence to trained models.

Public names are resolved on first use, so that `import hgrn` loads neither torch, numba, triton,
transformers, datasets nor matplotlib. `__init__.pyi` names them for editors and type checkers.
"""

from importlib import import_module

__version__ = "0.1.0"

_NAMES = {
    "hgrn.ops": "hgru_scan hgru_carry gated_scan gla_scan available_engines",
    "hgrn.modules": "HGRN HGRU HGRU2d HGRN2Mixer Mixer GLU Stepper register_mixer",
    "hgrn.models": (
        "HGRNConfig HGRNModel HGRNForCausalLM HGRNForSequenceClassification "
        "HGRNForSequencePairClassification HGRNForImageClassification HGRNImageProcessor "
        "HGRNCache Session"
    ),
    "hgrn.errors": "UserError",
}
_HOME_OF = {name: home for home, names in _NAMES.items() for name in names.split()}

__all__ = ["__version__", *_HOME_OF]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str):
    if name not in _HOME_OF:
        raise AttributeError(f"module 'hgrn' has no attribute {name!r}")
    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value  # the next use finds it without this function
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
