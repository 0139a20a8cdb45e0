"""`evaluate` of pictures: judges with tiny random weights, and the command on what the demo's model draws."""

import json
import shutil
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file
from tests.fidelity import on_path
from tests.image.conftest import Command, selfnpo
from tests.tiny import clip_model
from torch import nn

from selfnpo_core.errors import InputError
from selfnpo_core.evaluation import Moments, fidelity, frechet_distance
from selfnpo_core.evaluation.clip import REPO, Clip
from selfnpo_core.evaluation.networks import Ready
from selfnpo_core.sampling.sample_folder import read_records
from selfnpo_core.system.files import load_tensors
from selfnpo_image.demo import world
from selfnpo_image.demo.pictures import Things
from selfnpo_image.evaluation import judges
from selfnpo_image.evaluation.conversion import clip_tensors
from selfnpo_image.evaluation.inception import inception_network

CPU = torch.device("cpu")
PROMPTS = ["a red fox", "a small boat", "two birds on a wire"]


def pictures(*sizes: tuple[int, int]) -> list[np.ndarray]:
    numbers = np.random.default_rng(0)
    return [numbers.integers(0, 256, (1, *size, 3), dtype=np.uint8) for size in sizes or ((40, 50), (32, 32), (64, 33))]


def said(network, weights: Path, samples=None) -> torch.Tensor:
    ready = Ready.of(network, weights, network.name)
    samples = pictures() if samples is None else samples
    with torch.no_grad():
        return network.load(ready.places, CPU)(samples, PROMPTS)


def cosines(folder: Path, samples=None) -> tuple[torch.Tensor, torch.Tensor]:
    """cos(image, text) of transformers' own CLIP, and its images' embeddings."""
    model = transformers.CLIPModel.from_pretrained(folder)
    prepare = transformers.CLIPImageProcessorPil.from_pretrained(folder)
    words = transformers.AutoTokenizer.from_pretrained(folder)(PROMPTS, padding=True, return_tensors="pt")
    pixels = prepare(images=[x[0] for x in (pictures() if samples is None else samples)], return_tensors="pt")
    with torch.no_grad():
        output = model(input_ids=words["input_ids"], attention_mask=words["attention_mask"], **pixels)
    return torch.cosine_similarity(output.image_embeds, output.text_embeds), output.image_embeds


def test_pickscore_is_the_scaled_cosine(tmp_path: Path) -> None:
    clip_model(tmp_path / judges.PICKSCORE, seed=1)
    clip_model(tmp_path / judges.VIT_H, seed=2)
    scale = transformers.CLIPModel.from_pretrained(tmp_path / judges.PICKSCORE).logit_scale.exp().item()
    wanted = scale * cosines(tmp_path / judges.PICKSCORE)[0]
    torch.testing.assert_close(said(judges.pickscore(), tmp_path)[:, 0], wanted, rtol=1e-4, atol=1e-5)
    assert scale > 10


class OpenClip(nn.Module):
    """The forward pass that open_clip's weights are made for, with their names, out of torch's own layers."""

    def __init__(
        self, width: int, heads: int, layers: int, words: int, positions: int, side: int, patch: int, out: int
    ):
        super().__init__()
        self.patch, self.heads = patch, heads

        def tower() -> nn.Module:
            def block() -> nn.Module:
                made = nn.Module()
                made.ln_1, made.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
                made.attn = nn.MultiheadAttention(width, heads, batch_first=True)
                parts = [("c_fc", nn.Linear(width, 48)), ("gelu", nn.GELU()), ("c_proj", nn.Linear(48, width))]
                made.mlp = nn.Sequential(OrderedDict(parts))
                return made

            made = nn.Module()
            made.resblocks = nn.ModuleList(block() for _ in range(layers))
            return made

        self.transformer, self.ln_final = tower(), nn.LayerNorm(width)
        self.token_embedding = nn.Embedding(words, width)
        self.positional_embedding = nn.Parameter(torch.randn(positions, width))
        self.text_projection = nn.Parameter(torch.randn(width, out) * 0.1)
        self.logit_scale = nn.Parameter(torch.tensor(2.0))
        self.register_buffer("attn_mask", torch.full((positions, positions), float("-inf")).triu(1))
        v = self.visual = nn.Module()
        v.conv1 = nn.Conv2d(3, width, patch, stride=patch, bias=False)
        v.class_embedding = nn.Parameter(torch.randn(width))
        v.positional_embedding = nn.Parameter(torch.randn((side // patch) ** 2 + 1, width))
        v.ln_pre, v.ln_post, v.transformer = nn.LayerNorm(width), nn.LayerNorm(width), tower()
        v.proj = nn.Parameter(torch.randn(width, out) * 0.1)

    @staticmethod
    def run(tower: nn.Module, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        for block in tower.resblocks:
            h = block.ln_1(x)
            x = x + block.attn(h, h, h, attn_mask=mask, need_weights=False)[0]
            x = x + block.mlp(block.ln_2(x))
        return x

    def images(self, pixels: torch.Tensor) -> torch.Tensor:
        v = self.visual
        x = v.conv1(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([v.class_embedding.expand(len(x), 1, -1), x], dim=1) + v.positional_embedding
        return v.ln_post(self.run(v.transformer, v.ln_pre(x))[:, 0]) @ v.proj

    def texts(self, ids: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
        """end: (n,), where each text ends."""
        n = ids.shape[1]
        x = self.token_embedding(ids) + self.positional_embedding[:n]
        x = self.ln_final(self.run(self.transformer, x, self.attn_mask[:n, :n]))
        return x[torch.arange(len(x)), end] @ self.text_projection


def hps_folder(root: Path) -> OpenClip:
    """Weights as HPSv2.1's are published, with the configurations of the CLIP that they were tuned from."""
    model = clip_model(root / judges.VIT_H)
    config = json.loads((root / judges.VIT_H / "config.json").read_text())
    for tower in ("text_config", "vision_config"):
        config[tower]["hidden_act"] = "gelu"
    (root / judges.VIT_H / "config.json").write_text(json.dumps(config))
    text, vision = model.config.text_config, model.config.vision_config
    torch.manual_seed(3)
    own = OpenClip(
        text.hidden_size, 2, 2, text.vocab_size, text.max_position_embeddings, vision.image_size, vision.patch_size, 24
    )
    (root / judges.HPS).mkdir(parents=True)
    torch.save({"state_dict": own.state_dict(), "epoch": 1}, root / judges.HPS / "HPS_v2.1_compressed.pt")
    return own.eval()


def test_hps_is_open_clips_cosine(tmp_path: Path) -> None:
    own = hps_folder(tmp_path)
    samples = pictures((32, 32), (32, 32), (32, 32))
    prepare = transformers.CLIPImageProcessorPil.from_pretrained(tmp_path / judges.VIT_H)
    pixels = prepare(images=[x[0] for x in samples], return_tensors="pt")["pixel_values"]
    words = transformers.AutoTokenizer.from_pretrained(tmp_path / judges.VIT_H)(
        PROMPTS, padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        texts = own.texts(words["input_ids"], words["attention_mask"].sum(dim=1) - 1)
        wanted = 100 * torch.cosine_similarity(own.images(pixels), texts)
    found = said(judges.hps(), tmp_path, samples)[:, 0]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-3)
    assert wanted.std() > 0.5
    lacking = {k: v for k, v in own.state_dict().items() if k != "visual.proj"}
    torch.save(lacking, tmp_path / judges.HPS / "HPS_v2.1_compressed.pt")
    with pytest.raises(InputError, match=r"does not fit its network .*visual_projection"):
        said(judges.hps(), tmp_path)


def test_every_open_clip_weight_has_a_place(tmp_path: Path) -> None:
    own = hps_folder(tmp_path)
    assert clip_tensors(own.state_dict()).keys() == clip_model(tmp_path / "other").state_dict().keys()


def test_hps_sees_the_whole_picture_on_black() -> None:
    wide = np.full((10, 40, 3), 200, np.uint8)
    seen = judges.padded(wide, 20)
    assert seen.shape == (20, 20, 3)
    assert (seen[8:12] == 200).all()  # 5 rows of 20, or one fewer by rounding
    assert (seen[:7] == 0).all()
    assert (seen[13:] == 0).all()


def blip_folder(root: Path) -> tuple[transformers.BlipForImageTextRetrieval, dict[str, torch.Tensor]]:
    """transformers' own BLIP with random weights, and a file of them under the names of ImageReward's."""
    torch.manual_seed(4)
    tokenizer_of_bert(root / judges.BERT)
    config = transformers.BlipConfig(
        text_config={
            "vocab_size": 40,
            "hidden_size": 64,
            "encoder_hidden_size": 128,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 1,
            "max_position_embeddings": 50,
        },
        vision_config={
            "hidden_size": 128,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 8,
            "layer_norm_eps": 1e-6,
        },
    )
    model = transformers.BlipForImageTextRetrieval(config).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    names = {
        "vision_model.embeddings.class_embedding": "cls_token",
        "vision_model.embeddings.position_embedding": "pos_embed",
        "vision_model.embeddings.patch_embedding": "patch_embed.proj",
        "vision_model.post_layernorm": "norm",
        "vision_model.encoder.layers": "blocks",
        "self_attn.projection": "attn.proj",
        "self_attn.qkv": "attn.qkv",
        "layer_norm": "norm",
    }
    state = {}
    for name, tensor in model.state_dict().items():
        for part in ("vision_model", "text_encoder"):
            if name.startswith(part):
                for old, new in names.items() if part == "vision_model" else ():
                    name = name.replace(old, new)
                place = "blip.visual_encoder." if part == "vision_model" else "blip."
                state[place + name] = tensor
    state["blip.text_encoder.embeddings.position_ids"] = torch.arange(50)[None]
    sizes = (64, 32, 16, 8, 4, 1)
    for layer, number in enumerate((0, 2, 4, 6, 7)):
        state[f"mlp.layers.{number}.weight"] = torch.randn(sizes[layer + 1], sizes[layer]) * 0.3
        state[f"mlp.layers.{number}.bias"] = torch.randn(sizes[layer + 1])
    (root / judges.IMAGEREWARD).mkdir(parents=True)
    save_file({k: v.contiguous() for k, v in state.items()}, root / judges.IMAGEREWARD / "ImageReward.safetensors")
    return model, state


def tokenizer_of_bert(folder: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *" ".join(PROMPTS).split()]
    vocab = {word: i for i, word in enumerate(dict.fromkeys(words))}
    transformers.BertTokenizer(vocab=vocab).save_pretrained(folder)


def test_imagereward_is_blips_reading_through_an_mlp(tmp_path: Path) -> None:
    model, state = blip_folder(tmp_path)
    found = said(judges.imagereward(), tmp_path)
    pixels = transformers.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})(
        images=[x[0] for x in pictures()], return_tensors="pt"
    )["pixel_values"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / judges.BERT)
    words = tokenizer(PROMPTS, padding="max_length", max_length=35, truncation=True, return_tensors="pt")
    with torch.no_grad():
        x = model(
            input_ids=words["input_ids"], attention_mask=words["attention_mask"], pixel_values=pixels
        ).question_embeds[:, 0]
        for number in (0, 2, 4, 6, 7):
            x = x @ state[f"mlp.layers.{number}.weight"].T + state[f"mlp.layers.{number}.bias"]
    torch.testing.assert_close(found, (x - 0.16717362830052426) / 1.0333394966054072, rtol=1e-3, atol=1e-4)
    assert found.std() > 1e-3


def test_aesthetic_is_an_mlp_on_the_unit_embedding(tmp_path: Path) -> None:
    clip_model(tmp_path / REPO)
    torch.manual_seed(5)
    layers = {"layers.0": nn.Linear(24, 8), "layers.2": nn.Linear(8, 4), "layers.4": nn.Linear(4, 1)}
    state = {f"{name}.{part}": p.detach() for name, layer in layers.items() for part, p in layer.named_parameters()}
    folder = tmp_path / "improved-aesthetic-predictor"
    folder.mkdir()
    save_file(state, folder / "sac+logos+ava1-l14-linearMSE.safetensors")
    with torch.no_grad():
        x = cosines(tmp_path / REPO)[1]
        wanted = nn.Sequential(*layers.values())(x / x.norm(dim=1, keepdim=True))
    torch.testing.assert_close(said(judges.aesthetic(), tmp_path), wanted, rtol=1e-4, atol=1e-5)
    save_file({"layers.0.weight": torch.zeros(3, 24)}, folder / "sac+logos+ava1-l14-linearMSE.safetensors")
    with pytest.raises(InputError, match="end in one number"):
        said(judges.aesthetic(), tmp_path)


def test_inception_takes_weights_that_are_safe(tmp_path: Path) -> None:
    """torch-fidelity's own network with random weights, from a file that is read without unpickling."""
    with on_path():
        made = fidelity._module("feature_extractor_inceptionv3").FeatureExtractorInceptionV3
        torch.manual_seed(6)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(made, "load_state_dict", lambda self, state: None)
            patch.setattr(torch, "load", lambda *_, **__: {})
            network = made("inception-v3-compat", ["2048"], feature_extractor_weights_path="none")
        folder = tmp_path / "torch-fidelity"
        folder.mkdir()
        save_file(network.state_dict(), folder / f"{fidelity.STEM}.safetensors")
        samples = pictures((40, 50), (64, 64))
        found = said(inception_network(), tmp_path, samples)
        with torch.no_grad():
            wanted = torch.cat([network(torch.from_numpy(x).permute(0, 3, 1, 2))[0] for x in samples])
        assert found.shape == (2, 2048)
        torch.testing.assert_close(found, wanted)
        (folder / f"{fidelity.STEM}.safetensors").unlink()
        torch.save({"a": torch.zeros(1)}, folder / f"{fidelity.STEM}.pth")
        with pytest.raises(InputError, match="sha256 begins with 6726825d"):
            said(inception_network(), tmp_path, samples)


# The command


@pytest.fixture(scope="module")
def arms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two arms of the demo's model, and real pictures of its world."""
    root = tmp_path_factory.mktemp("arms")
    (root / "prompts.txt").write_text("\n".join(world.training_captions(12)))
    for name, scale in (("a", 3), ("b", 1)):
        words = ("--prompts", root / "prompts.txt", "--steps", 3, "--guidance-scale", scale, "--batch-size", 12)
        assert selfnpo("sample", "--model", "demo", *words, "--output", root / name) == 0
    real, _ = world.draw_world(80, torch.Generator().manual_seed(0))
    (root / "real").mkdir()
    for i, picture in enumerate(real):
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(root / "real" / f"{i}.png")
    return root


@pytest.fixture
def copied(arms: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(arms, tmp_path / "arms", ignore=shutil.ignore_patterns(".evaluation")))


ORACLE = ("--feature-network", "oracle")


def test_end_to_end_on_the_demos_model(copied: Path, command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = "oracle,fid,kid,precision,recall,density,coverage"
    target = copied / "figures.json"
    words = ("evaluate", copied / "a", "--against", copied / "b", "--reference", copied / "real", "--metrics", metrics)
    assert command(*words, *ORACLE, "--json", target) == 0
    results = json.loads(target.read_text())
    found = results["metrics"]
    assert results["schema"] == 1
    assert list(found) == ["accuracy", "preference", *metrics.split(",")[1:]]
    assert (results["folder"]["samples"], results["reference"]["samples"]) == (12, 80)
    assert results["folder"]["made"]["guidance_scale"] == 3
    judged = Judged()
    features = {name: judged.features(copied / name) for name in ("a", "b", "real")}
    a, b, real = (Moments.of(features[name]) for name in ("a", "b", "real"))
    assert found["fid"]["value"][0] == pytest.approx(frechet_distance(real, a), rel=1e-4)
    assert found["fid"]["against"][0] == pytest.approx(frechet_distance(real, b), rel=1e-4)
    assert all(found[name]["weights_sha256"]["oracle.safetensors"] for name in found)
    assert sum(found["preference"][key] for key in ("wins", "ties", "losses")) == 12
    assert "accuracy ↑" in capsys.readouterr().out
    assert not list(copied.glob(".*.partial"))
    assert command(*words, *ORACLE) == 0  # from what is kept
    assert (
        selfnpo(
            "sample",
            "--model",
            "demo",
            "--prompts",
            copied / "prompts.txt",
            "--steps",
            3,
            "--guidance-scale",
            3,
            "--batch-size",
            12,
            "--output",
            copied / "a",
        )
        == 0
    )  # takes no notice of what is kept there


class Judged:
    """The demo's oracle, asked without `evaluate`."""

    def features(self, folder: Path) -> torch.Tensor:
        names = (
            [r["file"] for r in read_records(folder / "metadata.jsonl")]
            if (folder / "metadata.jsonl").exists()
            else None
        )
        files = [folder / name for name in names] if names else sorted(folder.glob("*.png"))
        x = torch.stack([torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1) for file in files]) / 255
        with torch.no_grad():
            return Things().judges.oracle.features(x)


def test_moments_ship_with_the_oracle(arms: Path, command: Command, tmp_path: Path) -> None:
    words = ("evaluate", arms / "a", "--metrics", "fid", *ORACLE, "--cache", tmp_path / "cache")
    assert command(*words, "--json", tmp_path / "r.json") == 0
    found = json.loads((tmp_path / "r.json").read_text())["metrics"]["fid"]
    moments = Things().judges.reference
    assert found["value"][0] == pytest.approx(
        frechet_distance(moments, Moments.of(Judged().features(arms / "a"))), rel=1e-4
    )
    assert found["reference_count"] == moments.count
    assert (tmp_path / "cache").is_dir()


def test_bad_samples(copied: Path, command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    files = sorted((copied / "a").glob("*.png"))
    files[1].write_bytes(files[1].read_bytes()[:200])
    sorted((copied / "b").glob("*.png"))[2].unlink()
    words = ("evaluate", copied / "a", "--against", copied / "b", "--metrics", "oracle", "--json", copied / "r.json")
    assert command(*words) == 2
    message = capsys.readouterr().err
    assert f"{copied}/a/{files[1].name}: cannot be read as a picture" in message
    assert "the file is missing" in message
    assert not (copied / "r.json").exists()
    assert not (copied / "a" / ".evaluation").exists()
    assert command(*words, "--skip-bad") == 0
    results = json.loads((copied / "r.json").read_text())
    assert results["metrics"]["accuracy"]["count"] == 10
    assert {(Path(s["folder"]).name, s["file"]) for s in results["skipped"]} == {
        ("a", files[1].name),
        ("b", files[2].name),
    }
    (copied / "b" / "metadata.jsonl").write_text("")
    assert command(*words, "--skip-bad") == 2
    assert "share no prompt and seed" in capsys.readouterr().err.splitlines()[-1]


def test_arms_drawn_otherwise(copied: Path, command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    metadata = copied / "b" / "metadata.jsonl"
    metadata.write_text(metadata.read_text().replace('"steps": 3', '"steps": 30'))
    words = ("evaluate", copied / "a", "--against", copied / "b", "--metrics", "oracle", "--json", copied / "r.json")
    assert command(*words) == 2
    assert "differ in steps (3 and 30)" in capsys.readouterr().err
    assert command(*words, "--allow-different") == 0
    assert json.loads((copied / "r.json").read_text())["different"] == ["steps (3 and 30)"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("A --metrics clipscore", "unknown metric 'clipscore': use fid, kid"),
        ("A --metrics ,", "nothing to measure: give --metrics some of"),
        ("gone --metrics oracle", "is no folder"),
        ("A --metrics kid --feature-network oracle", "give a folder of it as --reference DIR"),
        (
            "A --metrics precision --feature-network oracle --reference A/few",
            "needs 4 reference samples or more, got 2",
        ),
        ("A --metrics oracle --json gone/r.json", "--json gone/r.json cannot be written"),
        ("A --metrics oracle --against OTHER", "64×64"),
        ("A --metrics clip_score", "hf download openai/clip-vit-large-patch14"),
        ("A --metrics pickscore", "hf download yuvalkirstain/PickScore_v1"),
        ("A --metrics hpsv2.1", "hf download xswu/HPSv2 HPS_v2.1_compressed.pt"),
        ("A --metrics imagereward", "hf download THUDM/ImageReward ImageReward.pt"),
        ("A --metrics aesthetic", "improved-aesthetic-predictor"),
    ],
)
@pytest.mark.usefixtures("offline")
def test_mistakes(
    words: str, message: str, copied: Path, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    (copied / "a" / "few").mkdir()
    for file in sorted((copied / "real").glob("*.png"))[:2]:
        shutil.copy(file, copied / "a" / "few")
    shutil.copytree(copied / "b", copied / "other")
    for file in (copied / "other").glob("*.png"):
        Image.open(file).resize((32, 32)).save(file)
    places = {"A": copied / "a", "A/few": copied / "a" / "few", "OTHER": copied / "other"}
    assert command("evaluate", *(places.get(word, word) for word in words.split())) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(errors) == 1
    assert message in errors[0]


@pytest.mark.usefixtures("offline")
def test_inception_without_its_package_or_its_weights(
    copied: Path, command: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("evaluate", copied / "a", "--metrics", "fid", "--reference", copied / "real")
    with on_path():
        assert command(*words) == 2
        assert "weights-inception-2015-12-05-6726825d.pth into WEIGHTS/torch-fidelity/" in capsys.readouterr().err
    monkeypatch.setattr(fidelity, "PACKAGE", "no_such_package")
    assert command(*words) == 2
    assert "pip install 'selfnpo-core[eval]'" in capsys.readouterr().err


def test_a_judge_through_the_command(arms: Path, command: Command, tmp_path: Path) -> None:
    clip_model(tmp_path / "weights" / REPO)
    words = ("--weights", tmp_path / "weights", "--cache", tmp_path / "cache", "--json", tmp_path / "r.json")
    assert command("evaluate", arms / "a", "--against", arms / "b", "--metrics", "clip_score", *words) == 0
    found = json.loads((tmp_path / "r.json").read_text())["metrics"]["clip_score"]
    sha256 = found["weights_sha256"][f"{REPO}/model.safetensors"]
    assert (found["model"], len(sha256), found["count"]) == (REPO, 64, 12)
    assert load_tensors(next((tmp_path / "cache").rglob("*.safetensors")))
    model = Clip.of(tmp_path / "weights" / REPO, tmp_path / "weights" / REPO, CPU)
    records = read_records(arms / "a" / "metadata.jsonl")
    with torch.no_grad():
        images = model.images([np.asarray(Image.open(arms / "a" / r["file"])) for r in records])
        wanted = 100 * (images * model.texts([r["prompt"] for r in records])).sum(dim=1).mean().item()
    assert found["value"][0] == pytest.approx(wanted, rel=1e-4)
