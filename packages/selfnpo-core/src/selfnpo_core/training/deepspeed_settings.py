"""A DeepSpeed configuration file of the user's, merged over the settings that a recipe makes.

The recipe decides rows, clipping, precision, the stage and the optimizer; a file that says otherwise is refused by the
key that is to be changed in the recipe. All else is the file's: buckets, prefetching, offloading to NVMe, profilers.
"auto", which other trainers fill in, is what the recipe says.

Buckets that the file does not name have the model's size: DeepSpeed's own, 500 million numbers, lie there as 1 to 2 GiB
whether a model has as many or not.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from selfnpo_core.errors import InputError
from selfnpo_core.system.files import read_json
from selfnpo_core.system.paths import user_path

Settings = dict[str, Any]
OWN: Mapping[str, str] = {
    "train_micro_batch_size_per_gpu": "batch_size",
    "gradient_accumulation_steps": "grad_accumulation",
    "gradient_clipping": "max_grad_norm",
    "torch_autocast": "mixed_precision",
    "zero_optimization.stage": "engine",
    "zero_optimization.stage3_max_reuse_distance": "engine",
    "zero_optimization.stage3_param_persistence_threshold": "engine",
}
"""Setting → key of the recipe that decides it."""
REFUSED: Mapping[str, str] = {
    "train_batch_size": "batch_size, grad_accumulation and the number of processes decide it",
    "optimizer": "the recipe's `optimizer` and `learning_rate` decide it",
    "scheduler": "the recipe's `lr_schedule` and `warmup_steps` decide it",
    "fp16": "the recipe's `mixed_precision` decides it",
    "bf16": "the recipe's `mixed_precision` decides it",
    "amp": "the recipe's `mixed_precision` decides it",
}
"""Sections that may only be absent, "auto" throughout or switched off."""


FIRST_BUCKET, LAST_BUCKET = 5_000_000, 50_000_000
"""Numbers: fewer are sent slowly, more not faster."""


def read_settings(name: str) -> Settings:
    """The file's settings, without what is "auto" or off. Raises `InputError` for one that decides too much."""
    path = user_path(name)
    try:
        stored = read_json(Path(path))
    except OSError as error:
        raise InputError(f"deepspeed {name} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise InputError(f"deepspeed {name} is no JSON ({' '.join(str(error).split())[:80]}): correct it") from None
    if not isinstance(stored, dict):
        raise InputError(f"deepspeed {name} is no JSON object: give DeepSpeed's own configuration file")
    settings: Settings = _without_auto(stored)
    for key, why in REFUSED.items():
        section = settings.pop(key, None)
        if section and not (isinstance(section, dict) and section.get("enabled") is False):
            raise InputError(f"deepspeed {name} has {key}, but {why}: leave it out there")
    return settings


def merged(ours: Settings, theirs: Settings, name: str) -> Settings:
    """Theirs over ours. Raises `InputError` where they contradict what the recipe decides. name: of the file."""
    for place, key in OWN.items():
        one, other = _at(ours, place), _at(theirs, place)
        if other is not None and other != one:
            said = "leaves it out" if one is None else f"makes it {one}"
            raise InputError(
                f"deepspeed {name} has {place} {other}, but the recipe {said}: change {key}, or leave it out"
            )
    return _over(ours, theirs)


def with_buckets(zero: Settings, trained: Sequence[int], every: Sequence[int]) -> Settings:
    """ZeRO's section with buckets for tensors of these sizes: those that are trained, and all of the network.

    A bucket holds the largest tensor, and a fiftieth of all numbers within `FIRST_BUCKET` and `LAST_BUCKET`.
    """
    own = {"reduce_bucket_size": _bucket(trained), "allgather_bucket_size": _bucket(trained)}
    if zero["stage"] == 3:
        own["stage3_prefetch_bucket_size"] = _bucket(every)
    return {**own, **zero}


def bucket_bytes(zero: Settings, sent: int, kept: int) -> int:
    """What the buckets of such a section take on the device. sent, kept: bytes of a number, as gradient and as weight.

    Gradients wait in one until they are sent, in two if that overlaps; weights that are gathered ahead fill another.
    """
    stages_of_two = 2 if zero["stage"] < 3 and zero.get("overlap_comm") else 1
    buffers = stages_of_two if zero.get("contiguous_gradients", True) else 0
    ahead = zero["stage3_prefetch_bucket_size"] if zero["stage"] == 3 else 0
    return int(buffers * sent * zero["reduce_bucket_size"] + kept * ahead)


def _bucket(sizes: Sequence[int]) -> int:
    largest, together = max(sizes), sum(sizes)
    size = max(largest, min(together, max(FIRST_BUCKET, min(together // 50, LAST_BUCKET))))
    return size + size % 2  # as DeepSpeed aligns them


def _over(ours: Settings, theirs: Settings) -> Settings:
    both = dict(ours)
    for key, value in theirs.items():
        own = both.get(key)
        both[key] = _over(own, value) if isinstance(own, dict) and isinstance(value, dict) else value
    return both


def _without_auto(value: Any) -> Any:
    """Sections that hold nothing else are gone too."""
    if not isinstance(value, dict):
        return value
    kept = {key: _without_auto(each) for key, each in value.items() if each != "auto"}
    return {key: each for key, each in kept.items() if each != {} or value[key] == {}}


def _at(settings: Settings, place: str) -> Any:
    found: Any = settings
    for key in place.split("."):
        found = found.get(key) if isinstance(found, dict) else None
    return found
