"""The progress bar: drawn on a terminal, and silent elsewhere."""

import io

from hgrn.progress import Bar


def test_a_bar_is_silent_where_there_is_no_terminal():
    stream = io.StringIO()
    with Bar("reading", stream) as bar:
        bar(1, 2)
        bar(2, 2)
    assert not bar.is_shown and stream.getvalue() == ""


def test_a_bar_says_how_far_it_is_and_prints_lines_above():
    stream = io.StringIO()
    with Bar("reading", stream, keep=True, shown=True) as bar:
        bar(1, 4, "slowly")
        bar.print("a line [in brackets]")
        bar(3, 4, "quickly")
    text = stream.getvalue()
    assert "a line [in brackets]\n" in text
    assert "reading" in text and "3/4" in text and "quickly" in text


def test_a_bar_may_not_know_the_total():
    stream = io.StringIO()
    with Bar("reading", stream, keep=True, shown=True) as bar:
        bar(7, None)
    assert "7/?" in stream.getvalue()
