"""Each private name of another library, asked of a real object: what fails here was renamed, or does something else."""

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import deepspeed
import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from accelerate.state import AcceleratorState, PartialState
from diffusers import (
    ClassifierFreeGuidance,
    CogVideoXTransformer3DModel,
    DDPMPipeline,
    DDPMScheduler,
    UNet2DConditionModel,
    UNet2DModel,
    WanTransformer3DModel,
)
from diffusers.models.embeddings import CogVideoXPatchEmbed
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXBlock
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torchao.quantization import Int8WeightOnlyConfig, quantize_
from transformers import T5EncoderModel

from selfnpo_core.system import private

ZERO = Path(__file__).with_name("zero_names.py")
NAMES_OF_ZERO = [
    "leave_out_helpers",
    *(f"{name}, stage 2" for name in ("flat_partitions", "inner_state", "link_states", "overflowed")),
    *(f"{name}, stage 3" for name in ("flat_partitions", "inner_state")),
    *(f"{name}, stage 3" for name in ("is_cut", "is_gathered", "let_go", "piece_of", "whole_shape")),
]


def test_fake_tensors():
    with private.fake_tensors():
        made = torch.empty(2, 3)
        product = made @ torch.empty(3, 4)
    assert product.shape == (2, 4)
    assert private.is_fake_tensor(product)
    assert not private.is_fake_tensor(torch.empty(2, device="meta"))
    assert not private.is_fake_tensor(torch.ones(2))


def test_sees_operations():
    class Noted(private.SeesOperations):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    seen: list[object] = []
    with Noted():
        torch.ones(2) + 1
    assert torch.ops.aten.add.Tensor in seen


def test_tensors_in():
    one, two = torch.ones(1), torch.ones(2)
    assert [t.shape for t in private.tensors_in([one, {"b": (two, "no")}, None])] == [(1,), (2,)]


def test_is_wrapper_and_wrapped_tensors():
    layer = nn.Sequential(nn.Linear(32, 32))
    assert not private.is_wrapper(layer[0].weight.data)
    quantize_(layer, Int8WeightOnlyConfig())
    assert private.is_wrapper(layer[0].weight.data)
    inside = private.wrapped_tensors(layer[0].weight.data)
    assert torch.int8 in {part.dtype for part in inside}


def test_storage_key():
    one, other = torch.ones(4), torch.ones(4)
    key = private.storage_key(one.untyped_storage())
    assert private.storage_key(one[2:].untyped_storage()) == key
    assert private.storage_key(other.untyped_storage()) != key
    shapes = [torch.empty(3, device="meta") for _ in range(2)]
    assert len({private.storage_key(shape.untyped_storage()) for shape in shapes}) == 2


def test_weight_tables():
    layer = nn.BatchNorm1d(2)
    parameters, buffers = private.weight_tables(layer)
    assert parameters["weight"] is layer.weight
    assert buffers["running_mean"] is layer.running_mean
    parameters["weight"] = other = nn.Parameter(torch.zeros(2))
    assert layer.weight is other


def test_uncompiled():
    layer = nn.Linear(2, 2)
    assert private.uncompiled(torch.compile(layer)) is layer
    assert private.uncompiled(layer) is layer


def test_compiler_is_loaded():
    torch.compile(nn.Linear(2, 2), backend="eager")
    assert private.compiler_is_loaded()


def test_compiled_call():
    layer = nn.Linear(2, 2)
    assert private.compiled_call(layer) is None
    layer.compile(backend="eager")
    inner = private.compiled_call(layer)
    assert inner is not None
    private.set_compiled_call(layer, lambda x: x + 1)
    assert layer(torch.zeros(1)).tolist() == [1]
    private.set_compiled_call(layer, inner)
    assert private.compiled_call(layer) is inner


def test_leave_out_of_ddp(tmp_path):
    network = nn.Linear(2, 2)
    private.leave_out_of_ddp(network, ["weight"])
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        assert nn.parallel.DistributedDataParallel(network).parameters_to_ignore == {"weight"}
    finally:
        dist.destroy_process_group()


def test_default_store(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        store = private.default_store()
        assert isinstance(store, dist.Store)
        assert store.add("a", 2) == 2
        assert store.timeout.total_seconds() > 0
    finally:
        dist.destroy_process_group()


def test_memory_changes():
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as measured:
        kept = torch.empty(1000, dtype=torch.float32)
        del kept
    changes = private.memory_changes(measured)
    assert [change for _, change in changes] == [4000, -4000]
    assert changes[0][0] <= changes[1][0]


def test_flop_formulas():
    q, k = torch.empty(2, 3, 5, 8), torch.empty(2, 3, 7, 8)
    formulas = private.flop_formulas()
    attention = formulas[torch.ops.aten._scaled_dot_product_flash_attention_for_cpu]
    assert attention(q, k, k, out_val=None) == 2 * 2 * (2 * 3 * 5 * 7 * 8)  # queries by keys, weights by values
    product = formulas[torch.ops.aten.mm]
    assert product(torch.empty(2, 3), torch.empty(3, 4), out_val=torch.empty(2, 4)) == 2 * 2 * 3 * 4


def test_backward_within_modes():
    x = torch.ones(3, requires_grad=True)
    private.backward_within_modes((x * torch.arange(3.0)).sum())
    assert x.grad is not None
    assert x.grad.tolist() == [0, 1, 2]


def test_float32_parts():
    assert private.float32_parts(T5EncoderModel) == ("wo",)
    assert private.float32_parts(nn.Linear) == ()


def test_float32_layers():
    with torch.device("meta"):
        network = WanTransformer3DModel(num_layers=1)
    assert {"time_embedder", "scale_shift_table", "norm2"} <= set(private.float32_layers(network))
    assert private.float32_layers(nn.Sequential(network)) == private.float32_layers(network)
    assert private.float32_layers(nn.Linear(1, 1)) == ()


def test_cut_too():
    """What it calls is DeepSpeed's; test_sharding cuts with it."""
    made: list[list[nn.Parameter]] = []
    cut = SimpleNamespace(convert_to_zero_parameters=lambda param_list: made.append(param_list))
    parameter = nn.Parameter(torch.zeros(2))
    private.cut_too(cut, parameter)
    assert made == [[parameter]]
    assert "convert_to_zero_parameters" in inspect.getsource(deepspeed.zero.Init)


def test_forget_accelerator():
    private.forget_accelerator(processes=True)
    Accelerator(cpu=True, gradient_accumulation_steps=3)
    assert AcceleratorState._shared_state
    private.forget_accelerator(processes=False)
    assert not AcceleratorState._shared_state
    assert PartialState._shared_state
    assert Accelerator(cpu=True).gradient_accumulation_steps == 1
    private.forget_accelerator(processes=True)
    assert not PartialState._shared_state


def test_hooked_forward():
    layer = nn.Linear(2, 2)
    own = layer.forward
    assert private.HOOKED_FORWARD not in vars(layer)
    add_hook_to_module(layer, ModelHook())
    assert vars(layer)[private.HOOKED_FORWARD] == own
    remove_hook_from_module(layer)
    assert private.HOOKED_FORWARD not in vars(layer)


def test_active_adapter():
    network = nn.Sequential(nn.Linear(4, 4))
    for name in ("one", "other"):
        inject_adapter_in_model(LoraConfig(target_modules=["0"], r=2, init_lora_weights=False), network, name)
    (layer,) = (module for module in network.modules() if isinstance(module, LoraLayer))
    x, answers = torch.ones(1, 4), {}
    for active in (["one"], ["other"], ["one", "other"], []):
        private.set_active_adapter(layer, active)
        assert layer.active_adapters == private.active_adapter(layer) == active
        answers["+".join(active)] = network(x).detach() - layer.base_layer(x).detach()
    assert not answers[""].any()
    assert answers["one"].any()
    torch.testing.assert_close(answers["one+other"], answers["one"] + answers["other"])


def test_block_facts():
    facts = private.block_facts(CogVideoXBlock)
    arguments = inspect.signature(CogVideoXBlock.forward).parameters
    assert {facts.hidden_states_argument_name, facts.encoder_hidden_states_argument_name} <= set(arguments)
    assert {facts.return_hidden_states_index, facts.return_encoder_hidden_states_index} == {0, 1}
    with pytest.raises(ValueError):
        private.block_facts(nn.Linear)


@pytest.mark.parametrize(
    ("kind", "patterns"),
    [
        (UNet2DConditionModel, {"norm"}),
        (CogVideoXTransformer3DModel, {"patch_embed", "norm"}),
        (WanTransformer3DModel, {"time_embedder", "scale_shift_table", "patch_embedding"}),
    ],
)
def test_exact_layers(kind, patterns):
    with torch.device("meta"):
        network = kind(**({"num_layers": 1} if "num_layers" in inspect.signature(kind).parameters else {}))
    assert patterns <= set(private.exact_layers(network))


def test_prepared_branches():
    guider, network = ClassifierFreeGuidance(), nn.Linear(2, 2)
    guider.set_state(step=0, num_inference_steps=2, timestep=torch.tensor(999))
    counts = []
    for _ in range(2):
        guider.prepare_models(network)
        counts.append(private.prepared_branches(guider))
        guider.cleanup_models(network)
    guider.set_state(step=1, num_inference_steps=2, timestep=torch.tensor(499))
    guider.prepare_models(network)
    assert [*counts, private.prepared_branches(guider)] == [1, 2, 1]


def test_execution_device():
    network = UNet2DModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(4,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        norm_num_groups=2,
    )
    assert private.execution_device(DDPMPipeline(network, DDPMScheduler())) == torch.device("cpu")
    assert private.execution_device(object()) is None


def test_position_table():
    size = {"sample_width": 8, "sample_height": 8, "sample_frames": 9, "max_text_seq_length": 3}
    embed = CogVideoXPatchEmbed(patch_size=2, embed_dim=32, use_learned_positional_embeddings=False, **size)
    table = private.position_table(embed, 8, 8, 9, torch.device("cpu"))
    text, clip = torch.zeros(1, 3, 4096), torch.zeros(1, 3, 16, 8, 8)
    without = embed.text_proj(text).shape[1] + 3 * 4 * 4
    assert table.shape == (1, without, 32)
    added = embed(text, clip) - _without_positions(embed, text, clip)
    torch.testing.assert_close(added, table.float(), atol=1e-6, rtol=0)


def _without_positions(embed, text, clip):
    embed.use_positional_embeddings = False
    plain = embed(text, clip)
    embed.use_positional_embeddings = True
    return plain


@pytest.fixture(scope="module")
def asked_of_zero(tmp_path_factory) -> dict[str, str | None]:
    """What DeepSpeed does to a process is for good, so it has one of its own."""
    answers = tmp_path_factory.mktemp("zero") / "answers.json"
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    command = [sys.executable, str(ZERO), str(answers)]
    done = subprocess.run(command, env={**os.environ, **alone}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(answers.read_text())


@pytest.mark.parametrize("name", NAMES_OF_ZERO)
def test_name_of_zero(asked_of_zero, name):
    assert asked_of_zero[name] is None


def test_every_name_is_asked_for():
    """What is in the module stands in the tests of it."""
    own = {n for n, value in vars(private).items() if getattr(value, "__module__", None) == private.__name__}
    written = Path(__file__).read_text() + ZERO.read_text()
    assert not [name for name in sorted(own) if f"private.{name}" not in written]
