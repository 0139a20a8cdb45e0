"""The model card of negative weights: what hubs read, how it is used, and a section of what was measured."""

import pytest
import yaml

from selfnpo_core.errors import InputError
from selfnpo_core.weights.model_card import model_card, with_measured


def config(**changes):
    recommended = {"beta": 0.5, "alpha": 1.0, "guidance_scale": [3.0, 8.0]}
    made = {"family": "sd15", "base_model": "some/model", "base_hash": "abc", "train": "lora", "rank": 4}
    recipe = {"steps": 9, "output": "/home/somebody/run", "prompts": "secret.txt"}
    return {**made, "recipe": recipe, "recommended": recommended, "negative_condition": "null", **changes}


@pytest.mark.parametrize("name", ["some/model", "grö/ße", "a: b #c", "- d"])
def test_hubs_read_the_front_matter(name):
    _, front, body = model_card(config(base_model=name)).split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "diffusers",
        "base_model": name,
        "tags": ["self-npo", "negative-guidance", "sd15", "lora"],
    }
    assert f"# Negative weights for {name}\n" in body


def test_a_card_says_how_the_weights_are_used_and_nothing_of_the_machine():
    lora, full = model_card(config()), model_card(config(train="full", rank=None))
    assert 'NegativeAdapters.attach(pipe, {"npo": 0.5}, condition="null")' in lora
    assert "guidance_scale=5.5" in lora
    assert 'attach_npo(pipe, "PATH/OF/THIS/FOLDER", beta=0.5' in full
    assert "lora" not in full.split("---\n")[1]
    assert "| steps | 9 |" in lora
    assert "somebody" not in lora
    assert "secret" not in lora
    assert "negative_prompt" not in lora
    assert "as `negative_prompt`: ugly, still\n" in model_card(config(null_prompt="ugly, still"))


def test_a_section_of_a_card() -> None:
    assert with_measured("a\n", "x") == "a\n\n<!-- measured -->\nx\n<!-- /measured -->\n"
    once = with_measured("a\n\n## How it was made\n\nb\n", "x")
    assert once == "a\n\n<!-- measured -->\nx\n<!-- /measured -->\n\n## How it was made\n\nb\n"
    assert with_measured(with_measured(once, "longer\ny"), "x") == once
    for damaged in (once.replace("<!-- measured -->", ""), once + once, "<!-- /measured --> <!-- measured -->"):
        with pytest.raises(InputError, match="remove both by hand"):
            with_measured(damaged, "x")
