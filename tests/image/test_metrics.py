"""The oracle of `compare`: only for the demo model, only of its world's captions."""

import pytest
import torch
from PIL import Image
from torch import Tensor

from selfnpo_core.experiments import measure
from selfnpo_image import metrics
from selfnpo_image.demo import world


def scene(count: int) -> tuple[list[str], list[Image.Image], list[Image.Image]]:
    generator = torch.Generator().manual_seed(0)
    pictures, labels = world.draw_world(count, generator)
    noise = torch.randint(0, 256, pictures.shape, generator=generator, dtype=torch.uint8)
    return world.draw_captions(labels, generator), to_images(pictures), to_images(noise)


def to_images(pictures: Tensor) -> list[Image.Image]:
    return [Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy()) for picture in pictures]


def test_other_models_have_no_oracle() -> None:
    assert metrics.oracle_for("sd15") is None
    assert metrics.oracle_for("demo") is metrics.judge_demo


def test_a_few_pictures_give_accuracy_and_win_rate() -> None:
    prompts, without, with_npo = scene(4)
    figures = metrics.judge_demo([*prompts, "a red fox in the snow"], [*without, without[0]], [*with_npo, with_npo[0]])
    assert figures["judged"] == 4
    assert set(figures["without"]) == set(figures["with"]) == {"accuracy"}
    assert set(figures["change"]) == {"win_rate"}
    assert figures["without"]["accuracy"][0] == 1.0
    assert figures["with"]["accuracy"][0] < 0.5
    swapped = metrics.judge_demo(prompts, with_npo, without)
    assert swapped["change"]["win_rate"][0] == pytest.approx(1 - figures["change"]["win_rate"][0])


def test_enough_pictures_give_a_distance_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "ENOUGH", 8)
    figures = metrics.judge_demo(*scene(8))
    assert "fid" in figures["with"]
    assert {"fid_change", "accuracy_change", "win_rate"} <= set(figures["change"])


def test_prompts_of_no_caption() -> None:
    assert metrics.judge_demo(["a red fox"], [], [])["judged"] == 0
