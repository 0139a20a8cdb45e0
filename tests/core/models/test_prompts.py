"""Prompts from a file: one a line, everything taken literally."""

import pytest

from selfnpo_core.errors import InputError
from selfnpo_core.models.prompts import read_prompts


@pytest.mark.parametrize(
    ("content", "prompts"),
    [
        ("a red circle\na blue square\n", ["a red circle", "a blue square"]),
        ("\n\n  a red circle \r\na blue square\r\n\n", ["a red circle", "a blue square"]),
        ("one\rtwo", ["one", "two"]),
        ("# not a comment\n'quoted', with commas", ["# not a comment", "'quoted', with commas"]),
        ("\ufeffmarked\nein Bär", ["marked", "ein Bär"]),
        ("one\u2028still one", ["one\u2028still one"]),
        ("same\nsame", ["same", "same"]),
    ],
)
def test_lines_are_prompts(tmp_path, content, prompts):
    file = tmp_path / "prompts.txt"
    file.write_bytes(content.encode())
    assert read_prompts(file) == prompts


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "has no prompts in it"),
        (b"\n \n", "has no prompts in it"),
        (b"one\n\ntwo", "line 2 of the prompts file"),
        (b"\n\none\n\ntwo", "line 4 of the prompts file"),
        (b"one\ntwo \xff", r"not UTF-8 \(line 2\)"),
        (b"one\ntwo\nthr\0ee", "a zero byte in line 3"),
    ],
)
def test_a_mistake_is_one_line_that_says_where(tmp_path, content, words):
    file = tmp_path / "prompts.txt"
    file.write_bytes(content)
    with pytest.raises(InputError, match=words) as error:
        read_prompts(file)
    assert "\n" not in str(error.value)


def test_what_is_no_file_is_named(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read_prompts(tmp_path / "none.txt")
    with pytest.raises(InputError, match="is a folder"):
        read_prompts(tmp_path)
