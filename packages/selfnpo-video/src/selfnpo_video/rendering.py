"""Many clips for people to look at: every prompt at several guidance scales, with and without negative weights.

OUTPUT/00003-42-g6-with.mp4    a clip: prompt 3, seed 42, scale 6
OUTPUT/00003-42-grid-4-6.mp4   the prompt's clips: a column a scale, a row with and without
OUTPUT/metadata.jsonl          a line a clip, all that is needed to draw it again
OUTPUT/index.html              a contact sheet that plays offline

The same command again goes on where it stopped; several processes (torchrun, accelerate launch) share the prompts.
"""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from selfnpo_core.errors import InputError
from selfnpo_core.sampling.options import negative_words
from selfnpo_core.sampling.preference import Prepared
from selfnpo_core.sampling.sample_folder import METADATA, SampleFolder, read_records
from selfnpo_video.kept_latents import KeptLatents
from selfnpo_video.sampling import Job, attached, drawn, records
from selfnpo_video.sheets import INDEX, grid, write_sheet
from selfnpo_video.video_files import read_video, write_video


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One clip of a prompt's grid."""

    scale: float
    negative: bool

    @property
    def name(self) -> str:
        return f"g{self.scale:g}-{'with' if self.negative else 'without'}"

    @property
    def title(self) -> str:
        return f"scale {self.scale:g}" + (", negative weights" if self.negative else "")


def shard_of_environment() -> tuple[int, int]:
    """(rank, processes) as torchrun and accelerate tell it."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def render(job: Job, scales: Sequence[float], output: str | Path, *, shard: tuple[int, int] | None = None) -> int:
    """Draw what is missing of this process's share; returns how many clips were drawn now."""
    output = Path(output)
    _check_scales(scales)
    prepared = job.load()
    cells = [Cell(scale=s, negative=n) for n in ((False, True) if job.negative else (False,)) for s in scales]
    arms = {cell: _arm(job, cell) for cell in cells}
    lines = {cell: records(arm, prepared.pipe) for cell, arm in arms.items()}
    wanted = [
        {**lines[cell][i], "file": f"{Path(lines[cell][i]['file']).stem}-{cell.name}{_suffix(job)}"}
        for i in range(len(job.prompts))
        for cell in cells
    ]
    grids = [_grid_name(wanted[i * len(cells)], cells[0], cells, job) for i in range(len(job.prompts))]
    beside = (*grids, *(path.name for path in output.glob("[0-9]*-grid-*")), INDEX)  # also those of other scales
    shard = shard or shard_of_environment()
    with SampleFolder(output, wanted, beside=beside, shard=shard, together=len(cells)) as folder:
        todo = folder.missing
        with tqdm(total=len(todo), desc=output.name, unit="clip", disable=not todo, position=shard[0]) as bar:
            for cell in cells:
                own = [k for k in todo if k % len(cells) == cells.index(cell)]
                _draw_cell(prepared, arms[cell], folder, own, len(cells), bar)
        if job.format != "frames" and len(cells) > 1:
            _write_grids(folder, wanted, cells, grids, job, shard)
        write_index(output)
    if all((output / record["file"]).exists() for record in wanted):  # those of other processes too
        KeptLatents(output).clear()
    return len(todo)


def _arm(job: Job, cell: Cell) -> Job:
    settings = replace(job.settings, guidance_scale=cell.scale)
    return replace(job, settings=settings, negative=job.negative if cell.negative else None)


def _draw_cell(prepared: Prepared, arm: Job, folder: SampleFolder, own: Sequence[int], cells: int, bar: Any) -> None:
    if not own:
        return
    with attached(prepared, arm):
        lines = [folder.records[k] for k in own]
        for index, write in drawn(prepared.pipe, arm, [k // cells for k in own], folder.path, lines):
            folder.add(own[index], write)
            bar.update()


def _write_grids(
    folder: SampleFolder,
    wanted: Sequence[Mapping[str, Any]],
    cells: Sequence[Cell],
    grids: Sequence[str],
    job: Job,
    shard: tuple[int, int],
) -> None:
    """A grid for every prompt of this process whose clips are all there."""
    output = folder.path
    for index, name in enumerate(grids):
        files = [output / wanted[index * len(cells) + k]["file"] for k in range(len(cells))]
        if index % shard[1] != shard[0] or not all(file.exists() for file in files):
            continue
        newest = max(file.stat().st_mtime_ns for file in files)
        if (output / name).exists() and (output / name).stat().st_mtime_ns >= newest:
            continue
        columns = len({cell.scale for cell in cells})
        clips = [read_video(file)[0] for file in files]
        frames = grid(clips, [cell.title for cell in cells], columns, job.prompts[index])
        folder.put(name, partial(write_video, frames=frames, fps=job.fps))


def write_index(output: Path) -> None:
    """OUTPUT/index.html from metadata.jsonl: a row a prompt and seed, its clips beside each other."""
    rows: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for record in read_records(output / METADATA):
        rows.setdefault((record["file"].split("-")[0] + record["prompt"], record["seed"]), []).append(record)
    sections = []
    for records_ in (rows[key] for key in sorted(rows)):
        figures = [(record["file"], _words(record)) for record in sorted(records_, key=_place)]
        sections.append((records_[0]["prompt"], figures))
    write_sheet(output, sections)


def _place(record: Mapping[str, Any]) -> tuple[bool, float]:
    return record["npo"] is not None, record["guidance_scale"]


def _words(record: Mapping[str, Any]) -> str:
    words = f"scale {record['guidance_scale']:g}, seed {record['seed']}"
    return words + (f", {negative_words(record)}" if record["npo"] else "")


def _suffix(job: Job) -> str:
    return "" if job.format == "frames" else f".{job.format}"


def _check_scales(scales: Sequence[float]) -> None:
    named = [f"{scale:g}" for scale in scales]
    if not scales or len(set(named)) < len(named) or not all(math.isfinite(scale) for scale in scales):
        raise InputError(f"guidance scales {', '.join(named) or 'none'}: give different finite numbers")


def _grid_name(record: Mapping[str, Any], first: Cell, cells: Sequence[Cell], job: Job) -> str:
    """Named by what is in it: other scales make another grid."""
    suffix = job.format if job.format != "frames" else "mp4"
    scales = "-".join(dict.fromkeys(f"{cell.scale:g}" for cell in cells))
    return Path(record["file"]).stem.removesuffix(f"-{first.name}") + f"-grid-{scales}.{suffix}"
