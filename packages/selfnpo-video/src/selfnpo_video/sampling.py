"""`sample`: what its options ask for, as a job, and the clips of a job into a folder."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from selfnpo_core.errors import InputError, RunError
from selfnpo_core.models.lengths import say_what_is_cut
from selfnpo_core.models.prompts import picture_column, read_pictures
from selfnpo_core.models.sources import Source
from selfnpo_core.sampling import job, preference
from selfnpo_core.sampling.options import dtype_of, negative_prompt_of, scale_of
from selfnpo_core.sampling.preference import Preference, Prepared, Whole, prediction_beside, with_preference
from selfnpo_core.system.devices import DTYPES
from selfnpo_core.system.files import file_sha256
from selfnpo_core.system.pictures import read_picture
from selfnpo_video import memory
from selfnpo_video.clips import Settings, frames_of, latent_batches
from selfnpo_video.families import base_of, find_base
from selfnpo_video.first_frame import say_what_is_lost, size_from
from selfnpo_video.kept_latents import KeptLatents
from selfnpo_video.kinds import VideoBase
from selfnpo_video.loading import load_network, load_pipeline, local, stored_dtype, use_scheduler
from selfnpo_video.long import windowed
from selfnpo_video.models import KNOWN, find_source
from selfnpo_video.prompts import load_prompts
from selfnpo_video.shapes import ClipSize
from selfnpo_video.video_files import write_video

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger(__name__)
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True, kw_only=True)
class Job(job.Job[VideoBase, Settings]):
    """Everything that `sample` and `compare` were asked to draw."""

    fps: int
    format: str = "mp4"
    tiling: bool | None = None
    """Decode tile by tile: less memory, and slightly other pixels at the tiles' borders. `None`: where memory asks."""
    tiled: bool = False
    """Whether memory asks for it from the first clip on."""
    attention: str = "auto"
    scheduler: str = "auto"
    """ "ddim", "dpm", …, or the model's own."""
    images: Sequence[Path] | None = None
    """A first frame a prompt, for image-to-video checkpoints."""
    originals: Sequence[str] | None = None
    """What each prompt was enhanced from."""

    def load(self) -> Prepared:
        pipe = load_pipeline(self.base, dtype=DTYPES[self.dtype])
        use_scheduler(pipe, self.base.kind, self.scheduler)
        say_what_is_cut(self.texts, {"text_encoder": (pipe.tokenizer, self.base.tokens)})
        prepared = with_preference(pipe, "transformer", self, lambda name: find_preference(name, self.base))
        self.base.kind.use_attention(pipe.transformer, self.attention, self.device, DTYPES[self.dtype])
        if self.tiling or self.tiled:
            pipe.vae.enable_tiling()
        if self.device.type != "cpu":  # T5 and transformer do not fit together
            pipe.enable_model_cpu_offload(device=self.device)
        return prepared


def plan(options: Mapping[str, Any]) -> Job:
    """A job from the options of the command line."""
    if not options["model"]:
        raise InputError("--model is missing: give a known name (see `models`), a diffusers folder or a hub id")
    table = options["prompts"]
    column = None if table in (None, "builtin") else picture_column(table)
    load = partial(load_prompts, apart=() if column is None else (column,))
    shared, npo_config = job.asked(options, load)  # before anything is asked of a hub
    base = find_base(options["model"], options["model_config"])
    originals = _originals(options, shared["prompts"])
    device, negative = shared["device"], shared["negative"]
    images = first_frames(base, options, column, len(shared["prompts"]))
    pictures = [read_picture(image) for image in dict.fromkeys(images or ())]
    picture = pictures[0] if pictures else None  # its shape is the clips', where a model takes more than one
    _check_request(base, options, picture)  # before it is fetched
    base = local(base)
    size = _check_request(base, options, picture)
    for shown in {each.size: each for each in pictures}.values():
        say_what_is_lost(shown, size, options["fit"])
    known = base.known or KNOWN[base.kind.example]
    best = known.dtype if base.known else _DTYPE_NAMES.get(stored_dtype(base), known.dtype)
    dtype = dtype_of(options["dtype"], device, best)
    _say_what_is_unusual(base, options, size)
    scale = scale_of(options, npo_config, known.guidance_scale)
    sampler = memory.Sampler(
        base=base,
        rows=(2 if scale > 1 and base.kind.branches_together else 1) * (options["batch_size"] or 1),
        dtype=DTYPES[dtype],
        device=device,
        window=options["window"],
        full_negative=negative is not None and negative.full,
        tiling=bool(options["tiling"]),
    )
    tiled = options["tiling"] is None and sampler.wants_tiles(size)
    if tiled:
        log.warning("clips of %s are decoded tile by tile: whole ones do not fit on %s (--no-tiling)", size, device)
    replace(sampler, tiling=sampler.tiling or tiled).check(size)
    return Job(
        base=base,
        settings=Settings(
            guidance_scale=scale,
            steps=options["steps"] or known.steps,
            size=size,
            negative_prompt=negative_prompt_of(options, negative, npo_config),
            dynamic_guidance=options["dynamic_guidance"],
            batch_size=options["batch_size"] or 1,
            window=options["window"],
            window_place=known.window_place if options["window_place"] is None else options["window_place"],
            fit=options["fit"],
        ),
        dtype=dtype,
        fps=options["fps"] or known.fps,
        format=options["format"],
        tiling=options["tiling"],
        tiled=tiled,
        attention=options["attention"],
        scheduler=options["scheduler"],
        originals=originals,
        images=images,
        **shared,
    )


def find_preference(name: str, base: VideoBase) -> Preference:
    """What `--preference` stands for, for this base: see `selfnpo_core.sampling.preference`."""

    def whole(source: Source) -> Whole:
        tuned = local(base_of(source))
        return Whole(
            denoiser=load_network(tuned),
            prediction_type=prediction_beside(tuned.folder),
            encoders={"text_encoder": tuned.folder / "text_encoder"},
        )

    return preference.find(name, network=base.kind.network, component="transformer", locate=find_source, whole=whole)


def sample(asked: Job, output: str | Path) -> int:
    """Draw the job's clips into a folder; returns how many were drawn now. Those that are there are kept."""
    return draw_into(asked.load(), asked, output)


def draw_into(prepared: Prepared, asked: Job, output: str | Path) -> int:
    """As `sample`, on a pipeline that is loaded already."""
    output = Path(output)
    lines = records(asked, prepared.pipe)

    def draw(numbers: Sequence[int]) -> Iterator[tuple[int, job.Write]]:
        return drawn(prepared.pipe, asked, numbers, output, [lines[i] for i in numbers])

    with attached(prepared, asked):
        count = job.fill(output, lines, draw, "clip")
    KeptLatents(output).clear()
    return count


def drawn(
    pipe: Any, asked: Job, numbers: Sequence[int], output: Path, wanted: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[int, job.Write]]:
    """Of clips of the job by their numbers: index among these and what writes the clip.

    wanted: their records in the folder `output`, where a batch's latents are before any is decoded, and until its clip
    is written. What is denoised already comes first.
    """
    kept, todo = KeptLatents(output), []
    for index, record in enumerate(wanted):
        if (latents := kept.read(record)) is None:
            todo.append(index)
            continue
        yield index, partial(_write, pipe, asked, latents, record)
        kept.drop(record)
    if len(todo) < len(wanted):
        log.info("%d clips were denoised before, and were only decoded", len(wanted) - len(todo))
    left = [numbers[index] for index in todo]
    some = [asked.prompts[i] for i in left], [asked.seeds[i] for i in left]
    images = None if asked.images is None else [asked.images[i] for i in left]
    for batch in latent_batches(pipe, *some, asked.settings, images=images):
        for index, latents in batch:
            kept.keep(wanted[todo[index]], latents)
        for index, latents in batch:
            record = wanted[todo[index]]
            yield todo[index], partial(_write, pipe, asked, latents, record)
            kept.drop(record)


def _write(pipe: Any, asked: Job, latents: Tensor, record: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
    """Decode a clip into a file, by tiles if whole frames do not fit. Returns what its line says of that."""
    name = f"the clip of seed {record['seed']}"
    for _ in range(2):
        if _is_written(pipe, asked, latents, name, path):
            return {"tiled": True} if pipe.vae.use_tiling and not asked.tiling else {}
        if pipe.vae.use_tiling or asked.tiling is False:
            break
        log.warning("out of memory while decoding %s: it and what follows is decoded tile by tile", name)
        pipe.vae.enable_tiling()
    how = "whole: leave --no-tiling out" if asked.tiling is False else "tile by tile: free some memory"
    raise RunError(
        f"out of memory while decoding {name} {how}, and repeat the command; what is denoised is kept, and is only "
        "decoded then"
    )


def _is_written(pipe: Any, asked: Job, latents: Tensor, name: str, path: Path) -> bool:
    """False if that took more memory than there is; nothing of it is held then."""
    try:
        write_video(path, frames_of(pipe, latents, name=name), fps=asked.fps, format=asked.format)
    except torch.OutOfMemoryError:
        pass
    else:
        return True
    if asked.device.type == "cuda":
        torch.cuda.empty_cache()
    return False


@contextmanager
def attached(prepared: Prepared, asked: Job) -> Iterator[None]:
    """With the job's windows and negative weights on the pipeline."""
    with ExitStack() as stack:
        if asked.settings.window is not None:
            window = asked.base.compression.latent_window(asked.settings.window)
            place = asked.settings.window_place
            stack.enter_context(windowed(prepared.pipe.transformer, window, place=place, time=asked.base.kind.time))
        if asked.negative is not None:
            stack.enter_context(asked.negative.attach(prepared.pipe, prepared.eta))
        yield


def records(asked: Job, pipe: Any) -> list[dict[str, Any]]:
    """A line of metadata.jsonl a clip."""
    settings, size, images = asked.settings, asked.settings.size, asked.images
    how = {
        "dynamic_guidance": settings.dynamic_guidance,
        "steps": settings.steps,
        "frames": size.frames,
        "height": size.height,
        "width": size.width,
        "window": settings.window,
        "window_place": None if settings.window is None else settings.window_place,
        "fps": asked.fps,
        "tiling": bool(asked.tiling),
    }
    hashes = {image: file_sha256(image) for image in dict.fromkeys(images or ())}
    each: Sequence[Path | None] = images or [None] * len(asked.prompts)
    given = [
        {
            "image": None if image is None else str(image),
            "image_sha256": None if image is None else hashes[image],
            "fit": None if image is None else settings.fit,
        }
        for image in each
    ]
    lines = job.records(asked, pipe, suffix=asked.format, how=how, given=given)
    if asked.originals is None:
        return lines
    return [{**line, "original_prompt": text} for line, text in zip(lines, asked.originals, strict=True)]


def _originals(options: Mapping[str, Any], prompts: Sequence[str]) -> list[str] | None:
    """--original-prompts, one for each of the prompts. Raises `InputError` for more or fewer."""
    name, count = options["original_prompts"], options["count"]
    if name is None:
        return None
    found = load_prompts(name, options["model"])
    if len(found) * count != len(prompts):
        raise InputError(
            f"--original-prompts {name} has {len(found)} prompts, and there are {len(prompts) // count} to draw: give "
            "one for each, in their order"
        )
    return [text for text in found for _ in range(count)]


def first_frames(base: VideoBase, options: Mapping[str, Any], column: str | None, count: int) -> list[Path] | None:
    """A first frame for each of `count` clips: --image for all, or what the table of prompts has in `column`.

    None for text to video. Raises `InputError` for one that is missing or too many.
    """
    name, image, table = base.name, options["image"], options["prompts"]
    if not base.from_image:
        if image is not None:
            raise InputError(f"model {name} takes no image: leave --image out, or use an image-to-video model")
        if column is not None:
            log.info("prompts: column '%s' of %s is not used, as model %s takes no image", column, table, name)
        return None
    if image is not None and column is not None:
        raise InputError(
            f"--image is a first frame for all, and the column '{column}' of {table} has one a prompt: give one of both"
        )
    if column is not None:
        return [each for each in read_pictures(table, column) for _ in range(options["count"])]
    if image is None:
        raise InputError(
            f"model {name} turns an image into a video: give the first frame as --image FILE, or a column 'image' in a "
            "table of prompts"
        )
    return [Path(image)] * count


def _check_request(base: VideoBase, options: Mapping[str, Any], picture: "Image | None") -> ClipSize:
    """The clips' size, where a picture tells it that of the first. Raises `InputError` for one that cannot be drawn."""
    name, window = base.name, options["window"]
    base.kind.check_scheduler_word(options["scheduler"])
    base.kind.call(base.transformer, dynamic_guidance=options["dynamic_guidance"])  # refuses what it has not
    if base.from_image and window is not None:
        raise InputError(f"--window is for text to video: {name} knows its first frame only there")
    if picture is None or (options["height"] and options["width"]):
        size = base.size_of(options["frames"], options["height"], options["width"])
    else:
        own = base.size_of(options["frames"], None, None)
        size = size_from(picture, own, base.compression, (options["height"], options["width"]))
    base.compression.check(size)
    if window is not None:
        base.compression.latent_window(window)
    return size


def _say_what_is_unusual(base: VideoBase, options: Mapping[str, Any], size: ClipSize) -> None:
    """In a line each, what can be asked for and seldom gives good clips."""
    trained, seen = base.trained_frames, min(size.frames, options["window"] or size.frames)
    if trained is not None and seen > trained:
        instead = "" if base.from_image else f": --window {trained} draws them piece by piece"
        log.warning(
            "model %s was trained on %d frames, and is to see %d at a time%s", base.name, trained, seen, instead
        )
    own = str(base.scheduler.get("_class_name")).lower()
    if options["dynamic_guidance"] and "ddim" in (own if options["scheduler"] == "auto" else options["scheduler"]):
        log.warning(
            "dynamic guidance is used with DPM in CogVideoX's own sampling, and here with DDIM: --scheduler dpm"
        )
