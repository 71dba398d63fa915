"""The README's two commands resolve from a plain package index, on every system it names."""

import functools
import os
import re
import subprocess
import sys
import venv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import ROOT

COMMANDS = re.findall(r"```sh\n(.*?)\n```", (ROOT / "README.md").read_text(), re.DOTALL)
INSTALLATIONS = [re.search(r"pip install ([^&]+?) &&", command)[1] for command in COMMANDS]
PLATFORMS = ("x86_64-unknown-linux-gnu", "aarch64-apple-darwin", "x86_64-pc-windows-msvc")
SYSTEMS = [(platform, python) for platform in PLATFORMS for python in ("3.11", "3.12", "3.13")]
# A package that only a PyTorch with CUDA brings, whose own versions are PyTorch's affair.
CUDA = re.compile(r"(nvidia|cuda)-")
UNREACHABLE = re.compile(r"NewConnectionError|NameResolutionError|dns error|error sending request")


def ask(command: list[str], folder: Path) -> subprocess.CompletedProcess:
    """Runs pip or uv as if only the public index existed: no settings, no local wheels."""
    kept = {name: it for name, it in os.environ.items() if not name.startswith(("PIP_", "UV_"))}
    certificates = {name: os.environ[name] for name in ("PIP_CERT",) if name in os.environ}
    settings = {
        "PIP_CONFIG_FILE": os.devnull,
        "UV_NO_CONFIG": "1",
        "UV_CACHE_DIR": str(folder / "uv"),
        "MACOSX_DEPLOYMENT_TARGET": "14.0",  # the oldest that PyTorch 2.13 has wheels for
    }
    variables = kept | certificates | settings
    return subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True)


def pip_resolves(installation: str, folder: Path) -> subprocess.CompletedProcess:
    """A pip that can resolve without downloading, in an environment of its own."""
    place = folder / f"venv{INSTALLATIONS.index(installation)}"
    venv.create(place, with_pip=True)
    python = str(place / ("Scripts" if os.name == "nt" else "bin") / "python")
    newest = ask([python, "-m", "pip", "install", "--quiet", "pip==26.3"], folder)
    if newest.returncode != 0:
        return newest
    options = ["--dry-run", "--use-feature=fast-deps", *installation.replace('"', "").split()]
    return ask([python, "-m", "pip", "install", *options], folder)


def uv_resolves(system: tuple[str, str], folder: Path) -> subprocess.CompletedProcess:
    """All extras for a system. pip can only resolve for the one that it runs on."""
    platform, python = system
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-header"]
    command += ["--no-annotate", "--all-extras", "--constraint", "constraints.txt"]
    command += ["--python-platform", platform, "--python-version", python, "pyproject.toml"]
    return ask(command, folder)


@pytest.fixture(scope="module")
def answers(tmp_path_factory) -> dict:
    """What the resolvers say, all asked at once, since they mostly wait for the index."""
    folder = tmp_path_factory.mktemp("index")
    with ThreadPoolExecutor(len(INSTALLATIONS) + len(SYSTEMS)) as pool:
        asked = {it: pool.submit(pip_resolves, it, folder) for it in INSTALLATIONS}
        asked |= {it: pool.submit(uv_resolves, it, folder) for it in SYSTEMS}
        return {it: answer.result() for it, answer in asked.items()}


def resolved(answer: subprocess.CompletedProcess) -> str:
    """Skips where no index can be reached; continuous integration must reach it."""
    said = answer.stdout + answer.stderr
    if answer.returncode and UNREACHABLE.search(said) and os.environ.get("CI") != "true":
        pytest.skip("the package index cannot be reached")
    assert answer.returncode == 0, said[-3000:]
    return answer.stdout


@functools.cache
def pinned() -> set[str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return {line.split("==")[0].lower().replace("_", "-") for line in lines if "==" in line}


@pytest.mark.network
@pytest.mark.slow
@pytest.mark.parametrize("installation", INSTALLATIONS)
def test_pip_resolves_the_command(installation, answers):
    """As on a new machine: with the PyTorch of the index, and the triton that it asks for."""
    assert re.search(r"Would install .*\btorch-\d", resolved(answers[installation]))


@pytest.mark.network
@pytest.mark.slow
@pytest.mark.parametrize("system", SYSTEMS, ids="-".join)
def test_every_system_resolves(system, answers):
    lines = resolved(answers[system]).splitlines()
    names = {line.split("==")[0] for line in lines if "==" in line}
    assert {"torch", "numba", "transformers"} <= names
    peers = {"mambapy", "accelerated-scan", "jax", "jaxlib", "opt-einsum"}
    assert {name for name in names - pinned() if not CUDA.match(name)} <= peers
    assert ("triton" in names) == ("linux" in system[0])


def test_no_printed_command_asks_an_index_for_this_package():
    """It is on no index yet: installation is from a clone, or of what is missing."""
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "src").rglob("*.py")]
    texts = [page.read_text().splitlines() for page in pages]
    lines = [line for text in texts for line in text if "pip install" in line]
    assert len(lines) > 10
    assert not [line for line in lines if re.search(r"pip install[^#;.]*\bhgrn\b", line)]
