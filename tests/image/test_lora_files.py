"""A LoRA that was saved loads whole in a fresh Python that has only diffusers and peft."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from selfnpo_image.families import find_base
from selfnpo_image.sd15 import SD15

LOADER = """
import sys
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file
model, lora, inputs, output = sys.argv[1:]
pipe = StableDiffusionPipeline.from_pretrained(model)
pipe.load_lora_weights(lora, adapter_name="npo")
assert not any(name.startswith("selfnpo") for name in sys.modules)
x = load_file(inputs)
with torch.no_grad():
    y = pipe.unet(x["x"], x["t"], encoder_hidden_states=x["text"]).sample
save_file({"y": y.contiguous()}, output)
"""


@pytest.mark.slow
@pytest.mark.parametrize("targets", ["attention", "all"])
def test_a_fresh_python_gives_the_same_output(folder: Path, tmp_path: Path, targets: str) -> None:
    unet = SD15(find_base(str(folder)), device="cpu").denoiser
    unet.add_adapter(LoraConfig(r=4, lora_alpha=2, target_modules=SD15.lora_targets[targets]), adapter_name="npo")
    for name, parameter in unet.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    backbone = SD15(find_base(str(folder)), device="cpu")
    backbone.denoiser = unet
    backbone.save_lora(tmp_path / "npo", "npo")
    inputs = {"x": torch.randn(2, 4, 16, 16), "t": torch.tensor([100, 900]), "text": torch.randn(2, 77, 32)}
    save_file(inputs, tmp_path / "inputs.safetensors")
    with torch.no_grad():
        wanted = unet(inputs["x"], inputs["t"], encoder_hidden_states=inputs["text"]).sample
        unet.disable_adapters()
        plain = unet(inputs["x"], inputs["t"], encoder_hidden_states=inputs["text"]).sample
    files = [folder, tmp_path / "npo", tmp_path / "inputs.safetensors", tmp_path / "output.safetensors"]
    result = subprocess.run([sys.executable, "-c", LOADER, *map(str, files)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    given = load_file(files[-1])["y"]
    assert torch.allclose(given, wanted, atol=1e-5)
    assert not torch.allclose(plain, wanted, atol=1e-2)


def test_all_reaches_every_kind_of_layer(folder: Path) -> None:
    unet = SD15(find_base(str(folder)), device="cpu").denoiser
    unet.add_adapter(LoraConfig(r=1, target_modules=SD15.lora_targets["all"]), adapter_name="npo")
    reached = {name.split(".lora_A")[0] for name, _ in unet.named_parameters() if ".lora_A." in name}
    for part in ("to_q", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out", "conv1", "conv2"):
        assert any(name.endswith(part) for name in reached)
    for part in ("conv_shortcut", "time_emb_proj", "downsamplers.0.conv", "upsamplers.0.conv"):
        assert any(name.endswith(part) for name in reached)
