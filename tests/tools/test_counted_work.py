"""The work of an update, counted: it may shrink, and docs/results/performance/counts.json with it."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

ROOT = Path(__file__).parents[2]


@pytest.fixture
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")
    from benchmarks import counting, counts, updates

    return {"counting": counting, "counts": counts, "updates": updates}


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["demo", "video-demo"])
def test_an_update_does_no_more_than_it_did(benchmarks, shape):
    written = json.loads((ROOT / benchmarks["counts"].COUNTS).read_text())[shape]
    found = benchmarks["counts"].found((shape,))[shape]
    for what in ("flops", "rows", "waits"):
        assert found[what] <= written[what], what
    assert found["operations"] <= 1.02 * written["operations"]  # releases of torch differ
    assert found["bytes"] <= 1.05 * written["bytes"]
    for what in ("flops", "rows", "samples"):
        assert found["drawing"][what] <= written["drawing"][what], what


def test_what_is_counted(benchmarks):
    network = nn.Sequential(nn.Linear(3, 5, bias=False))
    x = torch.randn(7, 3)

    def work():
        return network(x).square().mean().backward() or network(x[:2]).sum().item()

    found = benchmarks["counting"].counted(work, [network])
    products = 2 * 7 * 3 * 5 + 2 * 2 * 3 * 5  # two forwards
    assert found.rows == 9
    assert found.waits == 1
    assert found.flops == products + 2 * 7 * 3 * 5  # and a gradient of weights
    assert found.operations > 5


def test_pictures_and_clips_that_have_such_latents(benchmarks):
    from diffusers import AutoencoderKL, AutoencoderKLCogVideoX

    pixels_of = benchmarks["updates"].pixels_of
    small = {"block_out_channels": (8, 8), "norm_num_groups": 4, "latent_channels": 4}
    pictures = AutoencoderKL(
        **small, down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2
    )
    shape = pixels_of((4, 6, 5), pictures)
    assert pictures.encode(torch.zeros(1, *shape)).latent_dist.mean.shape == (1, 4, 6, 5)
    clips = AutoencoderKLCogVideoX(
        block_out_channels=(8, 8),
        down_block_types=("CogVideoXDownBlock3D",) * 2,
        up_block_types=("CogVideoXUpBlock3D",) * 2,
        norm_num_groups=4,
        latent_channels=4,
        layers_per_block=1,
        temporal_compression_ratio=2,
    )
    shape = pixels_of((3, 4, 6, 5), clips)
    assert shape == (3, 5, 12, 10)
