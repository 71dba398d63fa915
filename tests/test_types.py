"""The public functions of ops, modules and models say the type of everything they take and return.

`basedpyright` checks that the types are right; it does not ask that they are there.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "hgrn"
ROOMS = ("ops", "modules", "models")
# Numba and Triton read kernels, whose types Python has no words for (see pyproject.toml).
KERNELS = {"language", "rows", "gates", "scan", "gla", "hgrn2", "layer", "linear", "program"}
KERNELS |= {"helpers", "forward", "backward"}
FILES = [
    path
    for room in ROOMS
    for path in sorted((SOURCE / room).rglob("*.py"))
    if not (path.parent.name in ("cpu", "triton") and path.stem in KERNELS)
]


def public_functions(
    body: list[ast.stmt], owner: str = ""
) -> Iterator[tuple[str, ast.FunctionDef]]:
    """The functions and methods that a caller may use, with their names."""
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public_functions(node.body, f"{node.name}.")
        elif isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield owner + node.name, node


def unannotated(function: ast.FunctionDef) -> list[str]:
    """The names of its arguments without a type, and "return" if it says none."""
    given = function.args
    arguments = [*given.posonlyargs, *given.args, *given.kwonlyargs]
    missing = [each.arg for each in arguments if each.annotation is None]
    missing = [name for name in missing if name not in ("self", "cls")]
    return missing + ["return"] * (function.returns is None)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_public_functions_are_annotated(path):
    functions = public_functions(ast.parse(path.read_text()).body)
    found = {name: missing for name, node in functions if (missing := unannotated(node))}
    assert not found
