"""The same prompts and seeds with and without negative weights, side by side.

OUTPUT/without/  OUTPUT/with/   sample folders          OUTPUT/00000-SEED.mp4   pairs under a caption
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from selfnpo_core.errors import InputError
from selfnpo_core.sample_folder import SampleFolder
from selfnpo_core.side_by_side import pair
from selfnpo_video.sampling import Job, draw_into, records
from selfnpo_video.video_files import read_video, write_video

WITHOUT, WITH = "without", "with"


def compare(job: Job, output: str | Path) -> None:
    """Draw both arms and put them side by side."""
    if job.negative is None:
        raise InputError("nothing to compare with: give the negative weights as --npo RUN|FILE")
    output, pipe = Path(output), job.load()
    with SampleFolder(output, records(job, pipe), beside=(WITHOUT, WITH)) as pairs:
        draw_into(pipe, replace(job, negative=None), output / WITHOUT)
        draw_into(pipe, job, output / WITH)
        scale = f"scale {job.settings.guidance_scale:g}"
        titles = scale, f"{scale}, negative weights {job.negative.beta:g}"
        for index in pairs.missing:
            name = pairs.records[index]["file"]
            both = (read_video(output / arm / name)[0] for arm in (WITHOUT, WITH))
            frames = beside(*both, titles, job.prompts[index])
            pairs.add(index, partial(write_video, frames=frames, fps=job.fps, format=job.format))


def beside(left: np.ndarray, right: np.ndarray, titles: tuple[str, str], caption: str) -> Iterator[np.ndarray]:
    """Frames of both clips (F, H, W, 3) beside each other; sides are even numbers, as H.264 wants them."""
    for one, other in zip(left, right, strict=True):
        picture = pair(Image.fromarray(one), Image.fromarray(other), titles, caption)
        width, height = (side + side % 2 for side in picture.size)
        sheet = Image.new("RGB", (width, height), "white")
        sheet.paste(picture)
        yield np.asarray(sheet)
