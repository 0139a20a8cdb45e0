"""Folders of samples: gone on with when they are the same, left alone when they are not."""

import json
from pathlib import Path
from typing import Any

import pytest

from selfnpo_core.errors import InputError
from selfnpo_core.sampling.sample_folder import METADATA, SampleFolder, sample_name
from selfnpo_core.system.files import file_sha256


def records(count: int = 3, **changes: Any) -> list[dict[str, Any]]:
    made = [{"file": sample_name(i, 10 + i, "png"), "prompt": "a\u2028b", "scale": 3.0} for i in range(count)]
    return [{**record, **changes} for record in made]


def fill(path: Path, which: list[int], count: int = 3) -> None:
    with SampleFolder(path, records(count)) as folder:
        for index in which:
            folder.add(index, lambda file: file.write_bytes(b"picture"))


def test_names_and_metadata(tmp_path: Path) -> None:
    fill(tmp_path / "out", [0, 1, 2])
    names = sorted(p.name for p in (tmp_path / "out").iterdir() if p.name != ".lock")
    assert names == ["00000-10.png", "00001-11.png", "00002-12.png", METADATA]
    lines = (tmp_path / "out" / METADATA).read_text(encoding="utf-8").rstrip("\n").split("\n")
    assert [json.loads(line) for line in lines] == records()


def test_what_is_missing_is_drawn(tmp_path: Path) -> None:
    fill(tmp_path, [0, 2])
    with SampleFolder(tmp_path, records()) as folder:
        assert folder.missing == [1]
    with SampleFolder(tmp_path, records(5)) as folder:
        assert folder.missing == [1, 3, 4]


def test_a_sample_without_its_line_or_a_line_without_its_sample_is_drawn_again(tmp_path: Path) -> None:
    fill(tmp_path, [0, 1])
    (tmp_path / "00001-11.png").unlink()
    (tmp_path / "00002-12.png").write_bytes(b"half")
    with (tmp_path / METADATA).open("a", encoding="utf-8") as file:
        file.write('{"file": "00002-1')
    with SampleFolder(tmp_path, records()) as folder:
        assert folder.missing == [1, 2]
        folder.add(1, lambda path: path.write_bytes(b"new"))
    assert (tmp_path / METADATA).read_text(encoding="utf-8").count("\n") == 2


def test_what_a_killed_process_had_begun_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".partial" / "deep").mkdir(parents=True)
    (tmp_path / ".partial" / "deep" / "00000-10.png").write_bytes(b"half")
    fill(tmp_path, [0])
    assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", "00000-10.png", METADATA]


def test_processes_that_divide_the_work_otherwise_are_refused(tmp_path: Path) -> None:
    with SampleFolder(tmp_path, records(), shard=(0, 2)):
        with SampleFolder(tmp_path, records(), shard=(1, 2)):
            pass
        for shard in ((0, 1), (0, 3)):
            with pytest.raises(InputError, match="in use"), SampleFolder(tmp_path, records(), shard=shard):
                pass
    fill(tmp_path, [0])


def test_a_failure_leaves_no_half_sample(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with SampleFolder(tmp_path, records()) as folder:
        with pytest.raises(OSError, match="No space"):
            folder.add(0, fail)
        assert folder.missing == [0, 1, 2]
    assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", METADATA]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (records(scale=5.0), "scale was 3.0, now 5.0"),
        (records(2), "holds other samples"),
        ([{**r, "file": r["file"].replace("-1", "-2")} for r in records()], "holds other samples"),
    ],
)
def test_other_samples_are_left_alone(tmp_path: Path, wanted: list[dict[str, Any]], message: str) -> None:
    fill(tmp_path, [0, 1, 2])
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.name != ".lock"}
    with pytest.raises(InputError, match=message), SampleFolder(tmp_path, wanted):
        pass
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.name != ".lock"} == before


def test_foreign_files(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"), SampleFolder(tmp_path, records()):
        pass
    with SampleFolder(tmp_path, records(), beside=["notes.txt"]) as folder:
        assert folder.missing == [0, 1, 2]
    with pytest.raises(InputError, match="something else"), SampleFolder(tmp_path, records()):
        pass
    with pytest.raises(InputError, match="is a file"), SampleFolder(tmp_path / "notes.txt", records()):
        pass


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with SampleFolder(tmp_path, records()):
        second = SampleFolder(tmp_path, records())
        with pytest.raises(InputError, match="in use"):
            second.__enter__()


def test_hash_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    assert file_sha256(tmp_path / "f") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
