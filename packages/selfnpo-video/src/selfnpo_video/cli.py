"""`selfnpo-video`: the commands for video models."""

import sys

from selfnpo_core.commands.program import program
from selfnpo_core.commands.running import run
from selfnpo_video.family import VIDEO

selfnpo_video = program(VIDEO)


def main() -> None:
    """Entry point."""
    sys.exit(run(selfnpo_video, name=VIDEO.program))


if __name__ == "__main__":
    main()
