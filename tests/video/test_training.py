"""Training CogVideoX: whole clips and windows, from the command line to a LoRA that stock diffusers loads."""

import json

import pytest
import torch
import yaml
from diffusers import CogVideoXPipeline, CogVideoXTransformer3DModel
from safetensors.torch import load_file
from transformers import T5EncoderModel

from selfnpo_core.commands.running import run
from selfnpo_core.errors import InputError
from selfnpo_core.ranks import Ranks
from selfnpo_core.training import build_recipe, dry_run, estimate, train
from selfnpo_core.training.accelerators import make_accelerator
from selfnpo_core.training.engine import Engine
from selfnpo_core.training.measuring import measure
from selfnpo_core.training.updates import check_window, draw_windows, noised_looks, update_loss
from selfnpo_video.cli import selfnpo_video
from selfnpo_video.cogvideox import CogVideoX
from selfnpo_video.families import find_base
from selfnpo_video.video_files import read_video

PROMPTS = ["a red circle moves left", "a blue square grows"]
SMALL = {"steps": 2, "batch_size": 2, "pool_size": 12, "grid_steps": 3, "rank": 2, "trackers": [], "device": "cpu"}
CLIP = {"frames": 17, "height": 64, "width": 64}


def command(*words: object) -> int:
    return run(selfnpo_video, [str(word) for word in words], name="selfnpo-video")


def loss_of(backbone: CogVideoX, **changes: object) -> tuple[float, list[tuple[int, ...]]]:
    """Loss of one update, and the shapes that the student saw."""
    recipe = build_recipe({**SMALL, **CLIP, "learning_rate": 1e-2, **changes})
    engine = Engine(backbone, recipe, len(PROMPTS), make_accelerator(recipe))
    seen = []
    try:
        engine.warm_up()
        engine.generator.manual_seed(1)
        (noised,) = noised_looks(engine.source, backbone, recipe, engine.generator)
        handle = engine.student.network.register_forward_pre_hook(
            lambda _, args, kwargs: seen.append(tuple(kwargs["hidden_states"].shape)), with_kwargs=True
        )
        loss = update_loss(noised, engine.denoisers, recipe)
        loss.backward()
        handle.remove()
        return float(loss.detach()), seen
    finally:
        engine.close()


@pytest.fixture
def backbone(folder):
    made = CogVideoX(find_base(str(folder)), **CLIP, device="cpu")
    made.embed(PROMPTS)
    return made


def test_a_window_of_the_whole_clip_has_the_loss_of_the_clip(backbone):
    frames = backbone.latent_shape[0]
    whole, shapes = loss_of(backbone)
    assert shapes == [(2, *backbone.latent_shape)]
    assert loss_of(backbone, chunk_frames=frames)[0] == pytest.approx(whole, rel=1e-6)


def test_an_update_sees_its_window_only(backbone):
    step = backbone.window_step
    _, shapes = loss_of(backbone, chunk_frames=2 * step)
    assert shapes == [(2, 2 * step, *backbone.latent_shape[1:])]


def test_windows_begin_everywhere(backbone):
    recipe = build_recipe({**SMALL, **CLIP, "chunk_frames": 2})
    engine = Engine(backbone, recipe, len(PROMPTS), make_accelerator(recipe))
    try:
        firsts = set()
        for seed in range(40):
            engine.generator.manual_seed(seed)
            firsts |= {n.first for n in noised_looks(engine.source, backbone, recipe, engine.generator)}
            engine.source.put_back()
    finally:
        engine.close()
    frames, step = backbone.latent_shape[0], backbone.window_step
    assert firsts == set(range(0, frames - 2 + 1, step))


def test_processes_train_on_windows_of_their_own(backbone):
    """Two processes on the windows that one has with twice the parts."""

    def drawn(parts: int, ranks: Ranks) -> list[list[int] | None]:
        recipe = build_recipe({**SMALL, **CLIP, "chunk_frames": 2, "grad_accumulation": parts})
        generators = (torch.Generator().manual_seed(seed) for seed in range(20))
        return [draw_windows(backbone, recipe, generator, ranks) for generator in generators]

    alone, first, second = drawn(2, Ranks()), drawn(1, Ranks(0, 2)), drawn(1, Ranks(1, 2))
    assert first != second
    assert alone == [[*one, *other] for one, other in zip(first, second, strict=True)]


def test_a_pool_that_does_not_fit_is_refused(folder, tmp_path, capsys, monkeypatch):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS))
    monkeypatch.setattr("selfnpo_core.training.estimate.available", lambda device: 1 << 20)
    words = ["--prompts", prompts, "--output", tmp_path / "run", "--set", "pool_size=100000", "--set", "trackers=[]"]
    words += ["--config", "paper"]
    assert command("train", "--model", folder, *words) == 2
    assert "pool_size" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("config", [{}, {"train": "full", "batch_size": 4, "gradient_checkpointing": True}])
def test_a_training_that_does_not_fit_is_refused_before_weights_are_read(folder, tmp_path, capsys, monkeypatch, config):
    """With changes that do fit, if there are any: the words of the message are a command that runs."""
    recipe = build_recipe({**SMALL, **CLIP, **config})
    sketch = CogVideoX.sketch(find_base(str(folder)), **CLIP)
    needed = dry_run(sketch, recipe, PROMPTS).device_bytes
    smaller = {"gradient_checkpointing": True, "batch_size": 1, "grad_accumulation": recipe.batch_size}
    enough = dry_run(sketch, recipe.model_copy(update=smaller), PROMPTS).device_bytes
    assert enough < needed
    device = torch.device("cpu")
    monkeypatch.setattr(estimate, "check_pool", lambda *_: None)
    monkeypatch.setattr(estimate, "available", lambda device: needed)
    estimate.check_memory(sketch, recipe, PROMPTS, device)
    monkeypatch.setattr(estimate, "available", lambda device: needed - 1)
    with pytest.raises(InputError, match="--set") as refused:
        estimate.check_memory(sketch, recipe, PROMPTS, device)
    words = [word.split("=") for word in str(refused.value).split() if "=" in word]
    advised = recipe.model_copy(update={key: yaml.safe_load(value) for key, value in words})
    assert dry_run(sketch, advised, PROMPTS).device_bytes < needed
    monkeypatch.setattr(estimate, "available", lambda device: 1000)
    monkeypatch.setattr(CogVideoXTransformer3DModel, "from_pretrained", lambda *_, **__: pytest.fail("weights read"))
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    words = ["--prompts", tmp_path / "prompts.txt", "--output", tmp_path / "run", "--set", "trackers=[]"]
    assert command("train", "--model", folder, *words) == 2
    assert "a device with more memory" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_windows_that_do_not_fit_are_refused(backbone):
    for wrong in (backbone.latent_shape[0] + 2, *([3] if backbone.window_step == 2 else [])):
        with pytest.raises(InputError, match="chunk_frames"):
            check_window(backbone, build_recipe({**SMALL, "chunk_frames": wrong}))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_sketch_costs_what_the_model_costs(folder, backbone, checkpointing):
    recipe = build_recipe({**SMALL, **CLIP, "gradient_checkpointing": checkpointing})
    real = dry_run(backbone, recipe, PROMPTS)
    sketch = CogVideoX.sketch(find_base(str(folder)), **CLIP)
    assert all(parameter.is_meta for parameter in sketch.denoiser.parameters())
    drawn = dry_run(sketch, recipe, PROMPTS)
    assert (drawn.trained_parameters, drawn.network_parameters) == (real.trained_parameters, real.network_parameters)
    for ours, theirs in zip(drawn.memory, real.memory, strict=True):
        assert ours.name == theirs.name
        assert ours.bytes == pytest.approx(theirs.bytes, rel=0.1)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    "changes",
    [
        {"targets": "all", "mixed_precision": "bf16"},
        {"train": "full"},
        {"train": "full", "mixed_precision": "bf16", "grad_accumulation": 2, "batch_size": 3},
        {"chunk_frames": 3, "rank": 64},
    ],
)
def test_the_estimate_for_the_demo_model_is_what_is_seen(changes, checkpointing):
    values = {**SMALL, "steps": 9, "batch_size": 4, "gradient_checkpointing": checkpointing}
    recipe, backbone = build_recipe({**values, **changes}), CogVideoX(find_base("demo"), frames=33, device="cpu")
    asked = dry_run(backbone, recipe, PROMPTS).device_bytes
    assert asked == pytest.approx(measure(backbone, recipe, PROMPTS).bytes, rel=0.15)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cogvideox-2b", pytest.param("zai-org/CogVideoX-2b", marks=pytest.mark.exhaustive)])
def test_dry_run_of_a_known_model_without_its_weights(capsys, name):
    assert command("train", "--model", name, "--dry-run") == 0
    said = capsys.readouterr().out
    assert "of 1,693,783,872" in said
    assert "3 a row: 0 teacher" in said
    assert "200 at guidance scale 2 in 10 steps: 20 forwards each" in said
    assert command("train", "--model", name, "--config", "paper", "--dry-run") == 0
    said = capsys.readouterr().out
    assert "29,491,200 of 1,693,783,872" in said
    assert "4.04167 a row" in said  # a 24th step brings what is drawn past the noisiest timestep
    assert "pool, 50 trajectories of 4.3 MiB" in said


def test_a_run_from_the_command_line(folder, tmp_path, capsys):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS))
    sets = {**SMALL, **CLIP, "frames": 9, "learning_rate": 0.1, "max_drift": 100, "sample_every": 2, "sample_steps": 2}
    words = [w for key, value in sets.items() for w in ("--set", f"{key}={json.dumps(value)}")]
    fast = ["--config", "paper", "--set", "mixed_precision=no", "--set", "grad_accumulation=1"]
    output = tmp_path / "run"
    assert command("train", "--model", folder, "--prompts", prompts, "--output", output, *words, *fast) == 0
    config = json.loads((output / "npo" / "npo_config.json").read_text())
    assert config["family"] == "cogvideox"
    assert list((output / "samples").iterdir())
    pipe = CogVideoXPipeline.from_pretrained(folder)
    pipe.load_lora_weights(output / "npo", adapter_name="npo")
    state = load_file(output / "npo" / "pytorch_lora_weights.safetensors")
    loaded = dict(pipe.transformer.named_parameters())
    for key, tensor in state.items():
        name = key.removeprefix("transformer.").replace(".weight", ".npo.weight")
        torch.testing.assert_close(loaded[name].detach(), tensor)
    capsys.readouterr()
    assert command("inspect", output, "--model", folder, "--json", "--trajectories", 2) == 0
    found = json.loads(capsys.readouterr().out)["decomposition"]
    assert len(found["by_timestep"]) == 10
    assert all(level["size"] > 0 and 0 <= level["rest_share"] <= 1 for level in found["by_timestep"])
    clips = tmp_path / "clips"
    draw = ["--steps", 2, "--frames", 9, "--height", 64, "--width", 64, "--seed", 3, "--output", clips]
    assert command("sample", "--model", folder, "--npo", output, "--prompt", PROMPTS[0], *draw) == 0
    record = json.loads((clips / "metadata.jsonl").read_text())
    assert (record["prompt"], record["frames"], record["beta"]) == (PROMPTS[0], 9, 1.0)
    assert (clips / "00000-3.mp4").stat().st_size > 500
    assert command("sample", "--model", folder, "--prompt", "x", "--frames", 8, "--output", tmp_path / "no") == 2
    assert "nearest" in capsys.readouterr().err


def test_sample_grids_of_prompts_that_are_not_trained_with(folder, tmp_path):
    """T5 is read once, before training; the rows that are trained with stay the prompts'."""
    shown = {"sample_prompts": ["a green ring", PROMPTS[1]], "sample_every": 2, "sample_steps": 2}
    recipe = build_recipe({**SMALL, **CLIP, **shown, "mixed_precision": "bf16"})
    backbone = CogVideoX(find_base(str(folder)), **CLIP, dtype=torch.bfloat16, device="cpu")
    with pytest.MonkeyPatch.context() as patch:
        read, read_t5 = [], T5EncoderModel.from_pretrained
        patch.setattr(T5EncoderModel, "from_pretrained", lambda *a, **k: read.append(a) or read_t5(*a, **k))
        train(backbone, recipe, PROMPTS, tmp_path / "run", progress=False)
    assert len(read) == 1
    assert len(backbone._table) == len(PROMPTS) + len(shown["sample_prompts"]) + 1
    assert (tmp_path / "run" / "samples" / "step-000002.png").exists()
    frames, fps = read_video(tmp_path / "run" / "samples" / "step-000002.mp4")
    assert (len(frames), fps) == (backbone.size.frames, 8)
    assert frames.shape[1:3] == (14 + 2 * backbone.size.height, 2 * backbone.size.width)
    assert (tmp_path / "run" / "prompts.txt").read_text().split("\n")[:2] == PROMPTS


def test_a_base_that_stays_mapped_from_its_file_trains_the_same(folder, tmp_path):
    """Bit for bit as one that was made float32, which reading it would have cost each process."""
    whole = CogVideoXPipeline.from_pretrained(folder)
    whole.transformer.to(torch.bfloat16)
    whole.save_pretrained(tmp_path / "model")
    changes = {"train": "full", "rollout": "samples", "loss": "denoising", "samples": 4, "sample_grid_steps": 2}
    recipe = build_recipe({**SMALL, **CLIP, **changes, "samples_cache": None, "sample_every": 0, "uses": 1})
    made = []
    for keep in (False, True):
        backbone = CogVideoX(find_base(str(tmp_path / "model")), **CLIP, device="cpu", keep_stored=keep)
        kinds = {parameter.dtype for parameter in backbone.denoiser.parameters()}
        assert kinds == {torch.bfloat16 if keep else torch.float32}
        npo = train(backbone, recipe, PROMPTS, tmp_path / f"run-{keep}", progress=False)
        assert {parameter.dtype for parameter in backbone.denoiser.parameters()} == kinds
        made.append((load_file(npo / "delta.safetensors"), backbone.denoiser.state_dict()))
    (one, base), (other, kept) = made
    assert all(torch.equal(other[name], one[name]) for name in one)
    assert any(tensor.any() for tensor in one.values())
    assert all(torch.equal(kept[name].float(), base[name]) for name in base)
