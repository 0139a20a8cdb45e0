"""CogVideoX with a preference-tuned transformer, and its negative weights for other programs."""

import json

import pytest
import torch
from diffusers import CogVideoXTransformer3DModel
from tests.tiny import cogvideox

from selfnpo_core.commands.running import run
from selfnpo_core.weights.npo_folder import load_npo
from selfnpo_video.cli import selfnpo_video
from selfnpo_video.families import find_base
from selfnpo_video.loading import load_pipeline
from selfnpo_video.video_files import read_video

CLIP = {"frames": 9, "height": 64, "width": 64}
SMALL = {"steps": 2, "batch_size": 2, "pool_size": 4, "grid_steps": 3, "trackers": [], "device": "cpu", **CLIP}


def command(*words: object) -> int:
    return run(selfnpo_video, [str(word) for word in words], name="selfnpo-video")


@pytest.fixture(scope="module", params=["lora", "full"])
def trained(request, small, tmp_path_factory):
    """Two updates of a LoRA, or of all weights."""
    prompts = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    prompts.write_text("a red circle moves left\na blue square grows\n")
    more = {"learning_rate": 0.01, "max_drift": 100, "rank": 4, "mixed_precision": "no", "grad_accumulation": 1}
    values = {**SMALL, **more, "sample_every": 0, "train": request.param}
    sets = ["--config", "paper"]
    sets += [word for key, value in values.items() for word in ("--set", f"{key}={json.dumps(value)}")]
    output = tmp_path_factory.mktemp("runs") / "run"
    assert command("train", "--model", small, "--prompts", prompts, "--output", output, *sets) == 0
    return output


def test_exports(trained, small, tmp_path, capsys):
    kind = load_npo(trained).kind
    rank = ("--rank", 4) if kind == "delta" else ()
    assert command("export", "--npo", trained, "--format", "diffusers", "--output", tmp_path / "lora", *rank) == 0
    assert ("effect" in capsys.readouterr().out) == (kind == "delta")
    pipe = load_pipeline(find_base(str(small)))
    pipe.load_lora_weights(tmp_path / "lora", adapter_name="npo")
    assert any("lora_A" in name for name, _ in pipe.transformer.named_parameters())
    assert command("export", "--npo", trained, "--format", "merged", "--output", tmp_path / "merged") == 0
    merged = CogVideoXTransformer3DModel.from_pretrained(tmp_path / "merged").state_dict()
    base = load_pipeline(find_base(str(small))).transformer.state_dict()
    assert any(not torch.equal(merged[name], base[name]) for name in base)
    assert command("export", "--npo", trained, "--format", "kohya", "--output", tmp_path / "k", *rank) == 2
    assert "no kohya format" in capsys.readouterr().err


def test_a_preference_on_both_branches(trained, small, tmp_path):
    """Drawn with θ + η: as the tuned model draws, and otherwise where the negative branch has none of η."""
    tuned = cogvideox()
    with torch.no_grad():
        for parameter in tuned.transformer.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    tuned.save_pretrained(tmp_path / "tuned")
    words = ("--prompt", "a red circle", "--steps", 2, "--frames", 9, "--height", 64, "--width", 64)
    words = (*words, "--dtype", "fp32", "--guidance-scale", 4)
    assert command("sample", "--model", tmp_path / "tuned", *words, "--output", tmp_path / "wanted") == 0
    mixed = ("--model", small, "--preference", tmp_path / "tuned" / "transformer")
    assert command("sample", *mixed, *words, "--output", tmp_path / "plain") == 0
    npo = ("--npo", trained, "--negative-mode", "swap")
    for alpha in (0, 1):
        assert command("sample", *mixed, *npo, "--alpha", alpha, *words, "--output", tmp_path / str(alpha)) == 0
    wanted, plain, none, one = (
        torch.from_numpy(read_video(tmp_path / name / "00000-0.mp4")[0]) for name in ("wanted", "plain", "0", "1")
    )
    assert torch.equal(wanted, plain)
    assert not torch.equal(none, one)
