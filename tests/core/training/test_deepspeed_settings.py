"""A DeepSpeed file over what a recipe makes: its own settings hold, and it may not contradict the recipe."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.core.training.toy import toy_recipe

from selfnpo_core import InputError
from selfnpo_core.training import accelerators
from selfnpo_core.training.deepspeed_settings import bucket_bytes, with_buckets
from selfnpo_core.training.recipe import Recipe

ZERO2: dict[str, Any] = {"engine": "zero2", "batch_size": 4, "grad_accumulation": 2, "mixed_precision": "bf16"}


@pytest.fixture(autouse=True)
def launched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())


def given(folder: Path, settings: Any, **changes: Any) -> Recipe:
    file = folder / "deepspeed.json"
    file.write_text(settings if isinstance(settings, str) else json.dumps(settings))
    return toy_recipe(**{**ZERO2, **changes, "deepspeed": str(file)})


def used(recipe: Recipe) -> dict[str, Any]:
    """What Accelerate is given."""
    accelerators.check_engine(recipe, processes=1)
    config: dict[str, Any] = accelerators._deepspeed_plugin(recipe, int(recipe.engine[-1])).deepspeed_config
    return config


def test_a_file_is_merged_over_the_recipes_settings(tmp_path: Path) -> None:
    zero = {"stage": 2, "allgather_bucket_size": 5e7, "offload_optimizer": {"device": "nvme", "nvme_path": "/fast"}}
    theirs = {
        "zero_optimization": {**zero, "reduce_bucket_size": "auto"},
        "train_micro_batch_size_per_gpu": "auto",
        "train_batch_size": "auto",
        "gradient_clipping": 1.0,
        "optimizer": {"params": {"lr": "auto"}},
        "scheduler": {"params": {"warmup_num_steps": "auto"}},
        "bf16": {"enabled": "auto"},
        "fp16": {"enabled": False, "loss_scale": 0},
        "flops_profiler": {"enabled": True},
    }
    recipe = given(tmp_path, theirs, offload_optimizer=True)
    plain = used(recipe.model_copy(update={"deepspeed": None}))
    own = used(recipe)
    assert own["flops_profiler"] == {"enabled": True}
    offload = {
        "device": "nvme",
        "nvme_path": "/fast",
        "pin_memory": plain["zero_optimization"]["offload_optimizer"]["pin_memory"],
    }
    assert own["zero_optimization"] == {
        **plain["zero_optimization"],
        "allgather_bucket_size": 5e7,
        "offload_optimizer": offload,
    }
    changed = ("flops_profiler", "zero_optimization")
    assert {key: value for key, value in own.items() if key not in changed} == {
        key: value for key, value in plain.items() if key not in changed
    }
    assert own["train_micro_batch_size_per_gpu"] == 4


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"zero_optimization": {"stage": 3}},
            "has zero_optimization.stage 3, but the recipe makes it 2: change engine",
        ),
        ({"train_micro_batch_size_per_gpu": 8}, "but the recipe makes it 4: change batch_size"),
        ({"gradient_accumulation_steps": 1}, "change grad_accumulation"),
        ({"gradient_clipping": 0.5}, "change max_grad_norm"),
        ({"torch_autocast": {"enabled": False}}, "change mixed_precision"),
        ({"train_batch_size": 64}, "has train_batch_size, but batch_size, grad_accumulation"),
        ({"optimizer": {"type": "AdamW", "params": {"lr": 1e-5}}}, "the recipe's `optimizer`"),
        ({"scheduler": {"type": "WarmupLR"}}, "the recipe's `lr_schedule`"),
        ({"bf16": {"enabled": True}}, "the recipe's `mixed_precision`"),
        ([1], "is no JSON object"),
        ("{", "is no JSON "),
    ],
)
def test_a_file_that_contradicts_the_recipe_is_refused(tmp_path: Path, settings: Any, said: str) -> None:
    with pytest.raises(InputError) as refused:
        used(given(tmp_path, settings))
    assert said in str(refused.value)
    assert "deepspeed.json" in str(refused.value)


def test_a_file_needs_deepspeeds_engine_and_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="use engine zero1, zero2 or zero3"):
        used(given(tmp_path, {}, engine="ddp"))
    with pytest.raises(InputError, match=r"gone\.json cannot be read: No such file"):
        used(toy_recipe(**ZERO2, deepspeed=str(tmp_path / "gone.json")))


def test_buckets_have_the_models_size_unless_a_file_says_otherwise() -> None:
    small = with_buckets({"stage": 2}, [7, 4], [100])
    assert small == {"stage": 2, "reduce_bucket_size": 12, "allgather_bucket_size": 12}  # 11, even
    large = with_buckets({"stage": 3}, [30_000_000] * 100, [80_000_000, 1])
    assert large["reduce_bucket_size"] == 50_000_000
    assert large["stage3_prefetch_bucket_size"] == 80_000_000
    assert with_buckets({"stage": 3}, [1_000_000] * 1000, [1])["reduce_bucket_size"] == 20_000_000
    assert with_buckets({"stage": 3, "reduce_bucket_size": 5}, [9], [9])["reduce_bucket_size"] == 5


def test_buckets_are_counted_as_they_are_made() -> None:
    three = {"stage": 3, "reduce_bucket_size": 10, "stage3_prefetch_bucket_size": 100}
    assert bucket_bytes(three, sent=2, kept=4) == 2 * 10 + 4 * 100
    two = {"stage": 2, "reduce_bucket_size": 10, "overlap_comm": True}
    assert bucket_bytes(two, sent=2, kept=4) == 2 * 2 * 10
    assert bucket_bytes({**two, "contiguous_gradients": False}, sent=2, kept=4) == 0
