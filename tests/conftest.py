"""What every test shares: where the golden files are, and the small sizes that keep the suite quick."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with the large golden files and data; tests that need it are skipped elsewhere."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("the folder ../shared with the full golden files and data is not here")
    return folder
