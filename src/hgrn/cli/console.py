"""Make standard output and error safe: printing never ends a command, whatever it prints and
whoever reads."""

import codecs
import io
import os
import sys
from collections.abc import Callable

_ESCAPING = "hgrn.escaping"


def prepare() -> None:
    """Let the standard streams take any text.

    A character that a stream's encoding lacks is written as an escape such as \\xe9, and one line
    on standard error says so. Bytes of an argument that were no text (Python keeps them as
    surrogates) are written as they were given.
    """
    codecs.register_error(_ESCAPING, _Escaping())
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        # Whoever started this process may have closed the stream.
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_ESCAPING)


def takes_output() -> bool:
    """Whether standard output can be written, tried with an empty line. If not, say so."""
    return flush(print)


def flush(first: Callable[[], None] = lambda: None) -> bool:
    """Call `first`, then write all that waits for standard output.

    False if it cannot be written, which is then said. A reader that has gone, as with `| head`, is
    no error.
    """
    try:
        first()
        sys.stdout.flush()
    except BrokenPipeError:
        drop_output()
    except OSError as error:
        drop_output()
        print(f"hgrn: error: standard output cannot be written: {error.strerror}", file=sys.stderr)
        return False
    return True


def drop_output() -> None:
    """Send nowhere what is still to be printed."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


class _Escaping:
    """The handler of characters that cannot be encoded, for `codecs.register_error`."""

    def __init__(self):
        self._said = False

    def __call__(self, error: UnicodeError) -> tuple[bytes, int]:
        if not isinstance(error, UnicodeEncodeError):
            raise error
        characters = error.object[error.start : error.end]
        if not self._said and any(not _is_byte(character) for character in characters):
            self._said = True
            print(
                "hgrn: the encoding of this output lacks some characters, which are written as "
                "escapes; PYTHONIOENCODING=utf-8 in the environment shows them",
                file=sys.stderr,
            )
        return b"".join(map(_encoded, characters)), error.end


def _is_byte(character: str) -> bool:
    """Whether this is a byte that Python could not decode (its error handler surrogateescape)."""
    return "\udc80" <= character <= "\udcff"


def _encoded(character: str) -> bytes:
    if _is_byte(character):
        return bytes([ord(character) - 0xDC00])
    return character.encode("ascii", "backslashreplace")
