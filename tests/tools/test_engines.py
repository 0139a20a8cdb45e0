"""One process, DDP and ZeRO make the same updates, over gloo; a run goes on under another engine."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.tiny import cogvideox, sd15
from tests.tools.launching import SCRIPT, environment, free_port, launch

from selfnpo_core.training.checkpoint import load_checkpoint

ENGINES = {
    "single": ("auto", 1),
    "ddp": ("auto", 2),
    "zero2": ("zero2", 2),
    "zero3": ("zero3", 2),
    "fsdp2": ("fsdp2", 2),
}
ROWS, UPDATES = 4, 6
MOVED_BY_ROUNDING = {f"transformer_blocks.{k}.attn1.norm_k.bias" for k in range(2)}
"""What shifts all keys alike shifts a query's scores alike, which changes nothing: the gradient is zero but for
rounding, and Adam makes steps of that."""

SMALL = (
    "steps=2",
    "batch_size=2",
    "grad_accumulation=1",
    "pool_size=8",
    "grid_steps=3",
    "mixed_precision=no",
    "frames=9",
)
SMALL += ("height=64", "width=64", "device=cpu", "trackers=[]", "sample_every=0", "max_drift=9.0")


def train(model: Path, output: Path, engine: str, *more: str, what: str = "lora", resume: bool = False) -> Path:
    name, processes = ENGINES[engine]
    settings = {
        "engine": name,
        "train": what,
        "steps": UPDATES,
        "batch_size": ROWS // processes,
        "grad_accumulation": 1,
        "mixed_precision": "no",
        "gradient_checkpointing": "false",
        "sample_every": 0,
        "pool_size": 10,
        "grid_steps": 5,
        "learning_rate": 1e-4 if what == "lora" else 1e-6,
        "rank": 4,
        "ema_decay": 0.9,
        "max_drift": 9.0,
        "checkpoint_every": 3,
        "device": "cpu",
        "trackers": "[]",
        "process_timeout": 120,
    }
    words = ["--config", "paper"]
    words += [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    if model.name == "video":
        words += ["--set", "frames=9", "--set", "height=64", "--set", "width=64"]
    else:
        words += ["--family", "image"]
    words += ["--model", str(model), "--output", str(output), *more, *(["--resume"] if resume else [])]
    done = launch(words, processes, launcher=engine != "single")
    assert done.returncode == 0, done.stderr[-3000:]
    return output


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights(run: Path) -> dict[str, torch.Tensor]:
    (file,) = (run / "npo").glob("*.safetensors")
    return load_file(file)


def state(run: Path, part: str) -> Mapping[str, torch.Tensor]:
    return load_checkpoint(run / f"checkpoints/step-{UPDATES:06d}").tensors[part]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    cogvideox("2b").save_pretrained(folder / "video")
    sd15().save_pretrained(folder / "image")
    return folder


@pytest.fixture(scope="module")
def runs(models, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    return {engine: train(models / "video", folder / engine, engine) for engine in ENGINES}


def assert_same_updates(one: Path, other: Path) -> None:
    assert len(losses(one)) == len(losses(other)) == UPDATES
    assert losses(other) == pytest.approx(losses(one), abs=1e-5)
    for mine, theirs in [
        (weights(one), weights(other)),
        *((state(one, part), state(other, part)) for part in ("student", "teacher", "source")),
    ]:
        assert mine.keys() == theirs.keys()
        for name, tensor in mine.items():
            torch.testing.assert_close(theirs[name].float(), tensor.float(), rtol=1e-4, atol=1e-5)
    assert_near(*({n: w for n, w in weights(run).items() if n not in MOVED_BY_ROUNDING} for run in (one, other)), 0.02)
    assert_near(state(one, "optimizer"), state(other, "optimizer"), 1e-3)


def assert_near(mine: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], share: float) -> None:
    """Of each tensor's norm, however small it is, down to what is nothing beside the largest of its kind."""
    kind = {name: name.rpartition(".")[2] for name in mine}
    largest = {k: max(float(t.float().norm()) for name, t in mine.items() if kind[name] == k) for k in kind.values()}
    for name, tensor in mine.items():
        apart = float((theirs[name].float() - tensor.float()).norm())
        assert apart <= share * float(tensor.float().norm()) + 1e-6 * largest[kind[name]], name


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", "zero2", "zero3", "fsdp2"])
def test_engines_make_the_same_updates(runs, engine):
    assert_same_updates(runs["single"], runs[engine])
    effect = [tensor for name, tensor in weights(runs[engine]).items() if "lora_B" in name]
    assert effect
    assert all(tensor.any() for tensor in effect)


@pytest.mark.slow
def test_two_processes_draw_and_train_on_the_samples_that_one_does(models, tmp_path):
    keys = ("rollout=samples", "loss=denoising", "samples=70", "sample_grid_steps=2", "student_prompt_dropout=0.5")
    keys += ("rounds=2", "samples_cache=null")
    more = [word for key in keys for word in ("--set", key)]
    one, two = (train(models / "image", tmp_path / name, name, *more) for name in ("single", "ddp"))
    drawn = [{p.name: p.read_bytes() for p in (run / "latents").iterdir() if p.is_file()} for run in (one, two)]
    assert drawn[0].keys() == {"samples.json", "part-00000.safetensors", "part-00001.safetensors"}
    assert drawn[0] == drawn[1]
    later = [load_file(run / "latents/round-1/part-00001.safetensors") for run in (one, two)]
    torch.testing.assert_close(later[0], later[1], rtol=1e-4, atol=1e-4)  # by weights that rounding sets apart
    assert_same_updates(one, two)


NARROW = ("mixed_precision=bf16", "gradient_checkpointing=true")
FINISHED = ("rollout=samples", "loss=denoising", "samples=24", "sample_grid_steps=2", "samples_cache=null")
AVERAGED = [word for key in (*NARROW, *FINISHED, "learning_rate=1e-4", "average=0.25") for word in ("--set", key)]


@pytest.fixture(scope="module")
def averaged(models, tmp_path_factory) -> Callable[[str], Path]:
    """Runs of all weights, made when they are asked for, in bf16 with gradient checkpointing."""
    folder, made = tmp_path_factory.mktemp("averaged"), dict[str, Path]()

    def run(engine: str) -> Path:
        if engine not in made:
            made[engine] = train(models / "image", folder / engine, engine, *AVERAGED, what="full")
        return made[engine]

    return run


def apart(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> float:
    """‖one − other‖ over all tensors."""
    assert one.keys() == other.keys()
    return sum(float((one[name].float() - other[name].float()).norm()) ** 2 for name in one) ** 0.5


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["zero3", pytest.param("fsdp2", marks=pytest.mark.exhaustive)])
def test_weights_in_pieces_are_trained_and_saved_as_whole_ones_are(averaged, engine):
    """As their average, which is apart by rounding (ZeRO-3 sends gradients in 16 bits), and far from the last ones."""
    one, two = averaged("single"), averaged(engine)
    lag = apart(state(one, "student"), state(one, "teacher"))
    for mine, theirs in [
        (weights(one), weights(two)),
        *((state(one, p), state(two, p)) for p in ("student", "teacher")),
    ]:
        assert apart(mine, theirs) < 0.4 * lag
    mine, theirs = state(one, "optimizer"), state(two, "optimizer")
    for key in ("exp_avg", "exp_avg_sq"):
        ours, other = ({n: t for n, t in held.items() if n.endswith(key)} for held in (mine, theirs))
        assert apart(ours, other) < 0.03 * apart(ours, dict.fromkeys(ours, torch.zeros(())))
    assert all(torch.equal(theirs[name], tensor) for name, tensor in mine.items() if name.endswith("step"))
    base = {name: tensor - weights(one)[name].float() for name, tensor in state(one, "teacher").items()}
    saved = {name: base[name] + tensor.float() for name, tensor in weights(two).items()}
    assert apart(saved, state(two, "teacher")) < 0.05 * lag
    newest = two / f"checkpoints/step-{UPDATES:06d}"
    assert len(list(newest.glob("*-of-00002.safetensors"))) == 6


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["zero3", "fsdp2"])
def test_a_run_of_weights_in_pieces_resumes_bit_for_bit(averaged, models, tmp_path, engine):
    shutil.copytree(averaged(engine), tmp_path / "run")
    shutil.rmtree(tmp_path / f"run/checkpoints/step-{UPDATES:06d}")
    train(models / "image", tmp_path / "run", engine, *AVERAGED, what="full", resume=True)
    for part in ("student", "teacher", "optimizer", "source"):
        before, after = state(averaged(engine), part), state(tmp_path / "run", part)
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.slow
def test_a_run_of_two_processes_goes_on_in_one(runs, models, tmp_path):
    shutil.copytree(runs["zero2"], tmp_path / "run")
    shutil.rmtree(tmp_path / f"run/checkpoints/step-{UPDATES:06d}")
    train(models / "video", tmp_path / "run", "single", resume=True)
    assert_same_updates(runs["single"], tmp_path / "run")


@pytest.mark.exhaustive
@pytest.mark.parametrize("storage", ["fp8", "int8"])
def test_processes_share_a_base_in_8_bits(models, tmp_path, storage):
    more = ("--set", f"base_storage={storage}", "--set", "gradient_checkpointing=true")
    alone = train(models / "video", tmp_path / "single", "single", *more)
    assert_same_updates(alone, train(models / "video", tmp_path / "ddp", "ddp", *more))


@pytest.mark.exhaustive
@pytest.mark.parametrize("what", ["lora", "full"])
@pytest.mark.parametrize("model", ["video", "image"])
def test_every_engine_on_every_model(models, tmp_path, model, what):
    alone = train(models / model, tmp_path / "single", "single", what=what)
    for engine in ("ddp", "zero2", "zero3", "fsdp2"):
        assert_same_updates(alone, train(models / model, tmp_path / engine, engine, what=what))


@pytest.mark.slow
def test_processes_agree_on_a_new_folder(models, tmp_path):
    words = ["--model", str(models / "video"), "--config", "paper", *(w for key in SMALL for w in ("--set", key))]
    accelerate = [str(Path(sys.executable).with_name("accelerate")), "launch", "--cpu", "--num_processes", "2"]
    port = [
        "--main_process_port",
        str(free_port()),
        "--mixed_precision",
        "no",
        "--num_machines",
        "1",
        "--dynamo_backend",
        "no",
    ]
    start = [*accelerate, *port, str(SCRIPT), *words]
    done = subprocess.run(
        start, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name == "video-1"
    assert len(losses(run)) == 2
    assert done.stdout.count("negative weights in runs/video-1/npo") == 1
