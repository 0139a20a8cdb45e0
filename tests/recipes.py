"""What makes a family's preset a recipe of the pool, for tests of the pool and those that are about no recipe."""

from typing import Any

POOL: dict[str, Any] = {"rollout": "pool", "loss": "huber", "loss_weighting": "none", "student_prompt_dropout": 0.0}
POOL_KEYS = tuple(f"{key}={value}" for key, value in POOL.items())
