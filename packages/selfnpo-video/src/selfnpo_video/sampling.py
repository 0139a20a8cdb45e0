"""`sample`: what its options ask for, as a job, and the clips of a job into a folder."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from selfnpo_core.errors import InputError
from selfnpo_core.models.sources import Source
from selfnpo_core.sampling import preference
from selfnpo_core.sampling.options import NO_NEGATIVE, Negative, dtype_of, negative_of, prompts_of, scale_of
from selfnpo_core.sampling.preference import Preference, kept_eta, prepare
from selfnpo_core.sampling.sample_folder import SampleFolder, sample_name
from selfnpo_core.system.devices import DTYPES, best_device
from selfnpo_core.system.files import file_sha256
from selfnpo_video import memory
from selfnpo_video.attention import use_attention
from selfnpo_video.clips import Settings, frames_of, latent_clips
from selfnpo_video.families import base_of, find_base
from selfnpo_video.kinds import VideoBase
from selfnpo_video.loading import load_network, load_pipeline, local
from selfnpo_video.long import windowed
from selfnpo_video.models import KNOWN, find_source
from selfnpo_video.prompts import load_prompts
from selfnpo_video.shapes import ClipSize
from selfnpo_video.video_files import write_video

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything that `sample` and `compare` were asked to draw."""

    base: VideoBase
    prompts: Sequence[str]
    seeds: Sequence[int]
    settings: Settings
    negative: Negative | None
    dtype: str
    fps: int
    format: str = "mp4"
    tiling: bool = False
    """Decode tile by tile: less memory, and slightly other pixels at the tiles' borders."""
    attention: str = "auto"
    image: Path | None = None
    """First frame, for image-to-video checkpoints."""
    preference: str | None = None
    """A preference-tuned LoRA or model, on both branches; see `selfnpo_core.sampling.preference`."""
    device: torch.device = field(default_factory=best_device)

    def load(self) -> Any:
        pipe = load_pipeline(self.base, dtype=DTYPES[self.dtype])
        prepare(pipe, "transformer", self, lambda name, _: find_preference(name, self.base))
        use_attention(pipe.transformer, self.attention, self.device, DTYPES[self.dtype])
        if self.tiling:
            pipe.vae.enable_tiling()
        if self.device.type != "cpu":  # T5 and transformer do not fit together
            pipe.enable_model_cpu_offload(device=self.device)
        return pipe


def plan(options: Mapping[str, Any]) -> Job:
    """A job from the options of the command line."""
    if not options["model"]:
        raise InputError("--model is missing: give a known name (see `models`), a diffusers folder or a hub id")
    base = find_base(options["model"], options["model_config"])
    device, image = best_device(options["device"]), options["image"]
    prompts = [text for text in prompts_of(options, load_prompts) for _ in range(options["count"])]
    negative, npo_config = negative_of(options)
    _check_picture(image)
    _check_request(base, options)  # before it is fetched
    base = local(base)
    size = _check_request(base, options)
    known = base.known or KNOWN[base.kind.example]
    dtype = dtype_of(options["dtype"], device, known.dtype)
    scale = scale_of(options, npo_config, known.guidance_scale)
    memory.Sampler(
        base=base,
        rows=(2 if scale > 1 else 1) * (options["batch_size"] or 1),
        dtype=DTYPES[dtype],
        device=device,
        window=options["window"],
        full_negative=negative is not None and negative.full,
        tiling=options["tiling"],
    ).check(size)
    return Job(
        base=base,
        prompts=prompts,
        seeds=[options["seed"] + i for i in range(len(prompts))],
        settings=Settings(
            guidance_scale=scale,
            steps=options["steps"] or known.steps,
            size=size,
            negative_prompt=options["negative_prompt"],
            dynamic_guidance=options["dynamic_guidance"],
            batch_size=options["batch_size"] or 1,
            window=options["window"],
            window_place=known.window_place if options["window_place"] is None else options["window_place"],
        ),
        negative=negative,
        dtype=dtype,
        fps=options["fps"] or known.fps,
        format=options["format"],
        tiling=options["tiling"],
        attention=options["attention"],
        image=None if image is None else Path(image),
        preference=options["preference"],
        device=device,
    )


def find_preference(name: str, base: VideoBase) -> Preference:
    """What `--preference` stands for, for this base: see `selfnpo_core.sampling.preference`."""

    def whole(source: Source) -> Any:
        return load_network(local(base_of(source)))

    return preference.find(name, network=base.kind.network, component="transformer", locate=find_source, whole=whole)


def sample(job: Job, output: str | Path) -> int:
    """Draw the job's clips into a folder; returns how many were drawn now. Those that are there are kept."""
    return draw_into(job.load(), job, output)


def draw_into(pipe: Any, job: Job, output: str | Path) -> int:
    """As `sample`, on a pipeline that is loaded already."""
    with ExitStack() as stack:
        attached(stack, pipe, job)
        return _draw_missing(pipe, job, output)


def attached(stack: ExitStack, pipe: Any, job: Job) -> None:
    """Put the job's windows and negative weights on the pipeline, until `stack` is closed."""
    if job.settings.window is not None:
        window = job.base.compression.latent_window(job.settings.window)
        stack.enter_context(windowed(pipe.transformer, window, place=job.settings.window_place))
    if job.negative is not None:
        stack.enter_context(job.negative.attach(pipe, kept_eta(pipe)))


def _draw_missing(pipe: Any, job: Job, output: str | Path) -> int:
    with SampleFolder(output, records(job, pipe)) as folder:
        todo = folder.missing
        if len(todo) < len(job.prompts):
            log.warning("%s: %d clips are there already", output, len(job.prompts) - len(todo))
        some = [job.prompts[i] for i in todo], [job.seeds[i] for i in todo]
        bar = tqdm(total=len(todo), desc=Path(output).name, unit="clip", disable=not todo)
        for index, latents in latent_clips(pipe, *some, job.settings, image=job.image):
            write = partial(write_video, frames=frames_of(pipe, latents), fps=job.fps, format=job.format)
            folder.add(todo[index], write)
            bar.update()
    return len(todo)


def records(job: Job, pipe: Any) -> list[dict[str, Any]]:
    """A line of metadata.jsonl a clip: all that is needed to draw it again."""
    size = job.settings.size
    shared = {
        "negative_prompt": job.settings.negative_prompt,
        "guidance_scale": job.settings.guidance_scale,
        "dynamic_guidance": job.settings.dynamic_guidance,
        "steps": job.settings.steps,
        "frames": size.frames,
        "height": size.height,
        "width": size.width,
        "window": job.settings.window,
        "window_place": None if job.settings.window is None else job.settings.window_place,
        "fps": job.fps,
        "tiling": job.tiling,
        "scheduler": type(pipe.scheduler).__name__,
        "model": job.base.name,
        "dtype": job.dtype,
        "image": None if job.image is None else str(job.image),
        "image_sha256": None if job.image is None else file_sha256(job.image),
        **preference.record(job.preference),
        **(job.negative.record if job.negative else NO_NEGATIVE),
    }
    return [
        {"file": sample_name(index, seed, job.format), "prompt": prompt, "seed": seed, **shared}
        for index, (prompt, seed) in enumerate(zip(job.prompts, job.seeds, strict=True))
    ]


def _check_request(base: VideoBase, options: Mapping[str, Any]) -> ClipSize:
    """The clips' size. Raises `InputError` for one that the model cannot draw, or an image missing or too many."""
    name, image, window = base.name, options["image"], options["window"]
    if base.from_image and image is None:
        raise InputError(f"model {name} turns an image into a video: give the first frame as --image FILE")
    if not base.from_image and image is not None:
        raise InputError(f"model {name} takes no image: leave --image out, or use an image-to-video model")
    if base.from_image and window is not None:
        raise InputError(f"--window is for text to video: {name} knows its first frame only there")
    size = base.size_of(options["frames"], options["height"], options["width"])
    base.compression.check(size)
    if window is not None:
        base.compression.latent_window(window)
    return size


def _check_picture(image: str | None) -> None:
    if image is None:
        return
    try:
        with Image.open(image) as picture:
            picture.convert("RGB")  # reads all of it; verify() would not
    except Exception as error:  # PIL raises several kinds
        raise InputError(f"{image} is no image that can be read ({type(error).__name__})") from None
