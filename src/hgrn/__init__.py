"""HGRN: hierarchically gated recurrent networks, from the recurrence to trained models.

Public names are resolved on first use, so that `import hgrn` loads neither numba, triton, transformers,
datasets nor matplotlib.
"""

from importlib import import_module

__version__ = "0.1.0"

_HOMES = {
    "hgrn.ops": ("hgru_scan", "hgru_carry", "gated_scan", "available_engines"),
    "hgrn.modules": ("HGRN", "HGRU", "HGRU2d", "GLU", "Stepper"),
    "hgrn.models": (
        "HGRNConfig",
        "HGRNModel",
        "HGRNForCausalLM",
        "HGRNForSequenceClassification",
        "HGRNForSequencePairClassification",
        "HGRNForImageClassification",
        "HGRNImageProcessor",
        "HGRNCache",
        "Session",
    ),
    "hgrn.errors": ("UserError",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = ["__version__", *_HOME_OF]


def __getattr__(name: str):
    if name not in _HOME_OF:
        raise AttributeError(f"module 'hgrn' has no attribute {name!r}")
    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
