"""The npo folder: what is written, what is recognised, what is refused."""

import json
import logging

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from safetensors.torch import load_file, save_file
from tests.core.training.toy import PROMPTS, ToyBackbone, toy_recipe

from selfnpo_core import InputError, RunError
from selfnpo_core.models.identity import FINGERPRINT_SIZE, distance, fingerprint, weights_hash
from selfnpo_core.training import train
from selfnpo_core.weights.npo_folder import NpoConfig, check_base, load_npo, write_npo


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A LoRA run and a full-weight run."""
    root = tmp_path_factory.mktemp("runs")
    for kind in ("lora", "full"):
        recipe = toy_recipe(
            train=kind,
            targets="all",
            lora_alpha=2.0,
            output=str(root / kind),
            recommended={"beta": 0.5, "guidance_scale": (2.0, 4.0), "rule": {"name": "third", "weight": 0.5}},
            negative_condition="prompt",
        )
        train(
            ToyBackbone(),
            recipe,
            PROMPTS,
            root / kind,
            progress=False,
        )
    return root


@pytest.mark.parametrize(
    ("kind", "file"), [("lora", "pytorch_lora_weights.safetensors"), ("full", "delta.safetensors")]
)
def test_what_a_run_leaves(runs, kind, file):
    folder = runs / kind / "npo"
    assert sorted(p.name for p in folder.iterdir()) == sorted(["README.md", "npo_config.json", file])
    config = json.loads((folder / "npo_config.json").read_text())
    assert config["schema"] == 1
    assert (config["family"], config["base_model"]) == ("toy", "toy/base")
    assert config["base_hash"] == weights_hash(ToyBackbone().denoiser)
    assert (config["train"], config["rank"]) == (kind, 4 if kind == "lora" else None)
    rule = {"name": "third", "weight": 0.5, "switch": None, "beta_knots": []}
    assert config["recommended"] == {"beta": 0.5, "alpha": 1.0, "guidance_scale": [2.0, 4.0], "rule": rule}
    assert config["negative_condition"] == "prompt"
    assert config["recipe"]["learning_rate"] == 1e-2
    card = (folder / "README.md").read_text()
    assert "base_model: toy/base" in card
    assert "beta" in card
    assert "2505.11777" in card
    assert 'with attach_npo(pipe, "PATH/OF/THIS/FOLDER"):' in card
    assert "rule third, weight 0.5" in card
    assert "| learning_rate | 0.01 |" in card
    assert not [
        line for line in card.splitlines() if line.startswith(("| output", "| prompts |", "| embeddings_cache"))
    ]
    for place in (runs / kind, folder, folder / file):
        npo = load_npo(place)
        assert npo.has_effect
        assert npo.config.recipe["steps"] == 4
        assert npo.kind == ("lora" if kind == "lora" else "delta")


def test_a_delta_is_bf16_and_leads_from_the_base_to_the_student(runs):
    npo = load_npo(runs / "full")
    assert {tensor.dtype for tensor in npo.tensors.values()} == {torch.bfloat16}
    base = dict(ToyBackbone().denoiser.named_parameters())
    assert npo.tensors.keys() == base.keys()
    newest = runs / "full" / "checkpoints" / "step-000004" / "student.safetensors"
    for name, student in load_file(newest).items():
        torch.testing.assert_close(base[name].detach() + npo.tensors[name].float(), student, rtol=0, atol=1e-3)


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_the_base_is_checked(runs, kind):
    npo = load_npo(runs / kind)
    base = ToyBackbone()
    check_base(npo, base.denoiser, "toy/base", family="toy")
    check_base(npo, base.base_hash, "toy/base")
    for dtype in (torch.float16, torch.bfloat16):
        check_base(npo, ToyBackbone(dtype=dtype).denoiser, "toy/base in half precision")
    other = ToyBackbone(seed=3)
    with pytest.raises(InputError, match=r"made for toy base toy/base \(.{12}\), not for toy/other .*differ by"):
        check_base(npo, other.denoiser, "toy/other")
    with pytest.raises(InputError, match="not for toy/other"):
        check_base(npo, other.base_hash, "toy/other")
    with pytest.raises(InputError, match="not for a sd15 model"):
        check_base(npo, base.denoiser, "x", family="sd15")


def test_hash_and_fingerprint_are_those_of_the_base_under_adapters():
    backbone = ToyBackbone()
    plain = fingerprint(backbone.denoiser)
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["conv", "to_q"]), backbone.denoiser, "x")
    assert weights_hash(backbone.denoiser) == backbone.base_hash
    assert fingerprint(backbone.denoiser) == plain
    assert len(plain) == FINGERPRINT_SIZE
    with torch.no_grad():
        next(iter(backbone.denoiser.parameters())).flatten()[0] += 1e-6
    assert weights_hash(backbone.denoiser) != backbone.base_hash


def test_distance_of_fingerprints_is_that_of_the_weights():
    weights = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(100_000, generator=torch.Generator().manual_seed(1))
    prints = [fingerprint({"w": w}) for w in (weights, weights + 0.05 * noise, weights[:10])]
    assert distance(prints[0], prints[1]) == pytest.approx(0.05, rel=0.2)
    assert distance(prints[0], prints[0]) == 0
    assert distance(prints[0], []) == float("inf")


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_training_that_changed_nothing_is_recognised(tmp_path, caplog, kind):
    recipe = toy_recipe(train=kind, learning_rate=0.0)
    train(ToyBackbone(), recipe, PROMPTS, tmp_path / "run", progress=False)
    assert "has no effect" in caplog.text
    with pytest.raises(InputError, match="has no effect"):
        load_npo(tmp_path / "run")
    assert not load_npo(tmp_path / "run", require_effect=False).has_effect


def test_a_lora_from_elsewhere_is_taken_with_a_warning(tmp_path, caplog):
    file = tmp_path / "some_lora.safetensors"
    save_file({"unet.a.lora_A.weight": torch.ones(1, 2), "unet.a.lora_B.weight": torch.ones(2, 1)}, file)
    with caplog.at_level(logging.WARNING):
        npo = load_npo(file)
    assert npo.config is None
    assert npo.kind == "lora"
    assert "cannot tell which base" in caplog.text
    check_base(npo, "anything", "anything")


@pytest.mark.parametrize("name", ["model.ckpt", "model.bin", "model.pt"])
def test_pickles_are_refused_unread(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x80\x04cos\nsystem\n.")
    for path in (tmp_path / name, tmp_path):
        with pytest.raises(InputError, match="is a pickle") as error:
            load_npo(path)
        assert "\n" not in str(error.value)


def test_other_things_that_are_no_negative_weights(tmp_path, runs):
    with pytest.raises(InputError, match="does not exist"):
        load_npo(tmp_path / "none")
    with pytest.raises(InputError, match="holds no negative weights"):
        load_npo(tmp_path)
    (tmp_path / "text.txt").write_text("hello")
    with pytest.raises(InputError, match=r"no \.safetensors file"):
        load_npo(tmp_path / "text.txt")
    save_file({"conv.weight": torch.ones(2)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="neither a LoRA nor an offset"):
        load_npo(tmp_path / "model.safetensors")
    save_file({"conv.weight": torch.ones(2)}, tmp_path / "delta.safetensors")
    with pytest.raises(InputError, match=r"no npo_config\.json"):
        load_npo(tmp_path / "delta.safetensors")
    whole = (runs / "lora/npo/pytorch_lora_weights.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-7])
    with pytest.raises(InputError, match="not a whole safetensors file"):
        load_npo(tmp_path / "cut.safetensors")
    (tmp_path / "npo").mkdir()
    (tmp_path / "npo/pytorch_lora_weights.safetensors").write_bytes(whole)
    (tmp_path / "npo/npo_config.json").write_text('{"schema": 7}')
    with pytest.raises(InputError, match=r"npo_config\.json is damaged or of another version"):
        load_npo(tmp_path / "npo")


def test_weights_that_do_not_read_back_are_an_error_and_the_old_folder_stays(tmp_path):
    config = NpoConfig(family="toy", base_model="b", base_hash="h", train="lora", rank=1, recipe={})
    good = {"a.lora_A.weight": torch.ones(1, 2), "a.lora_B.weight": torch.ones(2, 1)}

    def save(tensors):
        return lambda folder: save_file(
            {f"unet.{k}": v for k, v in tensors.items()}, folder / "pytorch_lora_weights.safetensors"
        )

    write_npo(tmp_path / "npo", config, save(good), good)
    before = {p.name: p.read_bytes() for p in (tmp_path / "npo").iterdir()}
    lost = {"a.lora_A.weight": good["a.lora_A.weight"]}
    other = {**good, "a.lora_B.weight": torch.zeros(2, 1)}
    for written in (lost, other):
        with pytest.raises(RunError, match="does not read back"):
            write_npo(tmp_path / "npo", config, save(written), good)
    assert {p.name: p.read_bytes() for p in (tmp_path / "npo").iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["npo"]
