"""The table of known models: architectures, published counts, and by what a checkpoint is known."""

import json
from importlib.resources import files

import pytest
import torch
from diffusers import CogVideoXTransformer3DModel, WanTransformer3DModel
from peft import LoraConfig

from selfnpo_video.cogvideox import CogVideoX
from selfnpo_video.models import KNOWN, architecture, known_as

NETWORKS = {"cogvideox": CogVideoXTransformer3DModel, "wan": WanTransformer3DModel}


@pytest.mark.parametrize("name", KNOWN)
def test_every_known_name_has_its_architecture(name):
    with torch.device("meta"):
        transformer = NETWORKS[KNOWN[name].family].from_config(dict(architecture(name)))
    assert sum(p.numel() for p in transformer.parameters()) == KNOWN[name].parameters


def test_counts_are_the_published_ones():
    table = json.loads((files("selfnpo_video") / "architectures.json").read_text(encoding="utf-8"))
    assert table["published"]
    for name, published in table["published"].items():
        assert KNOWN[name].parameters == published["parameters"]
        with torch.device("meta"):
            transformer = CogVideoXTransformer3DModel.from_config(dict(architecture(name)))
            transformer.add_adapter(LoraConfig(r=128, target_modules=list(CogVideoX.lora_targets["attention"])))
        trained = sum(p.numel() for key, p in transformer.named_parameters() if ".lora_" in key)
        assert trained == published["attention_lora_of_rank_128"]


def test_a_folder_is_known_by_its_architecture(folder):
    for name in (name for name, model in KNOWN.items() if model.hub_id):
        known = known_as("a-folder", architecture(name))
        assert known is not None
        assert known.name == name
    tiny = CogVideoXTransformer3DModel.load_config(folder, subfolder="transformer")
    assert known_as("tiny", tiny) is None


def test_a_wan_folder_is_known_by_its_architecture(small_wan):
    tiny = WanTransformer3DModel.load_config(small_wan, subfolder="transformer")
    assert known_as("tiny", tiny) is None
    wide = WanTransformer3DModel.from_config
    with torch.device("meta"):
        saved = dict(wide(dict(architecture("wan2.1-14b"))).config)
    assert known_as("a-folder", saved).name == "wan2.1-14b"
