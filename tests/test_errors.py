"""Messages of errors: the hint after an unknown name."""

import pytest

from hgrn.errors import near


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("lrr", "; did you mean lr?"),
        ("sise", "; did you mean size or resize?"),
        ("zzz", ""),
    ],
)
def test_a_similar_name_is_offered(name, hint):
    assert near(name, {"resize", "lr", "size"}) == hint
