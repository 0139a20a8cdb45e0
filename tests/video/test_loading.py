"""Stock pipelines of a base, and LoRA files of one and back."""

import json
from pathlib import Path

import pytest
import torch
from tests.core.adapters.reference import add_lora
from tests.tiny import cogvideox

from selfnpo_core.errors import InputError
from selfnpo_core.weights.lora_file import read_lora
from selfnpo_core.weights.lora_layers import layers_in, put_into
from selfnpo_video.cogvideox import COGVIDEOX, CogVideoX
from selfnpo_video.families import find_base
from selfnpo_video.loading import load_network, load_pipeline, save_lora, stored_dtype


def test_a_pipeline_takes_what_it_is_given(small: Path) -> None:
    base = find_base(str(small))
    network = load_network(base)
    pipe = load_pipeline(base, dtype=torch.bfloat16, transformer=network, text_encoder=None)
    assert pipe.transformer is network
    assert pipe.text_encoder is None
    assert (pipe.vae.dtype, pipe.name_or_path) == (torch.bfloat16, str(small))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_keep_the_dtype_that_they_are_stored_in(tmp_path: Path, dtype: torch.dtype) -> None:
    cogvideox().to(dtype).save_pretrained(tmp_path)
    base = find_base(str(tmp_path))
    assert stored_dtype(base) == dtype
    assert next(load_network(base, dtype).parameters()).dtype == dtype
    assert next(load_network(base).parameters()).dtype == torch.float32


def test_a_lora_comes_back(small: Path, tmp_path: Path) -> None:
    saved = cogvideox().transformer
    add_lora(saved, "npo", seed=1)
    save_lora(COGVIDEOX, saved, tmp_path, "npo")
    network = load_network(find_base(str(small)))
    put_into(network, layers_in(read_lora(tmp_path / "pytorch_lora_weights.safetensors"), network), "npo")
    own = dict(network.named_parameters())
    lora = {name: tensor for name, tensor in saved.named_parameters() if ".lora_" in name}
    assert lora
    for name, tensor in lora.items():
        torch.testing.assert_close(own[name], tensor)


def test_a_foreign_scheduler_is_refused(damaged: Path) -> None:
    file = damaged / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "_class_name": "DDIMScheduler"}))
    with pytest.raises(InputError, match="has a DDIMScheduler: CogVideoX wants its own DDIM or DPM scheduler"):
        CogVideoX(find_base(str(damaged)), device="cpu")
    index = damaged / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "scheduler": ["diffusers", "DDIMScheduler"]}))
    with pytest.raises(InputError, match=r"has a DDIMScheduler: CogVideoX wants its own DDIM or DPM$"):
        load_pipeline(find_base(str(damaged)))
