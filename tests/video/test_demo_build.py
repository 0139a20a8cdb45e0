"""The stages that make the video demo's model, in small."""

import pytest
import torch

from selfnpo_core.evaluation import Moments
from selfnpo_core.experiments.measure import judge, sample
from selfnpo_core.worlds.assets import load_judges, write_assets
from selfnpo_core.worlds.building import fingerprint, load, snapshot_path
from selfnpo_core.worlds.world import Judges, Task, correct
from selfnpo_video.demo import world
from selfnpo_video.demo.build import denoiser, pack, vae
from selfnpo_video.demo.build import judge as judging
from selfnpo_video.demo.build.oracle import real_batch
from selfnpo_video.demo.judges import VideoJudge, VideoOracle
from selfnpo_video.demo.moving import MovingThings


def test_every_word_is_a_token():
    tokenizer = denoiser.build_tokenizer()
    labels = world.draw_labels(300, torch.Generator().manual_seed(0))
    captions = world.draw_captions(labels, torch.Generator().manual_seed(1))
    for text, tokens in zip(captions, tokenizer(captions).input_ids, strict=True):
        assert len(tokens) == len(text.split()) + 1
        assert len(tokens) <= denoiser.MAX_TOKENS
        assert tokenizer.unk_token_id not in tokens


def test_the_oracle_reads_clips_of_any_length():
    oracle = VideoOracle().eval()
    clips, labels = real_batch(4, torch.Generator().manual_seed(0))
    assert oracle.features(clips).shape == (4, 64)
    assert oracle.features(clips[:, :, :5]).shape == (4, 64)
    assert correct(oracle(clips), labels).shape == (4, 3)


def test_the_last_stage_of_the_autoencoder_leaves_the_latents(tmp_path):
    trained = vae.train(tmp_path / "vae.safetensors", pictures=1, clips=1, decoding=1, batch=1)
    clips = load(vae.build(), tmp_path / "vae-clips.safetensors")
    assert fingerprint(trained.encoder) == fingerprint(clips.encoder)
    assert fingerprint(trained.decoder) != fingerprint(clips.decoder)
    again = vae.train(tmp_path / "vae.safetensors")  # from disk
    assert fingerprint(again) == fingerprint(trained)
    assert again.config.scaling_factor == trained.config.scaling_factor != 1


def test_a_short_training_makes_a_pipeline_that_draws(tmp_path):
    torch.manual_seed(0)
    autoencoder = vae.with_scale(vae.build().eval())
    path = tmp_path / "denoiser.safetensors"
    pipe = denoiser.train(path, autoencoder, steps=8, until=2, snapshots=(1,), batch=2, count=32)
    assert 2e6 < sum(p.numel() for p in pipe.transformer.parameters()) < 8e6
    world_, task = MovingThings(), Task.draw(MovingThings(), 2, 5)
    clips = sample(world_, pipe, task, guidance_scale=2.0, steps=2)
    assert clips.data.shape == (2, 3, 9, 32, 32)
    assert clips.forward_rows == 8
    before = denoiser.train(snapshot_path(path, 1), autoencoder)
    assert fingerprint(before.transformer) != fingerprint(pipe.transformer)
    again = denoiser.train(path, autoencoder, steps=2)  # from disk
    assert torch.equal(sample(world_, again, task, guidance_scale=2.0, steps=2).data, clips.data)
    eyes = VideoOracle().eval()
    moments = Moments.of(eyes.features(clips.data / 255).detach())
    world_.judges = Judges(oracle=eyes, preference=VideoJudge().eval(), reference=moments)
    scores = judge(world_, clips.data, task.labels)
    write_assets(tmp_path / "assets", pipe, world_.judges, {"right": int(scores.right.sum())}, pack.CARD)
    files = [file for file in (tmp_path / "assets").rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 20 * 2**20
    loaded = load_judges(tmp_path / "assets", VideoOracle(), VideoJudge())
    torch.testing.assert_close(loaded.reference.mean, moments.mean, atol=1e-6, rtol=0)
    assert "toy" in (tmp_path / "assets" / "model" / "README.md").read_text()


@pytest.mark.parametrize("kind", range(judging.KINDS))
def test_more_harm_changes_a_clip_or_its_latents_more(kind):
    """And what is of latents leaves clips alone, and the other way round."""
    clips = world.render(world.draw_clips(world.draw_labels(12, torch.Generator().manual_seed(3)), torch.Generator()))
    latents = torch.randn(12, 16, 3, 8, 8, generator=torch.Generator().manual_seed(6))
    change = []
    for level in (0.0, 0.3, 0.9):

        def harm(level=level):
            return torch.full((12,), level), torch.full((12,), kind), torch.Generator().manual_seed(5)

        harmed = judging.damage_clips(clips, *harm()) - clips, judging.damage_latents(latents, *harm()) - latents
        change.append([x.square().mean().item() for x in harmed])
    least, some, most = (pair[kind >= 4] for pair in change)
    assert least < 1e-6
    assert least < some < most
    assert max(pair[kind < 4] for pair in change) == 0


def test_rated_clips_carry_what_was_done_to_them(monkeypatch):
    monkeypatch.setattr(judging, "CHUNK", 8)
    torch.manual_seed(0)
    autoencoder = vae.with_scale(vae.build().eval())
    rated = judging.rated_clips(autoencoder, 8, torch.Generator().manual_seed(1))
    assert rated.data.shape == (8, 3, 9, 32, 32)
    assert rated.data.dtype == torch.uint8
    assert 0 < rated.wrong.float().mean() < 1
    assert VideoJudge()(rated.data[:2] / 255, rated.asked[:2]).shape == (2,)
