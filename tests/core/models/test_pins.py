"""NAME@REVISION:VARIANT: a model pinned to a commit, and one variant of its weights."""

from pathlib import Path
from typing import Any

import pytest

from selfnpo_core import InputError
from selfnpo_core.models import hub
from selfnpo_core.models.components import choose, wanted_files
from selfnpo_core.models.configs import fetched_configs
from selfnpo_core.models.sources import KnownModel, Source, find_source

ALL: dict[str, Any] = {"licence": "", "parameters": 1, "prediction_type": "epsilon", "dtype": "fp16", "about": ""}
KNOWN = {
    "sd15": KnownModel(name="sd15", family="sd15", hub_id="owner/sd15", **ALL),
    "demo": KnownModel(name="demo", family="sd15", hub_id=None, **ALL),
}


def find(name: str) -> Source:
    return find_source(name, KNOWN, lambda: Path("shipped"))


@pytest.mark.parametrize(
    ("name", "location", "revision", "variant"),
    [
        ("owner/model", "owner/model", None, None),
        ("owner/model@main", "owner/model", "main", None),
        ("owner/model@refs/pr/7", "owner/model", "refs/pr/7", None),
        ("owner/model@0a1b2c:fp16", "owner/model", "0a1b2c", "fp16"),
        ("owner/model:bf16", "owner/model", None, "bf16"),
        ("sd15@v1.0:fp16", "owner/sd15", "v1.0", "fp16"),
        ("sd15", "owner/sd15", None, None),
    ],
)
def test_a_hubs_model_is_pinned(name: str, location: str, revision: str | None, variant: str | None) -> None:
    source = find(name)
    assert (source.name, source.kind, source.location) == (name, "hub", location)
    assert (source.revision, source.variant) == (revision, variant)
    assert source.plain == name.partition("@")[0].partition(":")[0]


def test_a_folder_has_variants_and_no_revisions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("model", "a@b", "c:d"):
        (tmp_path / name).mkdir()
    assert [(find(name).kind, find(name).revision, find(name).variant) for name in ("a@b", "c:d")] == [
        ("folder", None, None),
        ("folder", None, None),
    ]
    found = find("model:fp16")
    assert (found.kind, found.name, found.plain, found.variant) == ("folder", "model:fp16", "model", "fp16")
    with pytest.raises(InputError, match="on this disk and has no revisions: leave @main out"):
        find("./model@main")
    (tmp_path / "one.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="one file and has no variants: leave :fp16 out"):
        find("one.safetensors:fp16")
    with pytest.raises(InputError, match=r"unknown model 'sd14': did you mean sd15\?"):
        find("sd14@main")


def test_a_wanted_variant_is_chosen_where_it_is() -> None:
    names = ["model.safetensors", "model.fp16.safetensors"]
    for wanted, variant in ((None, None), ("fp16", "fp16"), ("bf16", None)):
        chosen = choose(names, wanted)
        assert chosen is not None
        assert chosen.variant == variant
    repo = ["model_index.json", *(f"vae/{name}" for name in names), "unet/model.safetensors"]
    wanted_ones = wanted_files(repo, ["vae", "unet"], "fp16")
    assert wanted_ones == ["model_index.json", "vae/model.fp16.safetensors", "unet/model.safetensors"]


def test_the_hub_is_asked_for_the_revision(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[tuple[str, str | None]] = []

    def take(repo: str, *, revision: str | None = None, **_: Any) -> Any:
        asked.append((repo, revision))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", take)
    monkeypatch.setattr("huggingface_hub.list_repo_files", take)
    hub.files_of("owner/model", "v2")
    fetched_configs(find("owner/model@v2:fp16"))
    fetched_configs(find("owner/model"))
    assert asked == [("owner/model", "v2"), ("owner/model", "v2"), ("owner/model", None)]


class Api:
    """A hub that takes what it is given, or refuses it."""

    taken: list[Any]

    def create_repo(self, repo: str, *, private: bool, exist_ok: bool) -> str:
        self.taken += [repo, private]
        return f"https://hub/{repo}"

    def create_commit(self, repo: str, operations: list[Any], commit_message: str) -> None:
        if repo == "owner/full":
            raise OSError("no space for you")
        self.taken += sorted(operation.path_in_repo for operation in operations)


def test_files_and_folders_are_pushed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Api.taken = []
    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    for name in ("npo/a.safetensors", "npo/README.md", "npo/in/b.json", "c.safetensors", "c.comfyui.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    assert hub.push([tmp_path / "npo"], "owner/npo", private=True) == "https://hub/owner/npo"
    assert Api.taken == ["owner/npo", True, "README.md", "a.safetensors", "in/b.json"]
    Api.taken = []
    hub.push([tmp_path / "c.safetensors", tmp_path / "c.comfyui.json"], "owner/npo", private=False)
    assert Api.taken == ["owner/npo", False, "c.comfyui.json", "c.safetensors"]
    with pytest.raises(hub.RunError, match=r"owner/full .*no space for you.* is whole: `hf upload owner/full"):
        hub.push([tmp_path / "npo"], "owner/full", private=False)


def test_what_cannot_be_pushed_is_said_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(InputError, match="needs your token"):
        hub.check_push("owner/npo")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "token")
    hub.check_push("owner/npo")
    with pytest.raises(InputError, match="is no repository: give OWNER/NAME"):
        hub.check_push("npo")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="HF_HUB_OFFLINE is set"):
        hub.check_push("owner/npo")
