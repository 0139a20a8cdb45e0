"""What a node's memory is said to hold, and the refusal where it does not."""

import pytest
import torch
from tests.core.training.toy import PROMPTS, ToyBackbone, toy_recipe

from selfnpo_core import InputError
from selfnpo_core.training import dry_run, estimate, host_memory
from selfnpo_core.training.host_memory import HostPart, check_host, host_line, host_parts


def test_each_process_has_its_own_and_some_is_shared(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    parts = host_parts([("base weights", 100), ("state", 10), ("nothing", 0)], processes=8, shared=["base weights"])
    assert [(part.name, part.count, part.together) for part in parts] == [
        ("base weights", 1, 100),
        ("state", 4, 40),
    ]
    assert host_line(parts) == ("host memory, a node  140 B: base weights 100 B, state 4 × 10 B")


def test_all_weights_on_the_cpu_are_counted_there():
    recipe = toy_recipe(train="full")
    pool = 40 * 4 * 4 * 4 * 4  # of both processes, in the first
    plan = dry_run(ToyBackbone(), recipe, PROMPTS, processes=2)
    written = 2 * 4 * 81 * 48  # the largest weight twice, whatever all of them are
    assert sum(part.together for part in plan.host) == 2 * (sum(part.bytes for part in plan.memory) + written) + pool
    assert "host memory, a node" in str(plan)
    assert "host memory, a node" not in str(dry_run(ToyBackbone(), toy_recipe(), PROMPTS))


def test_where_there_is_no_gpu_the_device_is_the_host_whatever_it_is_called():
    cpu, auto = (dry_run(ToyBackbone(), toy_recipe(train="full", device=name), PROMPTS) for name in ("cpu", "auto"))
    assert auto.host == cpu.host
    assert auto.memory == cpu.memory
    assert all(part.on_device for part in auto.memory if part.name == "base weights")
    names = {part.name for part in dry_run(ToyBackbone(), toy_recipe(train="full", device="cuda"), PROMPTS).host}
    assert {"base weights", estimate.WRITTEN} <= names
    assert not [name for name in names if name.startswith(("student", "teacher", "optimizer"))]


def test_offloaded_pieces_of_student_and_teacher_are_in_host_memory():
    recipe = toy_recipe(train="full", device="cuda", engine="zero3", offload_parameters=True)
    names = {part.name for part in dry_run(ToyBackbone(), recipe, PROMPTS, processes=2).host}
    assert {"student, float32", "teacher, float32"} <= names


def test_a_node_with_too_little_is_refused_with_what_to_do(monkeypatch):
    parts = (HostPart(name="state", bytes=600, count=2), HostPart(name="checkpoint", bytes=100))
    recipe = toy_recipe(train="full", engine="zero2", offload_optimizer=True)
    monkeypatch.setattr(host_memory, "available", lambda device: 1300)
    check_host(parts, recipe)
    monkeypatch.setattr(host_memory, "available", lambda device: 1299)
    with pytest.raises(
        InputError, match=r"1\.3 KiB of a node's own memory \(state 2 × 600 B, checkpoint 100 B\)"
    ) as no:
        check_host(parts, recipe)
    assert "fewer processes on each node, or --set offload_optimizer=false, or --set train=lora" in str(no.value)


def test_it_is_checked_before_training(monkeypatch):
    monkeypatch.setattr(host_memory, "available", lambda device: 1000)
    monkeypatch.setattr(estimate, "available", lambda device: 1 << 40)
    with pytest.raises(InputError, match="node's own memory"):
        estimate.check_memory(ToyBackbone(), toy_recipe(train="full"), PROMPTS, torch.device("cpu"))
    estimate.check_memory(ToyBackbone(), toy_recipe(), PROMPTS, torch.device("cpu"))
