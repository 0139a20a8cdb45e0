"""decord as the reader that was asked for: ffmpeg's frames in colours of its own, or a refusal in words."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
from imageio_ffmpeg import get_ffmpeg_exe
from tests.video.test_decoding import FRAMES, REFUSED, WHOLE, ffmpeg, numbers

from selfnpo_core.commands.running import run
from selfnpo_core.errors import InputError
from selfnpo_video import video_files
from selfnpo_video.cli import selfnpo_video
from selfnpo_video.decord_frames import TOLERANCE
from selfnpo_video.video_files import read_video, write_video

Spoil = Callable[[list[np.ndarray]], list[np.ndarray]]


class VideoReader:
    """decord's, of which it has the conversion of colours: swscale's, told nothing."""

    opened: ClassVar[list[tuple[str, int]]] = []
    spoil: ClassVar[Spoil] = staticmethod(list)

    def __init__(self, uri: str, *, num_threads: int):
        self.opened.append((uri, num_threads))
        words = [get_ffmpeg_exe(), "-v", "error", "-i", uri, "-map", "0:V:0", "-fps_mode", "passthrough"]
        words += ["-sws_flags", "bilinear", "-pix_fmt", "rgb24", "-c:v", "ppm", "-f", "image2pipe", "-"]
        data, frames = subprocess.run(words, check=True, capture_output=True).stdout, []
        while data:
            _, size, _, data = data.split(b"\n", 3)
            width, height = map(int, size.split())
            frames.append(np.frombuffer(data[: 3 * width * height], np.uint8).reshape(height, width, 3))
            data = data[3 * width * height :]
        self._frames = type(self).spoil(frames)
        self._next: Iterator[np.ndarray] = iter(self._frames)

    def __len__(self) -> int:
        return len(self._frames)

    def next(self) -> SimpleNamespace:
        frame = next(self._next)
        return SimpleNamespace(asnumpy=lambda: frame)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[VideoReader]:
    monkeypatch.setattr(VideoReader, "opened", [])
    monkeypatch.setattr(VideoReader, "spoil", staticmethod(list))
    monkeypatch.setitem(sys.modules, "decord", SimpleNamespace(VideoReader=VideoReader, __version__="0.6.0"))
    return VideoReader


@pytest.fixture(params=["fake", "real"])
def decord(request: pytest.FixtureRequest) -> None:
    if request.param == "fake":
        request.getfixturevalue("fake")
    elif find_spec("decord") is None:
        pytest.skip("decord is not installed")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plain") / "clip.mp4"
    write_video(path, FRAMES, fps=8)
    return path


@pytest.mark.parametrize("name", ["plain.MP4", "audio-longer.mp4", "variable.mkv", "b-frames.mov", "new.WEBM"])
@pytest.mark.usefixtures("decord")
def test_frames_are_those_of_ffmpeg(plain: Path, tmp_path: Path, name: str) -> None:
    WHOLE[name](plain, tmp_path / name)
    frames, fps = read_video(tmp_path / name, reader="decord")
    assert numbers(frames) == list(range(12))
    assert fps == read_video(tmp_path / name)[1]
    assert numbers(read_video(tmp_path / name, limit=5, reader="decord")[0]) == list(range(5))


@pytest.mark.usefixtures("decord")
def test_colours_are_its_own_within_what_is_said(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    ffmpeg("-f", "lavfi", "-i", "testsrc2=s=96x64:r=8:d=1", "-pix_fmt", "yuv420p", path)
    one, other = read_video(path)[0].astype(float), read_video(path, reader="decord")[0].astype(float)
    assert np.abs(one - other).max() > 20
    means = (one - other).reshape(8, 8, 8, 12, 8, 3).mean((2, 4))
    assert 0 < np.abs(means).mean((1, 2, 3)).max() <= TOLERANCE


@pytest.mark.parametrize("turned", [90, 180, 270])
@pytest.mark.usefixtures("decord")
def test_rotation_marks_are_obeyed_or_the_file_is_refused(plain: Path, tmp_path: Path, turned: int) -> None:
    path = tmp_path / "turned.mp4"
    ffmpeg("-display_rotation", turned, "-i", plain, "-c", "copy", path)
    try:
        frames = read_video(path, reader="decord")[0]
    except InputError:
        with pytest.raises(InputError, match="decord does not read"):
            read_video(path, reader="decord")
    else:
        assert np.abs(frames.astype(int) - read_video(path)[0]).mean() < TOLERANCE


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.usefixtures("decord")
def test_what_ffmpeg_refuses_is_refused(plain: Path, tmp_path: Path, name: str) -> None:
    make, said = REFUSED[name]
    make(plain, tmp_path / name)
    with pytest.raises(InputError, match=said):
        read_video(tmp_path / name, reader="decord")


def swapped(frames: list[np.ndarray]) -> list[np.ndarray]:
    return [*frames[:4], frames[5], frames[4], *frames[6:]]


def fails(frames: list[np.ndarray]) -> list[np.ndarray]:
    raise RuntimeError("[19:07:11] threaded_decoder.cc:292: cannot\nfind video stream")


OTHERWISE: dict[str, tuple[Spoil, str]] = {
    "one too few": (lambda frames: frames[:-1], "11 of its 12 frames"),
    "one too many": (lambda frames: [*frames, frames[-1]], "13 of its 12 frames"),
    "two swapped": (swapped, "frame 4 "),
    "one late": (lambda frames: [frames[0], *frames[:-1]], "frame 1 "),
    "turned": (lambda frames: [np.rot90(frame).copy() for frame in frames], "frames of 32x48, not 48x32"),
    "upside down": (lambda frames: [frame[::-1, ::-1].copy() for frame in frames], "frame 1 differs by"),
    "dark": (lambda frames: [frame // 2 for frame in frames], "frame 1 differs by"),
    "failed": (fails, "cannot find video stream"),
}


@pytest.mark.parametrize("name", OTHERWISE)
def test_other_frames_are_refused(plain: Path, fake: type[VideoReader], name: str) -> None:
    spoil, said = OTHERWISE[name]
    fake.spoil = staticmethod(spoil)
    with pytest.raises(InputError, match=said) as error:
        read_video(plain, reader="decord")
    assert str(error.value).startswith(f"decord does not read {plain} as ffmpeg does (")
    assert str(error.value).endswith("): leave --reader decord out")
    assert "\n" not in str(error.value)


def test_one_frame_late_is_seen_where_little_moves(tmp_path: Path, fake: type[VideoReader]) -> None:
    """A spot of 8 pixels on 64 by 64, a pixel a frame."""
    frames = np.full((6, 64, 64, 3), 90, np.uint8)
    for k in range(6):
        frames[k, 28:36, 20 + k : 28 + k] = (200, 60, 60)
    write_video(tmp_path / "spot.mp4", frames, fps=8)
    assert len(read_video(tmp_path / "spot.mp4", reader="decord")[0]) == 6
    fake.spoil = staticmethod(lambda frames: [frames[0], *frames[:-1]])
    with pytest.raises(InputError, match="is another one"):
        read_video(tmp_path / "spot.mp4", reader="decord")


def test_what_is_no_video_file_is_not_decords(tmp_path: Path, fake: type[VideoReader]) -> None:
    for name in ("clip.gif", "frames"):
        write_video(tmp_path / name, FRAMES, fps=8, format="frames" if name == "frames" else None)
        assert numbers(read_video(tmp_path / name, reader="decord")[0]) == list(range(12))
    assert fake.opened == []


def test_a_path_is_a_path(tmp_path: Path, fake: type[VideoReader], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_video(Path("a:b.mp4"), FRAMES, fps=8)
    read_video("a:b.mp4", reader="decord")
    assert fake.opened == [(str(tmp_path / "a:b.mp4"), 1)]


def test_without_decord_its_extra_is_named(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "decord", None)
    with pytest.raises(InputError, match=r"^--reader decord needs decord: pip install 'selfnpo-video\[decord\]'$"):
        read_video(plain, reader="decord")


# The commands


def command(*words: object) -> int:
    return run(selfnpo_video, [str(word) for word in words], name="selfnpo-video")


@pytest.fixture
def drawn(tmp_path: Path, plain: Path) -> Path:
    folder = tmp_path / "drawn"
    folder.mkdir()
    records = []
    for seed in range(2):
        (folder / f"0-{seed}.mp4").write_bytes(plain.read_bytes() + bytes(seed))
        records.append(json.dumps({"file": f"0-{seed}.mp4", "prompt": "a bar grows", "seed": seed}))
    (folder / "metadata.jsonl").write_text("\n".join(records))
    return folder


def test_the_reader_is_in_the_results_and_in_the_caches_key(drawn: Path, fake: type[VideoReader]) -> None:
    target, words = drawn.with_name("r.json"), ("evaluate", drawn, "--metrics", "motion", "--feature-network", "oracle")
    named, kept = {}, {}
    for reader in ("ffmpeg", "decord"):
        assert command(*words, "--reader", reader, "--json", target) == 0
        named[reader] = json.loads(target.read_text())["reader"]
        kept[reader] = len(list((drawn / ".evaluation").rglob("*.safetensors")))
    assert named["ffmpeg"] == video_files.reader()
    assert named["decord"] == f"decord 0.6.0, held against {named['ffmpeg']}"
    assert kept == {"ffmpeg": 1, "decord": 2}
    assert {Path(uri).name for uri, _ in fake.opened} == {"0-0.mp4", "0-1.mp4"}
    before = len(fake.opened)
    assert command(*words, "--json", target) == 0
    assert json.loads(target.read_text())["reader"] == named["ffmpeg"]
    assert len(fake.opened) == before


def test_reports_and_exports_read_by_it_too(drawn: Path, fake: type[VideoReader]) -> None:
    assert command("report", drawn, "--reader", "decord") == 0
    read = len(fake.opened)
    assert read >= 2
    assert command("evaluate", drawn, "--vbench-export", drawn.with_name("vbench"), "--reader", "decord") == 0
    assert len(fake.opened) == read + 2


@pytest.mark.parametrize("words", [("evaluate", "--metrics", "motion"), ("report",), ("study",)])
def test_what_is_missing_is_said_before_anything_is_read(
    drawn: Path, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "decord", None)
    folders = (drawn, drawn) if words[0] == "study" else (drawn,)
    assert command(words[0], *folders, *words[1:], "--reader", "decord") == 2
    said = capsys.readouterr().err.strip()
    assert said.endswith("--reader decord needs decord: pip install 'selfnpo-video[decord]'")
    assert "\n" not in said
