"""What a run's trackers are shown of its samples: the sheet as a picture, and clips so that they move.

TensorBoard plays animated pictures and no video; Weights & Biases plays the run's own file.
"""

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def show_samples(
    trackers: Iterable[Any], sheet: Image.Image, step: int, clip: Path | None, frames: Sequence[Image.Image], fps: int
) -> None:
    """To Accelerate's trackers. clip: the file in which the sheets `frames` move, `fps` of them a second."""
    for tracker in trackers:
        if tracker.name == "tensorboard":
            tracker.log_images({"samples": np.asarray(sheet)[None]}, step=step, dataformats="NHWC")
            if clip is not None:
                _animate(tracker.writer, "clips", frames, fps, step)
        elif tracker.name == "wandb":
            tracker.log_images({"samples": [sheet]}, step=step)
            if clip is not None:
                import wandb

                tracker.log({"clips": wandb.Video(str(clip), format="mp4")}, step=step)


def _animate(writer: Any, name: str, frames: Sequence[Image.Image], fps: int, step: int) -> None:
    """The writer's own `add_video` needs moviepy to make the same GIF."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    made = io.BytesIO()
    frames[0].save(made, "GIF", save_all=True, append_images=frames[1:], duration=round(1000 / fps), loop=0)
    width, height = frames[0].size
    picture = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=made.getvalue())
    writer.file_writer.add_summary(Summary(value=[Summary.Value(tag=name, image=picture)]), step)
