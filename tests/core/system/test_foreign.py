"""Files that are something else than their names say: each is called what it is by every reader, with what helps."""

from pathlib import Path

import pytest

from selfnpo_core.errors import InputError
from selfnpo_core.models.headers import read_header
from selfnpo_core.models.prompts import read_prompts
from selfnpo_core.system.files import load_tensors
from selfnpo_core.system.pictures import read_picture

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 3438167536\n"
FILES = {
    "pointer": (POINTER, "is a pointer of Git LFS, .* `git lfs pull`"),
    "page": (b"\n<!DOCTYPE html>\n<html>", "is a web page: download the file itself"),
    "page with a mark": (b"\xef\xbb\xbf<HTML><body>", "is a web page"),
    "gated": (b"Access to model x/y is restricted. You must be authenticated", "the hub's refusal, .* terms"),
    "no login": (b"Invalid username or password.", "the hub's refusal, not the file: log in"),
    "no such file": (b"Entry not found", "the hub's refusal, not the file: correct its address"),
    "gguf": (b"GGUF\x03\0\0\0", r"quantised weights \(GGUF\)"),
    "new pickle": (b"PK\x03\x04archive/data.pkl", "a zip archive or a pickle"),
    "old pickle": (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "is a pickle, which can run code"),
    "telephone": (b"\0\0\0\x18ftypheic\0\0\0\0", "is a HEIC picture, .* save it as PNG or JPEG"),
    "empty": (b"", "is empty"),
    "other": (b"something else altogether", "is not a whole safetensors file"),
}
TEXTS = ("pointer", "page", "page with a mark")


@pytest.mark.parametrize("read", [read_header, load_tensors])
@pytest.mark.parametrize("case", FILES)
def test_weights(tmp_path: Path, case: str, read) -> None:
    data, words = FILES[case]
    (tmp_path / "m.safetensors").write_bytes(data)
    with pytest.raises(InputError, match=rf"m\.safetensors .*{words}") as error:
        read(tmp_path / "m.safetensors")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("case", [name for name in FILES if name != "other"])
def test_pictures(tmp_path: Path, case: str) -> None:
    data, words = FILES[case]
    (tmp_path / "p.jpg").write_bytes(data)
    with pytest.raises(InputError, match=rf"p\.jpg .*{words}"):
        read_picture(tmp_path / "p.jpg")


def test_no_file_and_a_folder(tmp_path: Path) -> None:
    for path, words in ((tmp_path / "none.png", "does not exist"), (tmp_path, "is a folder")):
        with pytest.raises(InputError, match=f"{words}: give a picture file"):
            read_picture(path)


@pytest.mark.parametrize("ending", ["txt", "csv", "jsonl"])
@pytest.mark.parametrize("case", TEXTS)
def test_prompts(tmp_path: Path, case: str, ending: str) -> None:
    """Three lines of a pointer would else be three prompts."""
    data, words = FILES[case]
    (tmp_path / f"p.{ending}").write_bytes(data)
    with pytest.raises(InputError, match=f"prompts file .* {words}"):
        read_prompts(tmp_path / f"p.{ending}")


def test_words_that_a_page_could_begin_with_are_prompts(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("Entry not found, a painting\nPK fire\n")
    assert read_prompts(tmp_path / "p.txt") == ["Entry not found, a painting", "PK fire"]
