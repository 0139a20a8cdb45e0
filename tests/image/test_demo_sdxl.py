"""The SDXL-class demo model built on demand: it begins as the shipped one, and is asked as the pipeline asks."""

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from selfnpo_image.cli import selfnpo_image
from selfnpo_image.demo.build import sdxl
from selfnpo_image.families import find_base
from selfnpo_image.loading import load_pipeline
from selfnpo_image.sdxl import SDXL

CAPTIONS = ["a small cat on a blue ground", "a large penguin on a green ground"]


@pytest.fixture(scope="module")
def shipped():
    return load_pipeline(find_base("demo"))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Three updates."""
    work = tmp_path_factory.mktemp("sdxl")
    shipped = load_pipeline(find_base("demo"))
    sdxl.train(work / "denoiser.safetensors", shipped, steps=3, batch=4, count=256).save_pretrained(work / "model")
    return work / "model"


def test_it_begins_as_the_shipped_model(shipped):
    unet = sdxl.build_unet(dict(shipped.unet.config))
    sdxl.begin_as(unet, shipped.unet)
    generator = torch.Generator().manual_seed(0)
    x, tokens = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 20, 96, generator=generator)
    t = torch.tensor([10, 700])
    added = {"text_embeds": torch.randn(2, sdxl.WIDTH, generator=generator), "time_ids": torch.ones(2, 6)}
    both = torch.cat([tokens, torch.randn(2, 20, sdxl.WIDTH, generator=generator)], dim=-1)
    with torch.no_grad():
        torch.testing.assert_close(
            unet(x, t, both, added_cond_kwargs=added).sample, shipped.unet(x, t, tokens).sample, rtol=1e-4, atol=1e-5
        )


def test_training_asks_as_the_pipeline_does(model):
    """The null prompt too, which is zeros."""
    pipe, backbone = load_pipeline(find_base(str(model))), SDXL(find_base(str(model)), device="cpu")
    backbone.embed(CAPTIONS)
    net = nn.ModuleDict({name: getattr(pipe, name) for name in ("unet", "text_encoder", "text_encoder_2")})
    x, t = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([10, 500, 900])
    kept = torch.tensor([True, True, False])
    with torch.no_grad():
        ours = sdxl._predict(net, pipe.tokenizer, x, t, [*CAPTIONS, "a large rose on a pink ground"], kept)
        theirs = backbone.predict(x, t, torch.tensor([0, 1, -1]))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_it_goes_through_every_command(model, tmp_path):
    def done(*words):
        result = CliRunner().invoke(selfnpo_image, [str(word) for word in words], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    (tmp_path / "prompts.txt").write_text("\n".join(CAPTIONS))
    asked = ["--model", model, "--prompts", tmp_path / "prompts.txt"]
    small = [
        f"--set={word}"
        for word in (
            "steps=2",
            "batch_size=2",
            "grad_accumulation=1",
            "samples=2",
            "uses=4",
            "sample_grid_steps=2",
            "trackers=[]",
        )
    ]
    done("train", *asked, "--output", tmp_path / "run", *small)
    done("inspect", tmp_path / "run", "--model", model)
    done("sample", *asked, "--npo", tmp_path / "run", "--steps", 2, "--output", tmp_path / "out")
    assert len(list((tmp_path / "out").glob("*.png"))) == 2
    done("compare", *asked, "--npo", tmp_path / "run", "--steps", 2, "--output", tmp_path / "both")
