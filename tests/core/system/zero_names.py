"""DeepSpeed's names, each asked of a ZeRO engine of one process, which the tests start. Writes name → what is wrong."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from deepspeed.ops import __compatible_ops__

from selfnpo_core.system import private

private.leave_out_helpers(["deepspeed_shm_comm"])

import deepspeed  # noqa: E402

RATE = 0.1


def engine(stage: int):
    network = torch.nn.Linear(3, 2)
    settings = {
        "train_batch_size": 1,
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
        "zero_allow_untested_optimizer": True,
    }
    optimizer = torch.optim.Adam(network.parameters(), lr=RATE)
    return deepspeed.initialize(model=network, optimizer=optimizer, config=settings)[0]


def pieces_of_stage_3(engine) -> dict[str, Callable[[], bool]]:
    plain, weight = torch.nn.Parameter(torch.ones(2)), engine.module.weight

    def gathers_and_lets_go() -> bool:
        before = private.is_gathered(weight)
        weight.all_gather()
        gathered = private.is_gathered(weight) and weight.shape == (2, 3)
        private.let_go([weight])
        return not before and gathered and not private.is_gathered(weight)

    def takes_another_piece() -> bool:
        private.piece_of(weight).data = torch.arange(6.0)
        with deepspeed.zero.GatheredParameters([weight]):
            return weight.flatten().tolist() == [0, 1, 2, 3, 4, 5]

    return {
        "is_cut": lambda: private.is_cut(weight) and not private.is_cut(plain),
        "is_gathered": gathers_and_lets_go,
        "let_go": gathers_and_lets_go,
        "piece_of": takes_another_piece,
        "whole_shape": lambda: private.whole_shape(weight) == (2, 3) and weight.shape != (2, 3),
    }


def optimizers(engine, numbers: int) -> dict[str, Callable[[], bool]]:
    optimizer = engine.optimizer

    def sees_its_partitions() -> bool:
        return sum(flat.numel() for flat in private.flat_partitions(optimizer)) >= numbers

    def keeps_a_state_of_each() -> bool:
        """A state that is put there is what the next step goes on from."""
        known = private.inner_state(optimizer)
        for flat in private.flat_partitions(optimizer):
            zero = torch.zeros_like(flat.data)
            known[flat] = {"step": torch.tensor(7.0), "exp_avg": zero.clone(), "exp_avg_sq": zero.clone()}
        private.link_states(optimizer)
        engine.backward(engine(torch.ones(1, 3)).sum())
        engine.step()
        return all(float(known[flat]["step"]) == 8 for flat in private.flat_partitions(optimizer))

    return {"flat_partitions": sees_its_partitions, "inner_state": keeps_a_state_of_each}


def links(engine) -> bool:
    """Moments that were put into the inner optimizer can be set by parameter, also where others were known before."""
    from deepspeed.utils import safe_set_full_optimizer_state

    known, (flat, *_) = private.inner_state(engine.optimizer), private.flat_partitions(engine.optimizer)
    for _ in range(2):
        moments = {key: torch.zeros_like(flat.data) for key in ("exp_avg", "exp_avg_sq")}
        known[flat] = {"step": torch.tensor(7.0), **moments}
        private.link_states(engine.optimizer)
    safe_set_full_optimizer_state(engine.module.weight, torch.full((2, 3), 5.0), "exp_avg")
    return int((known[flat]["exp_avg"] == 5).sum()) == 6


def overflows(engine) -> bool:
    first = private.overflowed(engine.optimizer)
    engine.backward(engine(torch.full((1, 3), torch.inf)).sum())
    engine.step()
    return not first and private.overflowed(engine.optimizer)


def problem(works: Callable[[], bool]) -> str | None:
    try:
        return None if works() else "another answer"
    except Exception as error:
        return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    deepspeed.init_distributed("gloo")
    second, third = engine(2), engine(3)
    asked = {
        "leave_out_helpers": lambda: __compatible_ops__["deepspeed_shm_comm"] is False,
        "link_states, stage 2": lambda: links(second),
        **{f"{name}, stage 2": works for name, works in optimizers(second, 8).items()},
        "overflowed, stage 2": lambda: overflows(second),
        **{f"{name}, stage 3": works for name, works in optimizers(third, 8).items()},
        **{f"{name}, stage 3": works for name, works in pieces_of_stage_3(third).items()},
    }
    Path(sys.argv[1]).write_text(json.dumps({name: problem(works) for name, works in asked.items()}))
