"""Folders of flash-linear-attention's models, for tests that change them."""

import json
from pathlib import Path

import torch

from hgrn.models import HGRNForCausalLM

# Their names, and the layouts they are in.
MODELS = {
    "13c_fla_hgrn_lm": "fla",
    "13d_fla_hgrn_lm_conv": "fla",
    "14a_fla_hgrn2_lm": "fla-hgrn2",
    "14b_fla_hgrn2_lm_conv": "fla-hgrn2",
}


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
