"""Checkpoints: whole or passed over, whatever befalls a file."""

from dataclasses import asdict

import pytest
import torch

from selfnpo_core.ranks import ALONE, Ranks
from selfnpo_core.system.files import file_sha256, write_json
from selfnpo_core.training.checkpoint import (
    State,
    agreed_checkpoint,
    damage_of,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
)
from selfnpo_core.training.sharding import walk
from selfnpo_core.training.streaming import write_parts


def state(step: int) -> State:
    tensors = {
        "student": {"a.weight": torch.arange(6.0).reshape(2, 3) + step},
        "source": {"index": torch.tensor([1, 2])},
    }
    return State(step=step, tensors=tensors, values={"skipped": 3, "optimizer": {"scalars": {"0.step": 1.5}}})


def test_what_is_saved_is_loaded(tmp_path):
    loaded = load_checkpoint(save_checkpoint(tmp_path, state(7)))
    assert loaded.step == 7
    assert (loaded.values["skipped"], loaded.values["optimizer"]) == (3, {"scalars": {"0.step": 1.5}})
    assert loaded.tensors.keys() == {"student", "source"}
    for part, tensors in state(7).tensors.items():
        for name, tensor in tensors.items():
            assert torch.equal(loaded.tensors[part][name], tensor)
            assert loaded.tensors[part][name].dtype == tensor.dtype


@pytest.mark.parametrize(
    ("befall", "word"),
    [
        (lambda file: file.unlink(), "student.safetensors is missing"),
        (lambda file: file.write_bytes(file.read_bytes()[:-1]), "bytes instead of"),
        (lambda file: file.write_bytes(file.read_bytes()[:-1] + b"x"), "another sha256"),
        (lambda file: (file.parent / "manifest.json").unlink(), "manifest.json: FileNotFoundError"),
        (lambda file: (file.parent / "manifest.json").write_text("[]"), "manifest.json: TypeError"),
        (lambda file: (file.parent / "manifest.json").write_text("{"), "manifest.json: JSONDecodeError"),
        (lambda file: (file.parent / "manifest.json").write_text('{"files": {}}'), "manifest.json names no files"),
    ],
)
def test_damage_is_named_and_an_older_checkpoint_taken(tmp_path, caplog, befall, word):
    older, newer = (save_checkpoint(tmp_path, state(step)) for step in (2, 4))
    befall(newer / "student.safetensors")
    assert word in damage_of(newer)
    assert newest_checkpoint(tmp_path) == agreed_checkpoint(tmp_path, ALONE) == older
    assert caplog.text.count("step-000004 is not whole") == 2


def test_steps_are_counted_and_not_spelled(tmp_path):
    for step in (999_999, 1_000_000, 2):
        save_checkpoint(tmp_path, state(step))
    (tmp_path / "step-best").mkdir()
    assert newest_checkpoint(tmp_path).name == "step-1000000"
    save_checkpoint(tmp_path, state(3), keep_last=2)
    assert {path.name for path in tmp_path.iterdir()} == {"step-999999", "step-1000000", "step-best"}


def test_an_empty_folder_has_none(tmp_path):
    assert newest_checkpoint(tmp_path) is None
    assert newest_checkpoint(tmp_path / "none") is None


@pytest.mark.parametrize("file", ["source.safetensors", "state.json", "student.safetensors"])
def test_every_file_is_looked_at_by_one_of_the_processes(tmp_path, file):
    saved = save_checkpoint(tmp_path, state(1))
    (saved / file).unlink()
    for count in (1, 2, 3, 4):
        seen = [damage_of(saved, Ranks(index, count)) for index in range(count)]
        assert sorted(map(str, seen)) == ["None"] * (count - 1) + [f"{file} is missing"]


def test_what_several_have_written_is_loaded_as_one_and_what_is_not_of_it_is_left(tmp_path):
    walks = {"student": walk(state(1).tensors["student"] | {"b": torch.ones(2)})}
    saved = tmp_path / "step-000001"
    saved.mkdir()
    written = {}
    for index in range(2):
        written |= write_parts(saved, walks, Ranks(index, 2), shared=True)
    write_json(saved / "state.json", {"step": 1})
    write_json(saved / "manifest.json", {"files": {name: asdict(file) for name, file in written.items()}})
    (saved / "teacher.safetensors").write_bytes(b"no file of it")
    loaded = load_checkpoint(saved)
    assert sorted(written) == [f"student-0000{k}-of-00002.safetensors" for k in (1, 2)]
    assert loaded.tensors.keys() == {"student"}
    assert loaded.tensors["student"].keys() == {"a.weight", "b"}
    (saved / "student-00002-of-00002.safetensors").unlink()
    assert damage_of(saved) == "student-00002-of-00002.safetensors is missing"


def test_what_was_written_is_not_read_again_to_be_hashed(tmp_path, monkeypatch):
    read = []
    hashed = file_sha256
    monkeypatch.setattr(
        "selfnpo_core.training.checkpoint.file_sha256", lambda path: read.append(path.name) or hashed(path)
    )
    saved = save_checkpoint(tmp_path, state(1))
    assert read == ["state.json"]
    assert damage_of(saved) is None
