"""What a person at the command line is meant to read: the one error, and commands to paste."""

import os
import shlex
import subprocess


class UserError(ValueError):
    """Something the user gave or has on disk is wrong; the message names it, the rule and the remedy.

    The command line prints the message without a traceback and exits with status 2.
    """


def pasted(*words: object) -> str:
    """The command of these words, quoted so that it can be pasted into a shell.

    A path that begins with a dash would be taken for an option, so it gets `./` in front.
    """
    texts = []
    for word in words:
        dashed = isinstance(word, os.PathLike) and str(word).startswith("-")
        texts.append(os.path.join(os.curdir, word) if dashed else str(word))
    return subprocess.list2cmdline(texts) if os.name == "nt" else shlex.join(texts)
