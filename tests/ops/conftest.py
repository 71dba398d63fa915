"""The engine fixture: every engine that works here answers the same questions."""

import pytest
import torch

from hgrn.ops import available_engines


@pytest.fixture(params=available_engines("cpu"))
def engine(request) -> str:
    return request.param


@pytest.fixture(autouse=True)
def poison():
    """Fills what `torch.empty` returns with NaN, so that a result that is never written shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
