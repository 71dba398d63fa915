"""Where the code that runs comes from."""

import subprocess
from functools import cache
from pathlib import Path

_PACKAGE = Path(__file__).parent


@cache
def commit() -> str:
    """The commit of the source that runs, "+changes" behind it if it was changed since; outside of git the version."""
    import hgrn

    try:
        _git(
            "ls-files", "--error-unmatch", "__init__.py"
        )  # an installed copy may lie inside somebody else's repository
        head = _git("rev-parse", "--short=10", "HEAD")
        changes = _git("status", "--porcelain", "--", ".")
    except (OSError, subprocess.CalledProcessError):
        return f"version {hgrn.__version__}"
    return head + ("+changes" if changes else "")


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(_PACKAGE), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
