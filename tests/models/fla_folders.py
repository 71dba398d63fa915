"""Folders of flash-linear-attention's models, for tests that change them."""

import json
from pathlib import Path

import torch

from hgrn.models import HGRNForCausalLM

MODELS = ["13c_fla_hgrn_lm", "13d_fla_hgrn_lm_conv"]


def change(folder: Path, remove: tuple[str, ...] = (), **keys: object) -> None:
    """Set keys of config.json and remove others."""
    path = folder / "config.json"
    config = {
        key: value
        for key, value in (json.loads(path.read_text()) | keys).items()
        if key not in remove
    }
    path.write_text(json.dumps(config))


def logits(model: HGRNForCausalLM) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(12).reshape(2, 6)).logits
