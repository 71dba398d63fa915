"""The wheel: built, installed elsewhere, and complete."""

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the package as a user's pip would lay it out."""
    wheels = tmp_path_factory.mktemp("wheels")
    target = tmp_path_factory.mktemp("site")
    for command in (
        ["-m", "build", "--wheel", "--no-isolation", "--outdir", str(wheels), str(ROOT)],
        ["-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target)],
    ):
        if "pip" in command:
            command += [str(wheel) for wheel in wheels.glob("*.whl")]
        done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return target


def test_wheel_has_recipes_corpus_and_no_compiled_code(installed, tmp_path):
    program = """
import sys, lzma
import hgrn
from importlib.resources import files
assert hgrn.__file__.startswith(sys.argv[1]), hgrn.__file__
from hgrn.recipes import shipped
from hgrn.training.recipe import load_recipe
assert {"quickstart", "lm/wikitext103", "lm/sotu", "lm/text", "lm/150m"} <= set(shipped())
assert load_recipe("quickstart").name == "quickstart"
corpus = lzma.decompress((files("hgrn") / "data/corpora/shakespeare.txt.xz").read_bytes())
assert len(corpus) == 5057321 and corpus.startswith(b"ALL'S WELL THAT ENDS WELL")
"""
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run(
        [sys.executable, "-c", program, str(installed)],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    suffixes = {path.suffix for path in (installed / "hgrn").rglob("*") if path.is_file()}
    assert suffixes <= {".py", ".yaml", ".xz", ".md", ".pyc"}


def test_constraints_pin_every_direct_dependency():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        name
        for names in (project["dependencies"], project["optional-dependencies"]["test"])
        for name in names
    ]
    pinned = {
        line.split("==")[0].lower()
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    missing = [w for w in wanted if w.split(">=")[0].lower() not in pinned]
    assert not missing, missing
