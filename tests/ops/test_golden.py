"""Goldens 01 to 07: the authors' layers, with our op in the place of their scan."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch.nn.functional import layer_norm, linear, silu

from hgrn.ops import hgru_scan
from tests.tolerances import assert_close

FOLDER = Path(__file__).parents[1] / "golden"
FILES = sorted(path.stem for path in FOLDER.glob("0[1-7]*.safetensors"))


def load(name: str) -> tuple[dict, dict]:
    with safe_open(FOLDER / f"{name}.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return tensors, json.loads(file.metadata()["json"])


def project(x, p, name):
    """A Linear, or the two stacked ones of the low-rank versions."""
    stacked = [n for n in (f"{name}.0", f"{name}.1") if f"{n}.weight" in p] or [name]
    for n in stacked:
        x = linear(x, p[f"{n}.weight"], p.get(f"{n}.bias"))
    return x


def layer(name: str, p: dict, x, lower_bound, engine: str):
    """The authors' layer on `x [n, b, d]` or `[h, w, b, d]`, written around hgru_scan."""
    is_2d = "2d" in name
    low_rank = "lambda_proj.0.weight" in p
    complex_state = "real" not in name
    candidate = project(x, p, "input_proj")
    forget = project(x, p, "lambda_proj")
    if complex_state:  # published rows interleave real and imaginary parts
        candidate = torch.cat([candidate[..., 0::2], candidate[..., 1::2]], dim=-1)
    thetas = [
        p[key].flatten() for key in ("theta", "theta_forward", "theta_reverse") if key in p
    ] or [None]
    both = name.startswith(("03", "05", "06c")) or "noncausal" in name
    h = 0
    for dim in (0, 1) if is_2d else (0,):
        for reverse in (False, True) if both else (False,):
            theta = thetas[-1] if reverse else thetas[0]
            h = (
                h
                + hgru_scan(
                    candidate, forget, lower_bound, theta, dim=dim, reverse=reverse, engine=engine
                )[0]
            )
    gate = project(x, p, "gate")
    gate = torch.sigmoid(gate) if low_rank else silu(gate)

    def norm(z):
        return layer_norm(z, z.shape[-1:], p["norm.weight"], p["norm.bias"], 1e-5)

    return linear(
        norm(h * gate) if "v3" in name else norm(h) * gate,
        p["out_proj.weight"],
        p.get("out_proj.bias"),
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", FILES)
def test_golden(name, dtype, engine):
    values, _ = load(name)
    values = {key: value.to(dtype) for key, value in values.items()}
    leaves = {
        key: value.requires_grad_()
        for key, value in values.items()
        if key in ("input.x", "input.lower_bound")
        or "." not in key
        or key.split(".")[0] not in ("input", "output", "cotangent", "grad", "aux")
    }
    y = layer(name, leaves, leaves["input.x"], leaves["input.lower_bound"], engine)
    assert_close(y, values["output.y"], name="y")
    with torch.no_grad():
        assert_close(
            layer(name, leaves, leaves["input.x"], None, engine),
            values["output.y_lower_bound_0"],
            name="y at 0",
        )
    (y * values["cotangent.y"]).sum().backward()
    expected = {
        key.removeprefix("grad."): value for key, value in values.items() if key.startswith("grad.")
    }
    assert expected.keys() == leaves.keys()
    for key, grad in expected.items():
        assert_close(leaves[key].grad, grad, name=f"gradient of {key}")


def test_the_files_are_here():
    assert len(FILES) == 13
