"""The rooms of the package: who may import whom, no circles, and a cheap `import hgrn`."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "hgrn"
# Small files that every room but ops, modules and parallel may use.
SHARED = {"errors", "files", "untrusted", "memory", "source", "progress", "recipes"}
# What each room may import of ours, besides itself.
OURS: dict[str, set[str]] = {
    "ops": set(),
    "modules": {"ops", "errors"},
    "parallel": {"ops", "modules"},
    "models": {"modules", "ops"} | SHARED,
    "data": SHARED,
    "analysis": {"models", "modules", "ops", "data"} | SHARED,
    "training": {"models", "modules", "data", "analysis", "parallel"} | SHARED,
    "errors": set(),
    "memory": set(),
    "source": set(),
    "files": {"errors"},
    "untrusted": {"errors"},
    "progress": set(),
    "recipes": set(),
}
# The command line may import every room, and only `python -m hgrn` may import it.
OURS["cli"] = {*OURS}
OURS["__main__"] = {"cli"}
OURS["__init__"] = {"ops", "modules", "models", "errors"}
# Heavy packages, and where they may be imported at the top of a file.
HEAVY = {
    "numba": {"ops/cpu/"},
    "llvmlite": {"ops/cpu/"},
    "triton": {"ops/triton/"},
    "transformers": {"models/"},
    "PIL": {"data/lra/pathfinder_drawing.py", "data/lra/pathfinder_generator.py"},
    "datasets": set(),
    "matplotlib": set(),
    "tensorboard": set(),
    "kornia": set(),
    "onnx": set(),
    "onnxscript": set(),
    "onnxruntime": set(),
}
FILES = sorted(path.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*.py"))


def module_name(file: str) -> str:
    """ "ops/cpu/scan.py" -> "hgrn.ops.cpu.scan"; the file of a package has the package's name."""
    parts = ["hgrn", *file.removesuffix(".py").split("/")]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(file): file for file in FILES}


def imports(file: str, top_only: bool = False) -> Iterator[str]:
    """Absolute names that a file imports. `from a import b` yields a.b if that is one of our files.

    Imports inside functions and under TYPE_CHECKING count, unless `top_only`.
    """
    tree = ast.parse((SOURCE / file).read_text())
    for node in tree.body if top_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports by a relative name"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in MODULES else node.module or ""


@pytest.mark.parametrize("file", FILES)
def test_arrows_point_one_way(file):
    room = file.split("/")[0].removesuffix(".py")
    assert room in OURS, f"{room} is a new room: say in OURS what it may import"
    for name in imports(file):
        package, _, rest = name.partition(".")
        other = rest.split(".")[0]
        if package == "hgrn" and other not in ("", room):
            assert other in OURS[room], f"{file} imports {name}"
        if package == "transformers":
            assert room not in ("ops", "modules"), f"{file} imports transformers"


def find_circle(graph: dict[str, set[str]]) -> list[str]:
    """One circle of a graph, or an empty list."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_no_files_import_each_other_in_a_circle():
    graph = {name: {*imports(file)} & {*MODULES} - {name} for name, file in MODULES.items()}
    assert find_circle(graph) == []
    # The search finds one where one is.
    graph["hgrn.ops.packing"] = {"hgrn.ops.scans"}
    assert "hgrn.ops.packing" in find_circle(graph)


@pytest.mark.parametrize("file", FILES)
def test_heavy_packages_are_imported_where_they_are_needed(file):
    for name in imports(file, top_only=True):
        allowed = HEAVY.get(name.split(".")[0])
        allowed_here = allowed is None or any(file.startswith(place) for place in allowed)
        assert allowed_here, f"{file} imports {name} at its top"


def test_import_is_cheap_and_silent():
    program = """
import sys, hgrn
loaded = {name.split(".")[0] for name in sys.modules}
heavy = {"torch", "numba", "triton", "transformers", "datasets", "matplotlib"}
heavy |= {"tensorboard", "pydantic"}
assert not loaded & heavy, loaded & heavy
assert hgrn.hgru_scan and "numba" not in sys.modules
"""
    command = [sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == done.stderr == ""


def test_an_editor_sees_the_names_that_are_resolved_on_first_use():
    import hgrn

    stub = ast.parse((SOURCE / "__init__.pyi").read_text())
    homes = {}
    for node in stub.body:
        if isinstance(node, ast.ImportFrom):
            homes |= {alias.asname: node.module for alias in node.names}
    assert homes == hgrn._HOME_OF
    assert {*homes, "__version__"} == {*hgrn.__all__}


def test_every_test_is_collected():
    """pytest only looks into files called test_*.py: a test anywhere else would never run."""
    for path in Path(__file__).parent.rglob("*.py"):
        if not path.name.startswith("test_"):
            nodes = ast.walk(ast.parse(path.read_text()))
            names = [node.name for node in nodes if isinstance(node, ast.FunctionDef)]
            assert not [name for name in names if name.startswith("test_")], path
