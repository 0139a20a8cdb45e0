"""Models that are in the hub's cache in part, with HF_HUB_OFFLINE=1: what is missing is named."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import hf_hub_download, snapshot_download
from tests.hub import COMMIT, go_offline, put

from selfnpo_core.errors import InputError
from selfnpo_core.models.cached import check_cached, is_offline, missing_files
from selfnpo_core.models.loading import one_line_errors
from selfnpo_core.models.sources import Source

REPO = "someone/tiny"
FILES = {
    "model_index.json": json.dumps(
        {
            "_class_name": "StableDiffusionPipeline",
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "text_encoder_3": ["transformers", "T5EncoderModel"],
            "scheduler": ["diffusers", "DDIMScheduler"],
            "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
            "feature_extractor": [None, None],
            "requires_safety_checker": False,
        }
    ),
    "unet/config.json": "{}",
    "unet/diffusion_pytorch_model.fp16.safetensors": "",
    "unet/diffusion_pytorch_model.safetensors.index.json": '{"weight_map": {"x": "of-a-variant-that-nobody-wanted"}}',
    "vae/config.json": "{}",
    "vae/diffusion_pytorch_model.safetensors": "",
    "tokenizer/spiece.model": "",
    "text_encoder_3/config.json": "{}",
    "text_encoder_3/model-00001-of-00002.safetensors": "",
    "text_encoder_3/model-00002-of-00002.safetensors": "",
    "text_encoder_3/model.safetensors.index.json": json.dumps(
        {"weight_map": {name: f"model-0000{name}-of-00002.safetensors" for name in "12"}}
    ),
    "scheduler/scheduler_config.json": "{}",
}


@pytest.fixture
def snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """All of it, in the cache."""
    for name, text in FILES.items():
        (tmp_path / "model" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "model" / name).write_text(text)
    go_offline(monkeypatch, tmp_path / "hub")
    return put(tmp_path / "hub", REPO, tmp_path / "model")


def refusal(get: Callable[[], object]) -> str:
    with pytest.raises(InputError) as error, one_line_errors(Source(name="mine", kind="hub", location=REPO)):
        get()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_whole_one_lacks_nothing(snapshot: Path) -> None:
    assert missing_files(snapshot) == []
    check_cached(REPO, snapshot)
    shutil.rmtree(snapshot / "text_encoder_3")
    check_cached(REPO, snapshot, ["text_encoder_3"])


@pytest.mark.parametrize(
    ("lost", "missing"),
    [
        ("model_index.json", "model_index.json"),
        ("unet/config.json", "unet/config.json"),
        ("unet/diffusion_pytorch_model.fp16.safetensors", "unet/of-a-variant-that-nobody-wanted"),
        ("vae/*", "vae/config.json, vae/*.safetensors"),
        ("tokenizer/*", "tokenizer/tokenizer.json or spiece.model or vocab.json"),
        ("text_encoder_3/model-00002*", "text_encoder_3/model-00002-of-00002.safetensors"),
        ("scheduler/*", "scheduler/scheduler_config.json"),
    ],
)
def test_what_is_missing_is_named(snapshot: Path, lost: str, missing: str) -> None:
    for file in snapshot.glob(lost):
        file.unlink()
    said = refusal(lambda: check_cached(REPO, snapshot))
    assert said == (
        f"not all of model {REPO} is in the hub's cache, which lacks {missing}: with a network, "
        f"`hf download {REPO}` gets the rest"
    )
    if lost in FILES and lost.endswith(".json"):
        assert refusal(lambda: hf_hub_download(REPO, lost)) == said


def test_a_link_to_nothing_is_missing(snapshot: Path) -> None:
    (snapshot / "vae/config.json").unlink()
    (snapshot / "vae/config.json").symlink_to(snapshot / "gone")
    assert missing_files(snapshot) == ["vae/config.json"]


@pytest.mark.parametrize("get", [lambda: snapshot_download(REPO), lambda: hf_hub_download(REPO, "model_index.json")])
def test_without_refs_main_the_snapshot_is_named(snapshot: Path, get: Callable[[], object]) -> None:
    (snapshot.parents[1] / "refs/main").unlink()
    assert refusal(get) == (
        f"model {REPO} is in the hub's cache, but refs/main, which says which snapshot is meant, is not: "
        f"give {snapshot} in its place, or with a network `hf download {REPO}`"
    )
    shutil.copytree(snapshot, snapshot.with_name(COMMIT[::-1]))
    assert f"give one of the folders in {snapshot.parent} in its place" in refusal(get)
    (snapshot.parents[1] / "refs/main").write_text("0" * 40)
    assert f"not all of model {REPO} is in the hub's cache, which lacks all of its newest snapshot" in refusal(get)


@pytest.mark.parametrize("revision", ["v2", "refs/pr/3", COMMIT[::-1]])
def test_a_revision_is_looked_for_by_its_name(snapshot: Path, revision: str) -> None:
    source = Source(name=f"{REPO}@{revision}", kind="hub", location=REPO, revision=revision)

    def said() -> str:
        with pytest.raises(InputError) as error, one_line_errors(source):
            snapshot_download(REPO, revision=revision)
        return str(error.value)

    of_it = f"with a network `hf download {REPO} --revision {revision}`"
    commit = revision == COMMIT[::-1]
    if not commit:
        assert said() == (
            f"revision {revision} of model {REPO} is not in the hub's cache, which has main, {snapshot.name}: "
            f"give one of these, or {of_it}"
        )
        named = snapshot.parents[1] / "refs" / revision
        named.parent.mkdir(parents=True, exist_ok=True)
        named.write_text(COMMIT[::-1])
    assert f"not all of model {REPO}@{revision} is in the hub's cache, which lacks all of that snapshot" in said()
    own = snapshot.with_name(COMMIT[::-1])
    shutil.copytree(snapshot, own)
    assert snapshot_download(REPO, revision=revision) == str(own)
    (own / "vae/config.json").unlink()
    with pytest.raises(InputError, match=f"lacks vae/config.json: .*--revision {revision}`"):
        check_cached(REPO, own, revision=revision)


def test_a_model_of_which_nothing_is_there(snapshot: Path) -> None:
    shutil.rmtree(snapshot.parents[1])
    assert f"cannot get model {REPO} from the hub" in refusal(lambda: snapshot_download(REPO))


def test_with_a_network_the_hub_says_what_there_is(snapshot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    shutil.rmtree(snapshot / "vae")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert not is_offline()
    check_cached(REPO, snapshot)
