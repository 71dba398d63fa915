"""What a person at the command line reads: the one kind of error, hints, and commands to paste."""

import difflib
import os
import shlex
import subprocess
from collections.abc import Iterable


class UserError(ValueError):
    """Something that the user gave or has on disk is wrong. The message names it, the rule and the
    remedy.

    The command line prints the message without a traceback and exits with status 2.
    """


class ToldElsewhere(UserError):
    """A UserError that another process of the same run tells the user.

    The command line says nothing about this one.
    """


def near(name: str, choices: Iterable[str]) -> str:
    """The end of a message about an unknown name: "; did you mean lr?", or "" if nothing is close.

    At most two choices are offered, the closest first.
    """
    matches = difflib.get_close_matches(name, sorted(choices), n=2, cutoff=0.6)
    return f"; did you mean {' or '.join(matches)}?" if matches else ""


def pasted(*words: object) -> str:
    """The command of these words, quoted so that it can be pasted into a shell.

    A path that begins with a dash would be taken for an option, so it gets `./` in front.
    """
    texts = []
    for word in words:
        text = str(word)
        if isinstance(word, os.PathLike) and text.startswith("-"):
            text = os.path.join(os.curdir, text)
        texts.append(text)
    return subprocess.list2cmdline(texts) if os.name == "nt" else shlex.join(texts)
