"""The file in a saved folder by which a program that never imports hgrn finds our classes."""

import os
from pathlib import Path

# A folder that we save names these classes in its config.json and holds the file below. So a
# program that never imports hgrn finds the installed package (with trust_remote_code=True). The
# image processor names itself.
AUTO_MAP = {
    "AutoConfig": "modeling_hgrn.HGRNConfig",
    "AutoModel": "modeling_hgrn.HGRNModel",
    "AutoModelForCausalLM": "modeling_hgrn.HGRNForCausalLM",
    "AutoModelForImageClassification": "modeling_hgrn.HGRNForImageClassification",
    "AutoModelForSequenceClassification": "modeling_hgrn.HGRNForSequenceClassification",
}
_LOADER = '''\
"""Loads this folder with the installed package hgrn; there is no model code in here.

    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)

A program that imports hgrn.models needs neither this file nor trust_remote_code.
"""

from hgrn.models import (
    HGRNConfig,
    HGRNForCausalLM,
    HGRNForImageClassification,
    HGRNForSequenceClassification,
    HGRNImageProcessor,
    HGRNModel,
)

__all__ = [
    "HGRNConfig",
    "HGRNForCausalLM",
    "HGRNForImageClassification",
    "HGRNForSequenceClassification",
    "HGRNImageProcessor",
    "HGRNModel",
]
'''


def write_loader(folder: str | os.PathLike[str]) -> None:
    """Write the file into this folder, and make the folder if need be."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    (Path(folder) / "modeling_hgrn.py").write_text(_LOADER, encoding="utf-8")
