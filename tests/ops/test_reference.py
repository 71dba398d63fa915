"""The reference: the page about the maths shows its code, and it is an engine like the others."""

import ast
import inspect
import re
import warnings

import pytest
import torch

from hgrn.ops import engines, hgru_scan, reference
from tests.conftest import ROOT
from tests.ops.cases import CASES, plain_loop
from tests.tolerances import assert_close


def test_the_page_about_the_maths_shows_the_code_that_runs():
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/maths.md").read_text(), re.DOTALL)
    functions = [node for node in ast.parse(block).body if isinstance(node, ast.FunctionDef)]
    assert [function.name for function in functions] == ["gates", "rotate", "doubled", "loop"]
    for function in functions:
        shown = ast.get_source_segment(block, function)
        assert shown == inspect.getsource(getattr(reference, function.name)).strip()


@pytest.mark.parametrize("name", ["real", "complex", "packed, mask, reverse", "no time"])
def test_gradients_inside_of_a_registered_operator(name):
    """There autograd is switched off."""
    case = CASES[name]
    inputs = case.inputs(torch.float64)
    given = [x for x in inputs if x is not None]
    h, final = plain_loop("hgru_scan")(*inputs, **case.options)
    weights = torch.randn_like(h), torch.randn_like(final)
    expected = torch.autograd.grad([h, final], given, weights, materialize_grads=True)
    mask = case.options.get("mask")
    candidate, forget, lower_bound, theta, initial_state = inputs
    h, final = torch.ops.hgrn.hgru_scan(
        candidate.unsqueeze(2),
        forget.unsqueeze(2),
        lower_bound,
        theta,
        None if initial_state is None else initial_state.unsqueeze(1),
        case.options.get("cu_seqlens"),
        None if mask is None else mask.unsqueeze(2),
        case.options.get("reverse", False),
        "reference",
    )
    weights = weights[0].unsqueeze(2), weights[1].unsqueeze(1)
    found = torch.autograd.grad([h, final], given, weights, materialize_grads=True)
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other)


def test_where_nothing_else_works_the_reference_runs_and_says_so_once(monkeypatch):
    monkeypatch.delitem(engines.ENGINE_OF_DEVICE, "cpu")
    engines._warn_once_of_reference.cache_clear()
    x = torch.randn(1, 4, 2)
    assert engines.available_engines("cpu") == ("reference",)
    with pytest.warns(UserWarning, match="hgrn runs its reference loop on cpu, which is slow"):
        h, _ = hgru_scan(x, x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again, _ = hgru_scan(x, x)
    engines._warn_once_of_reference.cache_clear()
    assert torch.equal(h, hgru_scan(x, x, engine="reference")[0]) and torch.equal(h, again)
