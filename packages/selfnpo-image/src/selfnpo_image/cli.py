"""`selfnpo-image`: the commands for image models."""

import sys

from selfnpo_core.commands.program import program
from selfnpo_core.commands.running import run
from selfnpo_image.family import IMAGE

selfnpo_image = program(IMAGE)


def main() -> None:
    """Entry point."""
    sys.exit(run(selfnpo_image, name=IMAGE.program))


if __name__ == "__main__":
    main()
