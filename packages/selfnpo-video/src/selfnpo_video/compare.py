"""The same prompts and seeds with and without negative weights, side by side.

OUTPUT/without/  OUTPUT/with/   sample folders          OUTPUT/00000-SEED.mp4   pairs under a caption
OUTPUT/metrics.json             of the demo model, whose world has judges
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from selfnpo_core.errors import InputError
from selfnpo_core.sampling.options import negative_words
from selfnpo_core.sampling.sample_folder import SampleFolder
from selfnpo_core.system.files import write_text
from selfnpo_video.sampling import Job, draw_into, records
from selfnpo_video.sheets import beside
from selfnpo_video.video_files import read_video, write_video

WITHOUT, WITH, METRICS = "without", "with", "metrics.json"


def compare(job: Job, output: str | Path) -> dict[str, Any] | None:
    """Draw both arms and put them side by side. Returns the metrics, where there are judges for the model."""
    if job.negative is None:
        raise InputError("nothing to compare with: give the negative weights as --npo RUN|FILE")
    output, prepared = Path(output), job.load()
    with SampleFolder(output, records(job, prepared.pipe), beside=(WITHOUT, WITH, METRICS)) as pairs:
        draw_into(prepared, replace(job, negative=None), output / WITHOUT)
        draw_into(prepared, job, output / WITH)
        scale = f"scale {job.settings.guidance_scale:g}"
        titles = scale, f"{scale}, {negative_words(job.negative.use)}"
        for index in pairs.missing:
            name = pairs.records[index]["file"]
            without, with_npo = (read_video(output / arm / name)[0] for arm in (WITHOUT, WITH))
            frames = beside(without, with_npo, titles, job.prompts[index])
            pairs.add(index, partial(write_video, frames=frames, fps=job.fps, format=job.format))
        if not job.base.shipped:
            return None
        clips = ([_clip(output / arm / record["file"]) for record in pairs.records] for arm in (WITHOUT, WITH))
        metrics = judge_demo(job.prompts, *clips)
        text = json.dumps({"schema": 1, **metrics}, indent=1) + "\n"
        write_text(output / METRICS, text)
        return metrics


def judge_demo(prompts: Sequence[str], without: Sequence[Tensor], with_npo: Sequence[Tensor]) -> dict[str, Any]:
    """What the judges of the demo's world say of two arms of clips (3, F, H, W) uint8."""
    from selfnpo_core.experiments.measure import compare_prompts
    from selfnpo_video.demo.moving import MovingThings

    return compare_prompts(MovingThings(), prompts, without, with_npo)


def _clip(file: Path) -> Tensor:
    return torch.from_numpy(read_video(file)[0]).permute(3, 0, 1, 2)
