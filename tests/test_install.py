"""The README's two commands resolve from a plain package index, on every system it names."""

import functools
import os
import re
import subprocess
import sys
import venv

import pytest

from tests.conftest import ROOT

COMMANDS = re.findall(r"```sh\n(.*?)\n```", (ROOT / "README.md").read_text(), re.DOTALL)
INSTALLATIONS = [re.search(r"pip install ([^&]+?) &&", command)[1] for command in COMMANDS]
PLATFORMS = (
    "x86_64-unknown-linux-gnu",
    "aarch64-apple-darwin",
    "x86_64-pc-windows-msvc",
)
# A package that only a PyTorch with CUDA brings, whose own versions are PyTorch's affair.
CUDA = re.compile(r"(nvidia|cuda)-")


def plain_environment(folder) -> dict[str, str]:
    """Variables under which pip and uv ask the public index alone: no settings, no local wheels."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "UV_"))
    }
    # The deployment target is the oldest macOS that PyTorch 2.13 has wheels for.
    settings = {
        "PIP_CONFIG_FILE": os.devnull,
        "UV_NO_CONFIG": "1",
        "MACOSX_DEPLOYMENT_TARGET": "14.0",
    }
    certificates = {name: os.environ[name] for name in ("PIP_CERT",) if name in os.environ}
    return kept | settings | certificates | {"UV_CACHE_DIR": str(folder)}


def run(command: list[str], folder) -> str:
    """What a resolver says. Skips where no index can be reached, unless CI=true."""
    done = subprocess.run(
        command, cwd=ROOT, env=plain_environment(folder), capture_output=True, text=True
    )
    said = done.stdout + done.stderr
    unreachable = r"NewConnectionError|NameResolutionError|dns error|error sending request"
    if done.returncode != 0 and re.search(unreachable, said) and os.environ.get("CI") != "true":
        pytest.skip("the package index cannot be reached")
    assert done.returncode == 0, said[-3000:]
    return done.stdout


@functools.cache
def pinned() -> set[str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return {line.split("==")[0].lower().replace("_", "-") for line in lines if "==" in line}


@pytest.fixture(scope="module")
def new_pip(tmp_path_factory):
    """The newest pip, in an environment of its own. It can resolve without downloading."""
    folder = tmp_path_factory.mktemp("pip")
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    run([str(python), "-m", "pip", "install", "--quiet", "--upgrade", "pip"], folder)
    return [str(python), "-m", "pip"]


@pytest.mark.network
@pytest.mark.slow
@pytest.mark.parametrize("installation", INSTALLATIONS)
def test_pip_resolves_the_command(installation, new_pip, tmp_path):
    """As on a new machine: with the PyTorch of the index, and the triton that it asks for."""
    options = ["--dry-run", "--use-feature=fast-deps"]
    said = run([*new_pip, "install", *options, *installation.replace('"', "").split()], tmp_path)
    assert re.search(r"Would install .*\btorch-\d", said)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """What uv has read of the index."""
    return tmp_path_factory.mktemp("uv")


@pytest.mark.network
@pytest.mark.slow
@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
@pytest.mark.parametrize("platform", PLATFORMS)
def test_every_system_resolves(platform, python, cache):
    """pip resolves only for the system that it runs on; uv resolves for any."""
    found = run(
        [
            *(
                sys.executable,
                "-m",
                "uv",
                "pip",
                "compile",
                "--quiet",
                "--no-header",
                "--no-annotate",
                "--all-extras",
            ),
            *("--python-platform", platform, "--python-version", python),
            *("--constraint", "constraints.txt", "pyproject.toml"),
        ],
        cache,
    )
    names = {line.split("==")[0] for line in found.splitlines() if "==" in line}
    assert {"torch", "numba", "transformers"} <= names
    peers = {"mambapy", "accelerated-scan", "jax", "jaxlib", "opt-einsum"}
    assert {name for name in names - pinned() if not CUDA.match(name)} <= peers
    assert ("triton" in names) == ("linux" in platform)


def test_no_printed_command_asks_an_index_for_this_package():
    """It is on no index yet: installation is from a clone, or of what is missing."""
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "src").rglob("*.py")]
    lines = [
        line for page in pages for line in page.read_text().splitlines() if "pip install" in line
    ]
    assert len(lines) > 10
    assert not [line for line in lines if re.search(r"pip install[^#;.]*\bhgrn\b", line)]
