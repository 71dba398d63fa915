"""The table of rooms: who may import whom, and that `import hgrn` is cheap and silent."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "hgrn"
OURS = {
    "ops": set(),
    "modules": {"ops"},
    "parallel": {"ops", "modules"},
    "errors": set(),
    "files": {"errors"},
    "untrusted": {"errors"},
    "models": {"modules", "ops", "errors", "files", "untrusted"},
    "data": {"errors", "files", "untrusted"},
    "analysis": {"models", "modules", "ops", "data", "errors", "files"},
    "doctor": {"ops", "errors", "memory"},
    "training": {
        "models",
        "modules",
        "data",
        "analysis",
        "parallel",
        "errors",
        "files",
        "source",
        "untrusted",
    },
    "bench": {
        "ops",
        "modules",
        "models",
        "data",
        "training",
        "errors",
        "files",
        "memory",
        "source",
    },
}
# Heavy packages, and where they may be imported at the top of a file.
HEAVY = {
    "numba": {"ops/cpu/launch.py", "ops/cpu/language.py"},
    "llvmlite": {"ops/cpu/language.py"},
    "triton": {"ops/triton/"},
    "transformers": {"models/"},
    "datasets": set(),
    "matplotlib": set(),
    "tensorboard": set(),
    "kornia": set(),
    "PIL": {"data/lra/pathfinder_drawing.py", "data/lra/pathfinder_generator.py"},
    "onnx": set(),
    "onnxscript": set(),
    "onnxruntime": set(),
}
FILES = sorted(path.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*.py"))


def imports(path: Path, top_only: bool):
    """Absolute names of what a file imports; relative imports resolved."""
    tree = ast.parse(path.read_text())
    package = ["hgrn", *path.relative_to(SOURCE).parts[:-1]]
    for block in [node for node in ast.walk(tree) if isinstance(node, ast.If)]:
        if ast.unparse(block.test) == "TYPE_CHECKING":  # never runs
            block.body.clear()
    for node in tree.body if top_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield module
            if module == "hgrn":
                yield from (f"hgrn.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("file", FILES)
def test_arrows_point_one_way(file):
    room = file.split("/")[0].removesuffix(".py")
    for name in imports(SOURCE / file, top_only=False):
        parts = name.split(".")
        if parts[0] == "hgrn" and len(parts) > 1 and room in OURS and parts[1] != room:
            assert parts[1] in OURS[room], f"{file} imports {name}"
        if parts[0] == "transformers" and room in ("ops", "modules"):
            raise AssertionError(f"{file} imports transformers")


@pytest.mark.parametrize("file", FILES)
def test_heavy_packages_are_imported_where_they_are_needed(file):
    for name in imports(SOURCE / file, top_only=True):
        allowed = HEAVY.get(name.split(".")[0])
        assert allowed is None or any(file.startswith(place) for place in allowed), (
            f"{file} imports {name} at its top"
        )


def test_import_is_cheap_and_silent():
    program = """
import sys, hgrn
loaded = {name.split(".")[0] for name in sys.modules}
heavy = loaded & {"torch", "numba", "triton", "transformers", "datasets", "matplotlib", "tensorboard", "pydantic"}
assert not heavy, heavy
assert hgrn.hgru_scan and "numba" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == done.stderr == ""


def test_every_test_is_collected():
    """pytest only looks into files called test_*.py: a test anywhere else would never run."""
    for path in Path(__file__).parent.rglob("*.py"):
        if not path.name.startswith("test_"):
            names = [
                node.name
                for node in ast.walk(ast.parse(path.read_text()))
                if isinstance(node, ast.FunctionDef)
            ]
            assert not [name for name in names if name.startswith("test_")], path
