"""A run of the toy family in a process that a launcher has started; the tests compare it with one that none has."""

import sys

from tests.core.training.toy import PROMPTS, ToyBackbone, toy_recipe

from selfnpo_core.training import train

if __name__ == "__main__":
    output, engine = sys.argv[1:]
    train(ToyBackbone(), toy_recipe(engine=engine), PROMPTS, output, progress=False)
