"""Name the commit of the code that runs, for model cards and tables of results."""

import subprocess
from functools import cache
from pathlib import Path

_PACKAGE = Path(__file__).parent


@cache
def commit() -> str:
    """The commit of this source, with "+changes" if it has changed; the version outside git."""
    import hgrn

    try:
        # An installed copy may lie inside somebody else's repository, which does not track it.
        _git("ls-files", "--error-unmatch", "__init__.py")
        head = _git("rev-parse", "--short=10", "HEAD")
        changes = _git("status", "--porcelain", "--", ".")
    except (OSError, subprocess.CalledProcessError):
        return f"version {hgrn.__version__}"
    return head + ("+changes" if changes else "")


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(_PACKAGE), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
