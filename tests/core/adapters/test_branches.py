"""The table of pipelines against diffusers' own source, and the rows it gives."""

import inspect
import re
from contextlib import ExitStack
from typing import Any

import diffusers
import pytest
import torch

from selfnpo_core import InputError
from selfnpo_core.adapters.branches import LAYOUTS, Branches

BATCHED = {
    "negative first": r"\w*uncond\w*, \w+ = \w+(\.float\(\))?\.chunk\(2\)",
    "positive first": r"cat\(\s*\[prompt_embeds\w*, negative_prompt_embeds|= prompt_embeds \+ negative_prompt_embeds",
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_table_is_what_diffusers_does(name: str) -> None:
    pipeline, layout = getattr(diffusers, name), LAYOUTS[name]
    call, encode = inspect.getsource(pipeline.__call__), inspect.getsource(pipeline.encode_prompt)
    found = [order for order, pattern in BATCHED.items() if re.search(pattern, call)]
    if 'cache_context("cond"' in call and 'cache_context("uncond"' in call:
        found.append("separate")
    assert found == [layout.order]
    assert "maybe_free_model_hooks()" in call
    assert f"self.{layout.counted_by}(" in call
    assert set(layout.denoisers) <= set(inspect.signature(pipeline.__init__).parameters)
    returned = re.findall(r"\n        return (.+)", encode)[-1].split(", ")
    for negative, positive in layout.embeds.items():
        assert returned[negative] == f"negative_{returned[positive]}"
    assert sum(part.startswith("negative") for part in returned) == len(layout.embeds)


class Pipeline:
    """As much of a pipeline as is watched."""

    def __init__(self) -> None:
        self.transformer = torch.nn.Linear(1, 1)

    def encode_prompt(self, prompt: list[str], do_classifier_free_guidance: bool = True) -> tuple[torch.Tensor, ...]:
        return tuple(torch.full((len(prompt),), float(place)) for place in range(4))

    def maybe_free_model_hooks(self) -> None:
        pass


def watched(name: str, **given: Any) -> tuple[Branches, Any, ExitStack]:
    pipe, undo = type(name, (Pipeline,), {})(), ExitStack()
    branches = Branches(pipe, "null", check=lambda: None)
    branches.watch(undo)
    pipe.encode_prompt(**given)
    return branches, pipe, undo


def test_rows_of_positive_first_pipelines() -> None:
    branches, _, _ = watched("LuminaPipeline", prompt=["a", "b"])
    branches.enter(4)
    assert branches.blocks(4 * 7) == [(slice(0, 14), 0.0), (slice(14, 28), 1.0)]
    branches.enter(2)
    assert branches.blocks(2) == [(slice(0, 2), 0.0)]


def test_rows_of_negative_first_pipelines() -> None:
    branches, _, _ = watched("CogVideoXPipeline", prompt=["a", "b", "c"])
    branches.enter(6)
    assert branches.blocks(6 * 5) == [(slice(0, 15), 1.0), (slice(15, 30), 0.0)]
    with pytest.raises(InputError, match="a layer got 7 rows in a batch of 6"):
        branches.blocks(7)
    for batch in (1, 4, 9, 12):
        with pytest.raises(InputError, match=f"batch of {batch} for 3 prompts with guidance on"):
            branches.enter(batch)


def test_prompts_are_forgotten_at_the_end_of_a_call_and_all_is_put_back() -> None:
    branches, pipe, undo = watched("LTXPipeline", prompt=["a"], do_classifier_free_guidance=False)
    branches.enter(1)
    assert branches.blocks(3) == [(slice(0, 3), 0.0)]
    with pytest.raises(InputError, match="batch of 2 for 1 prompts with guidance off"):
        branches.enter(2)
    pipe.maybe_free_model_hooks()
    with pytest.raises(InputError, match="outside of a call"):
        branches.enter(1)
    undo.close()
    assert set(vars(pipe)) == {"transformer"}
    assert "_selfnpo" not in vars(pipe.transformer)
