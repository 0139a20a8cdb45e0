"""What is asked of every arm, and which of a sample's attributes are right."""

import pytest
import torch
from tests.core.experiments.dots import Dots

from selfnpo_core.worlds.world import Judges, Task, correct

WORLD = Dots()


def test_tasks_of_other_seeds_share_nothing():
    one, other = Task.draw(WORLD, 50, 2), Task.draw(WORLD, 50, 3)
    assert not set(one.seeds) & set(other.seeds)
    assert one.prompts != other.prompts


def test_a_task_is_its_seeds_and_its_captions_are_of_its_labels():
    one, same = Task.draw(WORLD, 20, 4), Task.draw(WORLD, 20, 4)
    assert (one.seeds, one.prompts) == (same.seeds, same.prompts)
    assert [WORLD.parse_caption(text) for text in one.prompts] == one.labels.tolist()
    assert len(set(one.seeds)) == 20


def test_what_a_caption_does_not_name_is_right():
    logits = [torch.tensor([[2.0, 1.0], [2.0, 1.0], [1.0, 2.0]]), torch.tensor([[0.0, 1.0, 0.0]] * 3)]
    labels = torch.tensor([[0, 1], [1, -1], [-1, 2]])
    assert correct(logits, labels).tolist() == [[True, True], [False, True], [True, False]]


def test_judges_that_were_put_there_come_before_the_shipped_ones(monkeypatch):
    world, own = Dots(), Judges(oracle=None, preference=None, reference=None)
    monkeypatch.setattr(Dots, "shipped_judges", lambda self: pytest.fail("the shipped judges were read"))
    world.judges = own
    assert world.judges is own
