"""Where the code that runs comes from."""

import pytest

from hgrn import source


@pytest.fixture
def fresh_commit():
    source.commit.cache_clear()
    yield
    source.commit.cache_clear()


@pytest.mark.parametrize(
    "changes, expected", [("", "0123456789"), (" M ops/cpu/launch.py", "0123456789+changes")]
)
def test_the_commit_says_whether_the_source_was_changed(
    monkeypatch, fresh_commit, changes, expected
):
    answers = {"ls-files": "__init__.py", "rev-parse": "0123456789", "status": changes}
    monkeypatch.setattr(source, "_git", lambda command, *rest: answers[command])
    assert source.commit() == expected


def test_outside_of_git_the_version_stands_in_for_the_commit(monkeypatch, fresh_commit):
    def absent(*arguments):
        raise FileNotFoundError("git")

    monkeypatch.setattr(source, "_git", absent)
    assert source.commit().startswith("version 0.")
