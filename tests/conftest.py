"""What every test shares: where the golden files are, and what keeps the suite quick."""

from pathlib import Path

import pytest
import torch
from hypothesis import settings

# No deadline: the time that an example takes says more about the machine than about the code.
settings.register_profile("hgrn", deadline=None, max_examples=50)
settings.load_profile("hgrn")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with the large golden files and data; tests that need it are skipped elsewhere."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("the folder ../shared with the full golden files and data is not here")
    return folder


@pytest.fixture(scope="package", autouse=True)
def one_thread():
    """At the sizes of tests a second thread costs far more than it gives."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def fails(capsys):
    """Runs a command that must fail as a person would want it to."""

    from hgrn.cli import main

    def run(*arguments: object) -> str:
        status = main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        assert status == 2
        assert printed.err.startswith("hgrn: error: ") and "Traceback" not in printed.err
        return printed.err

    return run
