from __future__ import annotations

import re

import pytest
from conftest import ROOT

from halfmeg.errors import did_you_mean, error_line, one_line, text_of, with_kind


class SilentError(Exception):
    """Of a user's own, with a fault in what should tell."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize(
    ("error", "text", "line", "kind"),
    [
        (ValueError("bad\n\t  value\n"), "bad value", "bad value", "ValueError: bad value"),
        (MemoryError(), "", "MemoryError", "MemoryError"),
        (KeyError("x"), "'x'", "'x'", "KeyError: 'x'"),
        (SilentError("lost"), "", "SilentError", "SilentError"),
    ],
)
def test_what_an_error_says_is_one_line(error: Exception, text: str, line: str, kind: str) -> None:
    assert (text_of(error), one_line(error), with_kind(error)) == (text, line, kind)


@pytest.mark.parametrize(
    ("output", "line"),
    [
        ("In file net.c:\n  net.c:3: error: no such name\n", "net.c:3: error: no such name"),
        ("Killed\nafter a while", "Killed"),
        ("", "it says nothing"),
        (f"Error {'x' * 300}", f"Error {'x' * 194}"),
    ],
)
def test_the_line_of_a_programs_output_that_names_its_error(output: str, line: str) -> None:
    assert error_line(output) == line


def test_a_mistyped_word_is_asked_about() -> None:
    assert did_you_mean("resnet200", {"cnn": 1, "resnet20": 2}) == "did you mean 'resnet20'? "
    assert did_you_mean("x", ["cnn"]) == did_you_mean("cnn", []) == ""


def test_a_long_text_is_cut() -> None:
    error = OSError("word " * 100)
    assert text_of(error, 9) == one_line(error, 9) == "word word"
    assert with_kind(error, 9) == "OSError: word word"


def test_it_is_written_nowhere_else() -> None:
    for path in (ROOT / "halfmeg").rglob("*.py"):
        if path.name != "errors.py":
            written = (
                r"str\(error\)\.split\(\)|\{error\}\"\.split\(\)|import difflib|\"error\" in line"
            )
            assert not re.search(written, path.read_text()), path
