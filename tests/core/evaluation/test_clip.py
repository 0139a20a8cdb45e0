"""CLIP's scores against torchmetrics and by hand; and where weights come from."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tests.tiny import clip_model
from torchmetrics.functional.multimodal.clip_score import _clip_score_update

from selfnpo_core.errors import InputError
from selfnpo_core.evaluation.clip import FILES, REPO, Clip, clip
from selfnpo_core.evaluation.networks import Ready
from selfnpo_core.evaluation.weights import Wanted, locate, read_weights

PROMPTS = ["a red fox", "a small boat", "two birds on a wire"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """As of --weights."""
    root = tmp_path_factory.mktemp("weights")
    clip_model(root / REPO)
    return root


def pictures(frames: int = 1, sizes=((40, 50), (32, 32), (70, 33))):
    numbers = np.random.default_rng(0)
    return [numbers.integers(0, 256, (frames, *size, 3), dtype=np.uint8) for size in sizes]


def said(weights, samples):
    ready = Ready.of(clip(), weights, "clip_score")
    with torch.no_grad():
        return ready.network.load(ready.places, torch.device("cpu"))(samples, PROMPTS)


def test_the_score_equals_torchmetrics(weights):
    model = transformers.CLIPModel.from_pretrained(weights / REPO)
    bare = SimpleNamespace(  # torchmetrics wants the embeddings, which newer transformers wrap
        config=model.config,
        get_image_features=lambda pixels: model.get_image_features(pixel_values=pixels).pooler_output,
        get_text_features=lambda ids, mask: model.get_text_features(input_ids=ids, attention_mask=mask).pooler_output,
    )
    bare.to = lambda device: bare
    processor = transformers.CLIPProcessor(
        transformers.CLIPImageProcessorPil.from_pretrained(weights / REPO),
        transformers.AutoTokenizer.from_pretrained(weights / REPO),
    )
    samples = pictures()
    tensors = [torch.from_numpy(frames[0]).permute(2, 0, 1) for frames in samples]
    with torch.no_grad():
        wanted, _ = _clip_score_update(tensors, PROMPTS, bare, processor)
    found = said(weights, samples)
    torch.testing.assert_close(found[:, 0], wanted, rtol=1e-4, atol=1e-4)
    assert wanted.std() > 1
    assert (found[:, 1] == 1).all()


def test_a_clip_has_the_mean_of_its_frames(weights):
    clips = pictures(3)
    each = torch.stack([said(weights, [clip_[f : f + 1] for clip_ in clips])[:, 0] for f in range(3)])
    found = said(weights, clips)
    torch.testing.assert_close(found[:, 0], each.mean(dim=0))
    with torch.no_grad():
        x = Clip.of(weights / REPO, weights / REPO, torch.device("cpu")).images(list(clips[0]))
    by_hand = (torch.dot(x[0], x[1]) + torch.dot(x[1], x[2])) / 2
    assert found[0, 1].item() == pytest.approx(by_hand.item(), abs=1e-6)
    assert by_hand < 0.999
    frozen = [np.repeat(clip_[:1], 3, axis=0) for clip_ in clips]
    torch.testing.assert_close(said(weights, frozen)[:, 1], torch.ones(3))


def test_the_model_and_its_hash_are_told(weights):
    about = Ready.of(clip(), weights, "clip_score").about
    assert about["model"] == REPO
    (name, sha256), *_ = about["weights_sha256"].items()
    assert name == f"{REPO}/model.safetensors"
    assert len(sha256) == 64
    assert about["library"] == f"transformers {transformers.__version__}"


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    clip_model(tmp_path / REPO)
    assert locate([Wanted(repo=REPO, files=FILES)], tmp_path, "clip_score") == [tmp_path / REPO]
    (tmp_path / REPO / "model.safetensors").unlink()
    with pytest.raises(InputError, match=rf"model.safetensors.* --local-dir WEIGHTS/{REPO}") as caught:
        locate([Wanted(repo=REPO, files=FILES)], tmp_path, "clip_score")
    assert "hf download" in str(caught.value)
    elsewhere = Wanted(repo="x", files=("x.pth|x.safetensors",), hub=False, elsewhere="x.pth into WEIGHTS/x")
    with pytest.raises(InputError, match=r"put x\.pth into WEIGHTS/x"):
        locate([elsewhere], None, "m")


def test_damaged_models_are_refused_in_one_line(weights, tmp_path):
    clip_model(tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    state = load_file(file)
    save_file({k: v for k, v in state.items() if "projection" not in k}, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match="lacks weights of CLIPModel"):
        Clip.of(tmp_path / "m", tmp_path / "m", torch.device("cpu"))
    file.write_bytes(b"x" * 100)
    with pytest.raises(InputError, match="get it again"):
        Clip.of(tmp_path / "m", tmp_path / "m", torch.device("cpu"))


class Bad:
    """Unpickling it would run code."""

    def __reduce__(self):
        return (Path.touch, (Path("ran"),))


def test_weights_that_are_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tensors = {"a": torch.arange(3.0)}
    save_file(tensors, tmp_path / "w.safetensors")
    torch.save({"state_dict": tensors, "epoch": 3}, tmp_path / "w.pt")
    for name in ("w.safetensors", "w.pt"):
        assert read_weights(tmp_path / name)["a"].tolist() == [0, 1, 2]
    torch.save({"a": Bad()}, tmp_path / "bad.pt")
    with pytest.raises(InputError, match="cannot be read as plain tensors"):
        read_weights(tmp_path / "bad.pt")
    assert not (tmp_path / "ran").exists()
    torch.save({"a": 3}, tmp_path / "other.pt")
    with pytest.raises(InputError, match="something else than tensors"):
        read_weights(Path("other.pt"))
