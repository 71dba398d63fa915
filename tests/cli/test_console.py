"""Standard output that cannot show, or take, what is printed."""

import io
import os
import sys

import pytest

from hgrn.cli import console, doctor, main

MIXED = "caf\N{LATIN SMALL LETTER E WITH ACUTE} \N{CJK UNIFIED IDEOGRAPH-6771} \udce9\n"


@pytest.fixture
def stdout(monkeypatch):
    """Makes standard output a stream of an encoding, and returns the bytes behind it."""

    def make(encoding: str) -> io.BytesIO:
        written = io.BytesIO()
        monkeypatch.setattr(
            sys, "stdout", io.TextIOWrapper(written, encoding=encoding, write_through=True)
        )
        console.prepare()
        return written

    return make


@pytest.mark.parametrize(
    "encoding, expected",
    [
        ("ascii", b"caf\\xe9 \\u6771 \xe9\n"),
        ("cp1252", b"caf\xe9 \\u6771 \xe9\n"),
        ("utf-8", b"caf\xc3\xa9 \xe6\x9d\xb1 \xe9\n"),
    ],
)
def test_what_an_encoding_lacks_is_escaped_and_bytes_stay_bytes(stdout, capsys, encoding, expected):
    written = stdout(encoding)
    print(MIXED * 2, end="")
    assert written.getvalue() == expected * 2
    said = capsys.readouterr().err
    assert said.count("PYTHONIOENCODING=utf-8") == (encoding != "utf-8")


def test_streams_that_were_closed_take_everything(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert main(["no such command"]) == 2
    for stream in (sys.stdout, sys.stderr):
        assert stream.name == os.devnull
        stream.close()


def test_help_that_nobody_reads(monkeypatch, capsys):
    reader, writer = os.pipe()
    os.close(reader)
    monkeypatch.setattr(sys, "stdout", os.fdopen(writer, "w"))
    with pytest.raises(SystemExit) as stop:
        main(["train", "--help"])
    sys.stdout.close()  # what is left goes nowhere
    assert stop.value.code == 0 and capsys.readouterr().err == ""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
@pytest.mark.parametrize("buffering", [-1, 1], ids=["at the end", "at each line"])
def test_a_full_disk_behind_standard_output_is_one_line(monkeypatch, capsys, buffering):
    monkeypatch.setattr(doctor, "run", lambda arguments: print("fine"))
    monkeypatch.setattr(sys, "stdout", open("/dev/full", "w", buffering=buffering))  # noqa: SIM115
    assert main(["doctor"]) == 2
    sys.stdout.close()
    assert (
        capsys.readouterr().err
        == "hgrn: error: standard output cannot be written: No space left on device\n"
    )


def test_an_error_that_is_not_of_standard_output_stays_one(monkeypatch, capsys):
    def fail(arguments):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(doctor, "run", fail)
    assert main(["doctor"]) == 2
    assert capsys.readouterr().err == "hgrn: error: Input/output error\n"
