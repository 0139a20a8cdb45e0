"""The stages that make the video demo's model, in small."""

import pytest
import torch

from selfnpo_core.errors import RunError
from selfnpo_core.evaluation import Moments
from selfnpo_video.demo import measure, world
from selfnpo_video.demo.build import denoiser, pack, vae
from selfnpo_video.demo.build.oracle import augment, real_batch
from selfnpo_video.demo.judges import VideoOracle, correct


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
    assert oracle.features(augment(clips, torch.Generator().manual_seed(0))[:, :, :5]).shape == (4, 64)
    assert correct(oracle(clips), labels).shape == (4, 3)


def test_a_short_training_makes_a_pipeline_that_draws(tmp_path):
    torch.manual_seed(0)
    autoencoder = vae.with_scale(vae.build().eval())
    path = tmp_path / "denoiser.safetensors"
    pipe = denoiser.train(path, autoencoder, steps=2, batch=2, count=32)
    assert 2e6 < sum(p.numel() for p in pipe.transformer.parameters()) < 8e6
    task = measure.Task.draw(2, 5)
    clips = measure.sample(pipe, task, guidance_scale=2.0, steps=2)
    assert clips.shape == (2, 3, 9, 64, 64)
    again = denoiser.train(path, autoencoder, steps=2)  # from disk
    assert torch.equal(measure.sample(again, task, guidance_scale=2.0, steps=2), clips)
    oracle = VideoOracle().eval()
    features, right = measure.judge(oracle, clips, task.labels)
    pack.write_assets(tmp_path / "assets", pipe, oracle, Moments.of(features), {"right": int(right.sum())})
    files = [file for file in (tmp_path / "assets").rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 20 * 2**20


def test_a_ragged_model_is_refused():
    pack.refuse_ragged(0.9, 5.0)
    with pytest.raises(RunError, match="denoiser"):
        pack.refuse_ragged(0.7, 5.0)
    with pytest.raises(RunError, match="autoencoder"):
        pack.refuse_ragged(0.9, 50.0)
