"""Files and folders that are whole or not there, however their writing ends."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from selfnpo_core.system.files import (
    HashedFile,
    file_aside,
    file_order,
    file_sha256,
    named_aside,
    save_tensors,
    write_tensors,
    write_text,
    written_aside,
)


class Halt(Exception):
    pass


def halt_in_the_middle(aside: Path) -> None:
    aside.write_text("half")
    raise Halt


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("context", [file_aside, named_aside])
def test_a_file_is_replaced_when_the_block_ends(context, tmp_path: Path) -> None:
    target = tmp_path / "notes.txt"
    target.write_text("old")
    with context(target) as aside:
        aside.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert names(tmp_path) == ["notes.txt"]


@pytest.mark.parametrize("context", [file_aside, named_aside])
def test_a_failure_leaves_the_old_file_and_nothing_else(context, tmp_path: Path) -> None:
    target = tmp_path / "notes.txt"
    target.write_text("old")
    with pytest.raises(Halt), context(target) as aside:
        halt_in_the_middle(aside)
    assert target.read_text() == "old"
    assert names(tmp_path) == ["notes.txt"]


def test_what_is_made_under_its_own_name_may_be_a_folder(tmp_path: Path) -> None:
    for content in ("one", "two"):
        with named_aside(tmp_path / "frames.png") as aside:
            assert aside.name == "frames.png"
            aside.mkdir()
            (aside / content).write_text(content)
    assert names(tmp_path) == ["frames.png"]
    assert names(tmp_path / "frames.png") == ["two"]


def test_a_folder_aside_that_is_given_goes_too(tmp_path: Path) -> None:
    (tmp_path / ".partial").mkdir()
    (tmp_path / ".partial" / "half").write_text("of a killed process")
    with named_aside(tmp_path / "a.txt", within=tmp_path / ".partial") as aside:
        aside.write_text("a")
    assert names(tmp_path) == ["a.txt"]


def test_a_text_is_written_as_it_is(tmp_path: Path) -> None:
    write_text(tmp_path / "deep" / "a.txt", "„é“\n\n")
    assert (tmp_path / "deep" / "a.txt").read_bytes() == "„é“\n\n".encode()
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "deep" / "a.txt", "half a character \ud800")
    assert names(tmp_path / "deep") == ["a.txt"]


def test_tensors_are_written_as_safetensors_writes_them(tmp_path: Path) -> None:
    tensors = {"b": torch.arange(6.0).view(2, 3).T, "a": torch.tensor(3)}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "plain.safetensors")
    write_tensors(tmp_path / "new" / "aside.safetensors", tensors)
    assert (tmp_path / "plain.safetensors").read_bytes() == (tmp_path / "new" / "aside.safetensors").read_bytes()
    write_tensors(tmp_path / "shared.safetensors", {"one": tensors["a"], "same": tensors["a"]})
    assert load_file(tmp_path / "shared.safetensors")["same"] == 3


def test_a_folder_that_a_kill_left_between_two_renames_comes_back(tmp_path: Path) -> None:
    (tmp_path / ".npo.old").mkdir()
    (tmp_path / ".npo.old" / "weights").write_text("old")
    with pytest.raises(Halt), written_aside(tmp_path / "npo"):
        raise Halt
    assert names(tmp_path) == ["npo"]
    assert (tmp_path / "npo" / "weights").read_text() == "old"


def test_tensors_are_hashed_as_they_are_written(tmp_path: Path) -> None:
    tensors = {
        "weights": torch.randn(700, 1000),
        "half": torch.randn(3, 5).bfloat16(),
        "turned": torch.arange(12.0).reshape(3, 4).T,
        "eight": torch.arange(5, dtype=torch.uint8),
        "one": torch.tensor(1.5),
        "none": torch.empty(0, 4),
        "count": torch.tensor([1, -2]),
        "ü": torch.tensor([True, False]),
    }
    file = HashedFile(tmp_path / "a.safetensors", {name: tensor.to("meta") for name, tensor in tensors.items()})
    for name in file_order(tensors):
        file.add(tensors[name])
    assert file.close() == file_sha256(tmp_path / "a.safetensors")
    assert file.size == (tmp_path / "a.safetensors").stat().st_size
    found = load_file(tmp_path / "a.safetensors")
    assert found.keys() == tensors.keys()
    assert all(
        found[name].dtype == tensor.dtype and torch.equal(found[name], tensor) for name, tensor in tensors.items()
    )


def test_a_hashed_file_is_what_safetensors_itself_writes(tmp_path: Path) -> None:
    tensors = {"b": torch.randn(3), "a": torch.randn(2, 2).bfloat16(), "c": torch.randn(5)}
    file = HashedFile(tmp_path / "own", tensors, {"format": "pt"})
    for name in file_order(tensors):
        file.add(tensors[name])
    file.close()
    save_tensors(tmp_path / "theirs", tensors, {"format": "pt"})
    assert (tmp_path / "own").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_a_hashed_file_takes_what_it_was_told_of_and_all_of_it(tmp_path: Path) -> None:
    file = HashedFile(tmp_path / "a", {"a": torch.zeros(2), "b": torch.zeros(3)})
    with pytest.raises(AssertionError):
        file.add(torch.zeros(3))
    with pytest.raises(AssertionError):
        file.close()
