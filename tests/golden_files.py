"""Reads tests/golden: parameters, inputs, outputs and gradients of the authors' code, in fp64."""

import json
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors import safe_open

FOLDER = Path(__file__).parent / "golden"
_KINDS = ("input.", "output.", "cotangent.", "grad.input.", "grad.", "aux.", "after_train_forward.")


def read(name: str, dtype: torch.dtype = torch.float64, folder: Path = FOLDER) -> SimpleNamespace:
    """The tensors of one file by kind: parameters, input, output, cotangent, grad, grad_input, aux,
    after_train_forward; and its metadata."""
    kinds = {kind: {} for kind in ("", *_KINDS)}
    with safe_open(folder / f"{name}.safetensors", "pt") as file:
        metadata = json.loads(file.metadata()["json"])
        for key in file.keys():  # noqa: SIM118  (the file is no dictionary)
            kind = max((kind for kind in kinds if key.startswith(kind)), key=len)
            tensor = file.get_tensor(key)
            kinds[kind][key.removeprefix(kind)] = (
                tensor.to(dtype) if tensor.is_floating_point() else tensor
            )
    return SimpleNamespace(
        metadata=metadata,
        parameters=kinds[""],
        input=kinds["input."],
        output=kinds["output."],
        cotangent=kinds["cotangent."],
        grad=kinds["grad."],
        grad_input=kinds["grad.input."],
        aux=kinds["aux."],
        after_train_forward=kinds["after_train_forward."],
    )
