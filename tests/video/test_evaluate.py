"""`evaluate` of clips: motion, feature networks, VBench, and the command on what the demo's model draws."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from tests.tiny import clip_model

from selfnpo_core.commands.running import run
from selfnpo_core.errors import InputError
from selfnpo_core.evaluation import Moments, frechet_distance
from selfnpo_core.evaluation.clip import REPO
from selfnpo_core.evaluation.networks import Ready
from selfnpo_core.sampling.sample_folder import read_records
from selfnpo_video.cli import selfnpo_video
from selfnpo_video.demo import moving, world
from selfnpo_video.evaluation import vbench
from selfnpo_video.evaluation.features import feature_network, spaced
from selfnpo_video.evaluation.motion import measured
from selfnpo_video.video_files import read_video, write_video

CPU = torch.device("cpu")
ORACLE = ("--feature-network", "oracle")


def command(*words: object) -> int:
    return run(selfnpo_video, [str(word) for word in words], name="selfnpo-video")


def stripes(speed: float, frames: int = 5, height: float = 40.0) -> np.ndarray:
    """Waves of 32 pixels that travel to the right."""
    x = np.arange(64)[None] - speed * np.arange(frames)[:, None]
    wave = 128 + height * np.sin(2 * np.pi * x / 32)
    return np.broadcast_to(wave[:, None, :, None], (frames, 16, 64, 3)).round().astype(np.uint8)


@pytest.mark.parametrize("speed", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("height", [20.0, 100.0])
def test_speed_is_of_pixels_a_frame_whatever_the_contrast(speed: float, height: float) -> None:
    motion, found = measured(stripes(speed, height=height)).tolist()
    assert found == pytest.approx(speed, rel=0.06)
    assert motion == pytest.approx(speed * height / 255 * 2 * np.pi / 32 * 2 / np.pi, rel=0.05)  # mean |cos| is 2/π


def test_what_stands_still_has_no_motion() -> None:
    assert measured(stripes(0.0)).tolist() == [0, 0]
    assert measured(stripes(1.0, frames=1)).tolist() == [0, 0]
    assert measured(np.full((4, 8, 8, 3), 7, np.uint8)).tolist() == [0, 0]


def videomae(folder: Path, *, kind: type = transformers.VideoMAEModel) -> torch.nn.Module:
    torch.manual_seed(0)
    config = transformers.VideoMAEConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        image_size=32,
        patch_size=16,
        num_frames=4,
        tubelet_size=2,
    )
    model = kind(config).eval()
    model.save_pretrained(folder)
    size = {"height": 32, "width": 32}
    transformers.VideoMAEImageProcessorPil(size={"shortest_edge": 32}, crop_size=size).save_pretrained(folder)
    return model


@pytest.mark.parametrize("kind", [transformers.VideoMAEModel, transformers.VideoMAEForVideoClassification])
def test_features_of_a_transformers_model(tmp_path: Path, kind: type) -> None:
    model = videomae(tmp_path / "m", kind=kind)
    clips = [stripes(1.0, frames=9), stripes(2.0, frames=3)]
    network = feature_network(str(tmp_path / "m"))
    with torch.no_grad():
        found = network.load(Ready.of(network, None, "fvd").places, CPU)(clips, ["", ""])
        chosen = [clips[0][[0, 3, 5, 8]], clips[1][[0, 1, 1, 2]]]
        prepare = transformers.VideoMAEImageProcessorPil.from_pretrained(tmp_path / "m")
        pixels = prepare([list(clip) for clip in chosen], return_tensors="pt")["pixel_values"]
        wanted = getattr(model, "videomae", model)(pixel_values=pixels).last_hidden_state.mean(dim=1)
    torch.testing.assert_close(found, wanted)
    assert len(network.sha256["model.safetensors"]) == 64


def test_frames_are_spaced_evenly() -> None:
    assert spaced(9, 4).tolist() == [0, 3, 5, 8]
    assert spaced(1, 3).tolist() == [0, 0, 0]
    assert spaced(16, 16).tolist() == list(range(16))


def test_feature_networks_that_are_refused(tmp_path: Path) -> None:
    (tmp_path / "i3d.pt").write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"model_type": "clip"}')
    for name, message in (("i3d.pt", "may be code"), ("empty", r"no config\.json"), ("other", "of type clip")):
        with pytest.raises(InputError, match=message):
            feature_network(str(tmp_path / name))
    with pytest.raises(InputError, match="use oracle, videomae"):
        feature_network("i3d")


# The command


@pytest.fixture(scope="module")
def arms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two arms of the demo's model, two prompts of five seeds each, and real clips of its world."""
    root = tmp_path_factory.mktemp("arms")
    prompts = [word for text in ("a rose moves quickly down", "a car moves slowly up") for word in ("--prompt", text)]
    for name, scale in (("a", 3), ("b", 1)):
        words = ("--count", 5, "--steps", 2, "--guidance-scale", scale, "--batch-size", 10, "--format", "gif")
        assert command("sample", "--model", "demo", *prompts, *words, "--output", root / name) == 0
    real, _ = world.draw_world(8, torch.Generator().manual_seed(0))
    (root / "real").mkdir()
    for i, clip in enumerate(real):
        write_video(root / "real" / f"{i}.gif", clip.permute(1, 2, 3, 0).numpy(), fps=8)
    return root


@pytest.fixture
def copied(arms: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(arms, tmp_path / "arms", ignore=shutil.ignore_patterns(".evaluation")))


def features(folder: Path) -> torch.Tensor:
    """Of the demo's oracle, asked without `evaluate`."""
    files = sorted(folder.glob("*.gif"))
    x = torch.stack([torch.from_numpy(read_video(file)[0]).permute(3, 0, 1, 2) for file in files]) / 255
    with torch.no_grad():
        return moving.MovingThings().judges.oracle.features(x)


def test_end_to_end_on_the_demos_model(copied: Path) -> None:
    clip_model(copied / "weights" / REPO)
    videomae(copied / "mae")
    metrics = "oracle,fvd,kvd,precision,recall,clip_score,frame_consistency,motion,speed"
    words = ("evaluate", copied / "a", "--against", copied / "b", "--reference", copied / "real", "--metrics", metrics)
    target = copied / "r.json"
    assert command(*words, *ORACLE, "--json", target, "--weights", copied / "weights") == 0
    found = json.loads(target.read_text())["metrics"]
    assert list(found) == ["accuracy", "preference", *metrics.split(",")[1:]]
    a, real = Moments.of(features(copied / "a")), Moments.of(features(copied / "real"))
    assert found["fvd"]["value"][0] == pytest.approx(frechet_distance(real, a), rel=1e-4)
    moved = [measured(read_video(file)[0]) for file in sorted((copied / "a").glob("*.gif"))]
    assert found["motion"]["value"][0] == pytest.approx(torch.stack(moved)[:, 0].mean().item(), rel=1e-4)
    assert found["motion"]["better"] == "neither"
    assert 0.5 < found["frame_consistency"]["value"][0] <= 1
    assert sum(found["speed"][key] for key in ("wins", "ties", "losses")) == 10
    assert command(*words[:7], "fvd", "--feature-network", copied / "mae", "--json", target) == 0
    other = json.loads(target.read_text())["metrics"]["fvd"]
    assert other["model"] == str(copied / "mae")
    assert other["value"] != found["fvd"]["value"]


def test_a_clip_that_is_cut_off(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = sorted((copied / "b").glob("*.gif"))[3]
    file.write_bytes(file.read_bytes()[:-2000])
    words = ("evaluate", copied / "a", "--against", copied / "b", "--metrics", "oracle", "--json", copied / "r.json")
    assert command(*words) == 2
    assert f"{copied}/b/{file.name}: is cut off" in capsys.readouterr().err
    assert command(*words, "--skip-bad") == 0
    results = json.loads((copied / "r.json").read_text())
    assert results["metrics"]["preference"]["count"] == 9
    assert [each["file"] for each in results["skipped"]] == [file.name]


def vbench_results(folder: Path, file: Path, numbers: dict[str, dict[int, float | bool]]) -> None:
    """As VBench would write them of an export: dimension → {number of the file in order: what it found}."""
    videos = sorted((folder / vbench.VIDEOS).iterdir())
    found = {
        dimension: [
            sum(some.values()) / len(some),
            [{"video_path": str(videos[i]), "video_results": value} for i, value in some.items()],
        ]
        for dimension, some in numbers.items()
    }
    file.write_text(json.dumps(found))


def test_to_vbench_and_back(copied: Path, caplog: pytest.LogCaptureFixture) -> None:
    for arm in "ab":
        assert command("evaluate", copied / arm, "--vbench-export", copied / f"out-{arm}") == 0
    assert "expects" not in caplog.text
    out = copied / "out-a"
    prompts = ["a car moves slowly up", "a rose moves quickly down"]
    names = sorted(file.name for file in (out / "videos").iterdir())
    assert names == [f"{prompt}-{i}.gif" for prompt in prompts for i in range(5)]
    assert sorted((out / "prompts.txt").read_text().splitlines()) == prompts
    by_seed = {(r["prompt"], r["seed"]): r["file"] for r in read_records(copied / "a" / "metadata.jsonl")}
    origin = json.loads((out / "samples.json").read_text())["samples"]
    for name, sample in origin.items():
        source = copied / "a" / by_seed[name.rsplit("-", 1)[0], sample["seed"]]
        assert (out / "videos" / name).read_bytes() == source.read_bytes()
        assert Path(sample["file"]) == source
    assert json.loads((out / "prompts.json").read_text())[str(out / "videos" / names[0])] == prompts[0]
    vbench_results(
        out, copied / "a.json", {"subject_consistency": {0: 0.9, 6: 0.8, 9: 0.5}, "color": {1: True, 2: False}}
    )
    more = {"subject_consistency": {0: 0.7, 6: 0.9, 9: 0.1}, "color": {1: False, 2: False}, "scene": {3: 1.0}}
    vbench_results(copied / "out-b", copied / "b.json", more)
    words = (
        "evaluate",
        copied / "a",
        "--against",
        copied / "b",
        "--metrics",
        "vbench,motion",
        "--json",
        copied / "r.json",
    )
    results = ("--vbench-results", copied / "a.json", "--vbench-against", copied / "b.json")
    assert command(*words, *results) == 0
    results = json.loads((copied / "r.json").read_text())
    scores, found = results["per_sample"], results["metrics"]
    assert set(found) == {"motion", "vbench_subject_consistency", "vbench_color"}
    named = dict(zip(scores["value_files"], scores["value"]["vbench_subject_consistency"], strict=True))
    measured = {Path(origin[names[i]]["file"]).name: value for i, value in {0: 0.9, 6: 0.8, 9: 0.5}.items()}
    assert {name: value for name, value in named.items() if value is not None} == measured
    assert sorted(filter(None, scores["against"]["vbench_subject_consistency"])) == [0.1, 0.7, 0.9]
    assert len(scores["value"]["motion"]) == len(scores["against"]["motion"]) == 10
    steady = found["vbench_subject_consistency"]
    assert (steady["count"], steady["wins"], steady["losses"]) == (3, 2, 1)
    assert steady["change"][0] == pytest.approx((0.2 - 0.1 + 0.4) / 3)
    assert found["vbench_color"]["value"][0] == 0.5
    assert all("p_holm" in each for each in found.values())


def test_clips_of_enhanced_prompts_go_by_the_original_ones(small: Path, tmp_path: Path) -> None:
    """Also where two of them were enhanced from the same."""
    originals = ["a blue star", "a red circle", "a red circle"]
    enhanced = ["a blue star moves up", "a red circle grows", "a red circle moves left"]
    (tmp_path / "short.txt").write_text("\n".join(originals))
    (tmp_path / "long.txt").write_text("\n".join(enhanced))
    words = ("sample", "--model", small, "--prompts", tmp_path / "long.txt", "--steps", 1, "--guidance-scale", 1)
    words += (
        "--frames",
        1,
        "--height",
        16,
        "--width",
        16,
        "--count",
        5,
        "--format",
        "gif",
        "--batch-size",
        15,
        "--output",
        tmp_path / "clips",
    )
    assert command(*words, "--original-prompts", tmp_path / "short.txt") == 0
    records = read_records(tmp_path / "clips" / "metadata.jsonl")
    assert [(r["original_prompt"], r["prompt"]) for r in records[::5]] == list(zip(originals, enhanced, strict=True))
    out = tmp_path / "out"
    assert command("evaluate", tmp_path / "clips", "--vbench-export", out) == 0
    names = sorted(file.name for file in (out / "videos").iterdir())
    expected = [*(f"a blue star-{i}.gif" for i in range(5)), *(f"a red circle-{i}.gif" for i in range(10))]
    assert names == sorted(expected)
    assert (out / "prompts.txt").read_text().splitlines() == ["a blue star", "a red circle"]
    assert json.loads((out / "prompts.json").read_text())[str(out / "videos" / "a red circle-9.gif")] == "a red circle"
    vbench_results(out, tmp_path / "results.json", {"color": {0: 1.0, 14: 0.5}})
    words = ("evaluate", tmp_path / "clips", "--metrics", "vbench", "--json", tmp_path / "r.json")
    assert command(*words, "--vbench-results", tmp_path / "results.json") == 0
    results = json.loads((tmp_path / "r.json").read_text())
    scores = results["per_sample"]["value"]["vbench_color"]
    named = zip(results["per_sample"]["value_files"], scores, strict=True)
    seeds = {record["file"]: (record["prompt"], record["seed"]) for record in records}
    found = {seeds[name]: value for name, value in named if value is not None}
    assert found == {("a blue star moves up", 0): 1.0, ("a red circle moves left", 14): 0.5}


def test_original_prompts_must_be_as_many(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "short.txt").write_text("a star\na circle")
    words = ("sample", "--model", small, "--prompt", "a red circle grows", "--output", tmp_path / "clips")
    assert command(*words, "--original-prompts", tmp_path / "short.txt") == 2
    assert "short.txt has 2 prompts, and there are 1 to draw" in capsys.readouterr().err


def test_an_index_stays_when_a_clip_is_left_out(copied: Path, caplog: pytest.LogCaptureFixture) -> None:
    records = [r for r in read_records(copied / "a" / "metadata.jsonl") if r["prompt"] == "a rose moves quickly down"]
    (copied / "a" / records[1]["file"]).write_bytes(b"")
    assert command("evaluate", copied / "a", "--vbench-export", copied / "out", "--skip-bad") == 0
    names = {file.name for file in (copied / "out" / "videos").iterdir()}
    assert {name for name in names if "rose" in name} == {f"a rose moves quickly down-{i}.gif" for i in (0, 2, 3, 4)}
    assert "VBench expects 5 clips a prompt" in caplog.text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "nothing to measure: give --metrics some of fvd"),
        ("--metrics vbench", "--vbench-results FILE"),
        ("--metrics vbench --vbench-results gone", "gone cannot be read"),
        ("--metrics vbench --vbench-results META", "is no …_eval_results.json"),
        ("--metrics vbench --vbench-results OTHER", "color is of none of the clips"),
        ("--metrics vbench --vbench-results OTHER --vbench-against OTHER", "belongs to --against"),
        ("--vbench-export A", "exists"),
        ("--metrics fvd --reference A", "hf download MCG-NJU/videomae-base-finetuned-kinetics"),
        ("--metrics motion --reference A --against A --cache META", "another --cache"),
    ],
)
def test_mistakes(
    copied: Path, words: str, message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(copied / "hub"))
    other = {"color": [0.5, [{"video_path": "x/else-0.mp4", "video_results": 0.5}]]}
    (copied / "other.json").write_text(json.dumps(other))
    places = {"A": copied / "a", "META": copied / "a" / "metadata.jsonl", "OTHER": copied / "other.json"}
    assert command("evaluate", copied / "a", *(places.get(word, word) for word in words.split())) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(errors) == 1
    assert message in errors[0]


def test_names_that_files_cannot_have(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metadata = copied / "a" / "metadata.jsonl"
    metadata.write_text(metadata.read_text().replace("a rose moves quickly down", "either/or"))
    assert command("evaluate", copied / "a", "--vbench-export", copied / "out") == 2
    assert "'either/or' cannot" in capsys.readouterr().err
    assert not (copied / "out").exists()
