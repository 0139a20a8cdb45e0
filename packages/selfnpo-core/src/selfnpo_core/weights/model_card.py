"""The README.md of an npo folder, from its npo_config.json."""

from collections.abc import Mapping
from typing import Any

import yaml

from selfnpo_core.errors import InputError
from selfnpo_core.weights.npo_rule import NpoRule

_LORA_USE = """\
```python
from diffusers import DiffusionPipeline
from selfnpo_core import NegativeAdapters

pipe = DiffusionPipeline.from_pretrained("{base}")
pipe.load_lora_weights("PATH/OF/THIS/FOLDER", adapter_name="npo")
with NegativeAdapters.attach(pipe, {{"npo": {beta}}}, condition="{condition}"):
    image = pipe("a prompt", guidance_scale={scale}).images[0]
```

Loaded without `NegativeAdapters`, the LoRA acts on both branches of the guidance and makes pictures *worse*."""

_MADE = "## How it was made\n"
PLACES = frozenset({"output", "prompts", "model", "embeddings_cache", "trackers", "project"})
"""Keys of a recipe that tell of the machine it ran on, and nothing of the weights: a card may be published."""

_FULL_USE = """\
```python
from diffusers import DiffusionPipeline
from selfnpo_core import attach_npo

pipe = DiffusionPipeline.from_pretrained("{base}")
with attach_npo(pipe, "PATH/OF/THIS/FOLDER"{how}):
    image = pipe("a prompt", guidance_scale={scale}).images[0]
```"""

MEASURED, MEASURED_END = "<!-- measured -->", "<!-- /measured -->"
"""Between them, what `report` tells of these very weights. `train` writes a card without it."""


def with_measured(card: str, section: str) -> str:
    """A card with this section, Markdown from its heading on, in place of an earlier one; all else stays as it is."""
    whole = f"{MEASURED}\n{section.strip()}\n{MEASURED_END}"
    if (card.count(MEASURED), card.count(MEASURED_END)) == (1, 1) and card.index(MEASURED) < card.index(MEASURED_END):
        before, _, rest = card.partition(MEASURED)
        return before + whole + rest.partition(MEASURED_END)[2]
    if MEASURED in card or MEASURED_END in card:
        raise InputError(f"the model card has {MEASURED} without its {MEASURED_END}, or twice: remove both by hand")
    before, heading, after = card.partition(_MADE)
    return f"{before}{whole}\n\n{heading}{after}" if heading else f"{card.rstrip()}\n\n{whole}\n"


def model_card(config: Mapping[str, Any]) -> str:
    """Markdown with the front matter that model hubs read.

    Not by the hub client's ModelCardData, which writes a base model's name beyond ASCII in other bytes.
    """
    recommended, recipe = config["recommended"], config["recipe"]
    low, high = recommended["guidance_scale"]
    rule = NpoRule(**recommended.get("rule", {}))
    use = _LORA_USE if config["train"] == "lora" and rule == NpoRule() else _FULL_USE
    how = f', beta={recommended["beta"]}, condition="{config["negative_condition"]}"' if rule == NpoRule() else ""
    kind = f"a LoRA of rank {config['rank']}" if config["train"] == "lora" else "an offset of all weights (bf16)"
    front = {
        "library_name": "diffusers",
        "base_model": config["base_model"],
        "tags": ["self-npo", "negative-guidance", config["family"], *(["lora"] if config["train"] == "lora" else [])],
    }
    used = use.format(
        base=config["base_model"],
        beta=recommended["beta"],
        how=how,
        condition=config["negative_condition"],
        scale=(low + high) / 2,
    )
    null = config.get("null_prompt")
    advice = (
        "" if null is None else f"\nGive the pipeline the null prompt of the training, as `negative_prompt`: {null}"
    )
    last = f"rule {rule}.{advice}"
    settings = "\n".join(f"| {key} | {value} |" for key, value in recipe.items() if key not in PLACES)
    return f"""---
{yaml.safe_dump(front, sort_keys=False).strip()}
---

# Negative weights for {config["base_model"]}

Self-NPO ([2505.11777](https://arxiv.org/abs/2505.11777)) trains a diffusion model on its own weak samples, from
prompts only, and uses the result on the negative branch of classifier-free guidance, which then leads away from it.
This is {kind}, made from {config["base_model"]} (weights sha256 `{config["base_hash"]}`).

## Use

{used}

Recommended: beta {recommended["beta"]}, alpha {recommended["alpha"]}, guidance scale {low} to {high}, {last}

{_MADE}
| setting | value |
| --- | --- |
{settings}
"""
