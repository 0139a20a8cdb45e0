"""Models of real architectures with random weights: what loads them takes them for real ones."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from tests.tools.launching import ROOT

from selfnpo_image.models import KNOWN as IMAGE
from selfnpo_video.families import find_base
from selfnpo_video.loading import load_tokenizer
from selfnpo_video.models import KNOWN as VIDEO

WANS = [name for name, known in VIDEO.items() if known.family == "wan"]
TOOL = ROOT / "tools" / "random_model.py"


@pytest.fixture(scope="module")
def tool():
    sys.path.insert(0, str(TOOL.parent))
    import random_model

    yield random_model
    sys.path.remove(str(TOOL.parent))


@pytest.mark.parametrize("name", ["sd15", "sdxl", "cogvideox-2b", "cogvideox-5b", "cogvideox-1.5-5b", *WANS])
def test_the_denoiser_has_the_published_number_of_parameters(tool, name):
    parts, _, dtype = tool.recipe_of(name, None)
    with torch.device("meta"):
        network = parts["unet" if name in IMAGE else "transformer"]()
    known = (IMAGE if name in IMAGE else VIDEO)[name]
    assert sum(parameter.numel() for parameter in network.parameters()) == known.parameters
    assert dtype == known.dtype


def test_t5_xxl_has_the_published_size(tool):
    with torch.device("meta"):
        encoder = tool.recipe_of("cogvideox-2b", None)[0]["text_encoder"]()
        umt5 = tool.recipe_of("wan2.1-1.3b", None)[0]["text_encoder"]()
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 4_762_310_656  # google/t5-v1_1-xxl's encoder
    assert sum(parameter.numel() for parameter in umt5.parameters()) == 5_680_910_336  # google/umt5-xxl's


def test_tokenizers_are_as_large_as_the_real_ones(tool):
    parts = tool.recipe_of("sd15", None)[0]
    tokenizer = parts["tokenizer"]()
    assert len(tokenizer) == 49_408
    assert tokenizer("a fox").input_ids[0] == tokenizer.bos_token_id
    assert tokenizer("a fox").input_ids != tokenizer("a fix").input_ids
    t5 = tool.recipe_of("cogvideox-2b", None)[0]["tokenizer"]()
    assert len(t5) == 32_100
    assert t5("a fox").input_ids != t5("a fix").input_ids


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nonsense"], "'nonsense' is not in this package: use sd15, sdxl"),
        (["sd15", "--blocks", "1"], "leave --blocks out"),
    ],
)
def test_what_cannot_be_made_is_refused(words, said, tmp_path):
    command = [sys.executable, TOOL, words[0], tmp_path / "model", *words[1:]]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert said in done.stderr
    assert not (tmp_path / "model").exists()


@pytest.mark.exhaustive
def test_a_folder_is_a_model(tmp_path: Path):
    folder = tmp_path / "model"
    subprocess.run([sys.executable, TOOL, "cogvideox-2b", folder, "--blocks", "1"], check=True)
    base = find_base(str(folder))
    assert (base.transformer.num_layers, base.transformer.num_attention_heads) == (1, 30)
    assert isinstance(load_tokenizer(base), transformers.T5Tokenizer)
    subprocess.run([sys.executable, TOOL, "wan2.2-5b", tmp_path / "wan", "--blocks", "1"], check=True)
    base = find_base(str(tmp_path / "wan"))
    assert (base.index["expand_timesteps"], base.compression.latent_shape(VIDEO["wan2.2-5b"].size)[1]) == (True, 48)
    again = subprocess.run([sys.executable, TOOL, "sd15", folder], capture_output=True, text=True, check=False)
    assert "is not empty" in again.stderr
