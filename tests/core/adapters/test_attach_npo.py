"""`attach_npo`: from what training writes to negative guidance, and back to the pipeline as it was."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from tests.core.adapters.reference import add_lora, assert_same, delta_of, lora_layers, model_with, two_model_loop
from tests.tiny import sample, sd15

from selfnpo_core import InputError, attach_npo
from selfnpo_core.training.files import write_json
from selfnpo_core.training.hashing import weights_hash
from selfnpo_core.training.npo_folder import NpoConfig


@pytest.fixture
def trained() -> Any:
    pipe = sd15()
    add_lora(pipe.unet, "npo", seed=1)
    return pipe.unet


def write(folder: Path, kind: str, trained: Any) -> Path:
    config = NpoConfig(
        family="sd15", base_model="tiny", base_hash=weights_hash(sd15().unet), train=kind, rank=4, recipe={}
    )
    folder.mkdir()
    write_json(folder / "npo_config.json", config.model_dump(mode="json", by_alias=True))
    if kind == "full":
        save_file(delta_of(trained, "npo"), folder / "delta.safetensors")
    else:
        layers = get_peft_model_state_dict(trained, adapter_name="npo")
        metadata = {"unet": trained.peft_config["npo"].to_dict()}
        type(sd15()).save_lora_weights(
            folder.parent / "lora", unet_lora_layers=layers, unet_lora_adapter_metadata=metadata["unet"]
        )
        (folder.parent / "lora" / "pytorch_lora_weights.safetensors").rename(
            folder / "pytorch_lora_weights.safetensors"
        )
    return folder


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_equals_two_models_and_leaves_nothing(kind: str, trained: Any, tmp_path: Path) -> None:
    pipe, plain = sd15(), sample("sd15", sd15())
    write(tmp_path / "npo", kind, trained)
    expected = two_model_loop(pipe, model_with("sd15", trained, {}), model_with("sd15", trained, {"npo": 0.5}))
    with attach_npo(pipe, tmp_path, beta=0.5):
        assert_same(sample("sd15", pipe), expected)
    assert lora_layers(pipe.unet) == []
    assert torch.equal(sample("sd15", pipe), plain)


def test_other_adapters_stay_as_they_are(trained: Any, tmp_path: Path) -> None:
    """θ + η on the positive side, θ + α·η + β·δ on the negative one; "style" is loaded but not active."""
    pipe = sd15()
    add_lora(pipe.unet, "eta", seed=2, targets=("to_q", "conv1"))
    add_lora(pipe.unet, "style", seed=3)
    pipe.unet.set_adapters(["eta"])
    base, other = model_with("sd15", pipe.unet, {"eta": 1}), model_with("sd15", pipe.unet, {"eta": 0.4})
    with torch.no_grad():
        for name, delta in delta_of(trained, "npo").items():
            other.get_parameter(name).add_(delta)
    before = sample("sd15", pipe)
    with attach_npo(pipe, write(tmp_path / "npo", "lora", trained), alpha=0.4):
        assert_same(sample("sd15", pipe), two_model_loop(pipe, base, other))
    assert pipe.get_active_adapters() == ["eta"]
    assert set(pipe.get_list_adapters()["unet"]) == {"eta", "style"}
    assert torch.equal(sample("sd15", pipe), before)


def test_refusals(trained: Any, tmp_path: Path) -> None:
    folder = write(tmp_path / "npo", "lora", trained)
    other = sd15()
    other.unet.conv_in.weight.data += 0.1
    with pytest.raises(InputError, match="was made for sd15 base tiny"):
        attach_npo(other, folder)
    assert lora_layers(other.unet) == []
    attach_npo(other, folder, other_base=True).detach()
    pipe = sd15()
    with pytest.raises(InputError, match=r"alpha is 0\.5"):
        attach_npo(pipe, folder, alpha=0.5)
    with pytest.raises(InputError, match="is unknown: use 'null' or 'prompt'"):
        attach_npo(pipe, folder, condition="no")
    with attach_npo(pipe, folder), pytest.raises(InputError, match="adapter 'npo' is loaded already"):
        attach_npo(pipe, folder)
    assert lora_layers(pipe.unet) == []
