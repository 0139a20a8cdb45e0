"""VBench (2311.17982): clips under the names that it wants, and its results back as paired figures.

It reads videos/PROMPT-INDEX.mp4, indices from 0, five clips a prompt and 25 for temporal flickering, and writes
NAME_eval_results.json: {dimension: [mean, [{"video_path": …, "video_results": number}, …]]}.

Its protocol for CogVideoX draws clips from prompts that a language model has enhanced, and calls them by the original
ones, which it also measures against. `sample --original-prompts` keeps those in metadata.jsonl as `original_prompt`.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from selfnpo_core.errors import InputError
from selfnpo_core.evaluation.intervals import bootstrap
from selfnpo_core.evaluation.metrics import REPEATS, paired
from selfnpo_core.evaluation.run import Folders, Others
from selfnpo_core.evaluation.samples import Key, Sample, Samples, read_samples, refuse_bad
from selfnpo_core.sampling.sample_folder import METADATA, read_records
from selfnpo_core.system.files import read_json, write_json, write_text, written_aside
from selfnpo_video.medium import clips

log = logging.getLogger(__name__)
VIDEOS, PROMPTS, FILES, ORIGIN = "videos", "prompts.txt", "prompts.json", "samples.json"
A_PROMPT = 5
"""Clips that VBench expects of a prompt."""
_LONGEST = 255
"""Bytes of a file's name."""


def names(folder: Path) -> dict[Key, str]:
    """What VBench calls each sample, without the suffix: its original prompt, and its place in the order of seeds.

    Of all that metadata.jsonl tells of, so that a sample that is left out does not move the others.
    """
    keys: list[Any] = [(_original(r), r.get("seed"), r.get("prompt")) for r in read_records(folder / METADATA)]
    found: dict[Key, str] = {}
    counts: dict[str, int] = {}
    whole = (key for key in keys if isinstance(key[1], int) and isinstance(key[2], str))
    for original, seed, prompt in sorted(whole):
        index = counts.get(original, 0)
        counts[original] = index + 1
        found[prompt, seed] = f"{original}-{index}"
    return found


def _original(record: Mapping[str, Any]) -> str:
    """The prompt that a sample's own was enhanced from, or its own."""
    return str(record.get("original_prompt") or record.get("prompt"))


def export(options: Mapping[str, Any]) -> str | None:
    """What --vbench-export OUT asks for, in words; None where it is not given.

    OUT/videos is as VBench reads it; OUT/prompts.txt, and OUT/prompts.json for its --mode custom_input --prompt_file.
    Clips are linked where the disk can, else copied.
    """
    if options["vbench_export"] is None:
        return None
    output = Path(options["vbench_export"])
    if output.exists():
        raise InputError(f"--vbench-export {output} exists: give a new folder")
    medium = clips(options["reader"])
    samples = read_samples(options["folder"], medium)
    refuse_bad([samples], skip=options["skip_bad"])
    called = names(samples.path)
    prompts = list(dict.fromkeys(_original(sample.record) for sample in samples.good))
    _check_names(samples, called)
    for remark in samples.remarks(medium.unit):
        log.warning("%s", remark)
    counts = set(Counter(_original(sample.record) for sample in samples.good).values())
    if counts != {A_PROMPT}:
        told = " or ".join(map(str, sorted(counts)))
        log.warning("VBench expects %d clips a prompt, 25 for temporal flickering; here are %s", A_PROMPT, told)
    with written_aside(output) as aside:
        (aside / VIDEOS).mkdir()
        about, origin = {}, {}
        for sample in samples.good:
            name = _name(sample, called)
            _put(sample.path, aside / VIDEOS / name)
            about[str(output / VIDEOS / name)] = _original(sample.record)
            origin[name] = {"file": str(sample.path), "seed": sample.seed}
        write_text(aside / PROMPTS, "".join(f"{prompt}\n" for prompt in prompts))
        write_json(aside / FILES, about)
        write_json(aside / ORIGIN, {"schema": 1, "samples": origin})
    return f"{len(samples.good)} clips and {PROMPTS} in {output}"


def _name(sample: Sample, called: Mapping[Key, str]) -> str:
    return f"{called[str(sample.prompt), sample.seed or 0]}{sample.path.suffix.lower()}"


def _check_names(samples: Samples, called: Mapping[Key, str]) -> None:
    for sample in samples.good:
        name, prompt = _name(sample, called), _original(sample.record)
        if "/" in name or "\0" in name or "\n" in name or len(name.encode()) > _LONGEST:
            raise InputError(f"VBench names files by their prompts, which '{prompt[:60]}' cannot: change the prompt")
        if sample.path.suffix.lower() not in (".mp4", ".gif"):
            raise InputError(f"VBench reads mp4 and gif, and {sample.path} is neither: draw with --format mp4")


def _put(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def reader(options: Mapping[str, Any]) -> Others:
    """Figures of every dimension in --vbench-results, and paired with those in --vbench-against."""
    if options["vbench_results"] is None:
        raise InputError("vbench takes its figures from VBench: give its results as --vbench-results FILE")
    if (options["vbench_against"] is None) != (options["against"] is None):
        raise InputError("--vbench-against FILE belongs to --against DIR: give both, or neither")
    one = read_results(Path(options["vbench_results"]))
    other = None if options["vbench_against"] is None else read_results(Path(options["vbench_against"]))

    def figures(folders: Folders) -> dict[str, dict[str, Any]]:
        return _figures(folders, one, other)

    return figures


def read_results(file: Path) -> dict[str, dict[str, float]]:
    """Dimension → a clip's name without suffix → number."""
    try:
        stored = read_json(file)
        return {
            dimension: {Path(each["video_path"]).stem: float(each["video_results"]) for each in single}
            for dimension, (_, single) in stored.items()
        }
    except OSError as error:
        raise InputError(f"VBench's results {file} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        detail = " ".join(str(error).split())[:80]
        raise InputError(f"{file} is no …_eval_results.json of VBench ({type(error).__name__}: {detail})") from None


def _figures(
    folders: Folders, one: Mapping[str, Mapping[str, float]], other: Mapping[str, Mapping[str, float]] | None
) -> dict[str, dict[str, Any]]:
    """Of the samples that VBench measured: a dimension has prompts of its own."""
    called = names(folders.one.path)
    called_other = {} if folders.other is None else names(folders.other.path)
    missing = [dimension for dimension in one if other is not None and dimension not in other]
    if missing:
        raise InputError(f"--vbench-against has no {missing[0]}: measure the same dimensions of both")
    found = {}
    for dimension, results in one.items():
        against = None if other is None else other[dimension]
        keys: list[Key] = [(str(sample.prompt), sample.seed or 0) for sample in folders.one.good]
        shared = [key for key in keys if called[key] in results and (against is None or called_other[key] in against)]
        if not shared:
            raise InputError(f"VBench's {dimension} is of none of the clips in {folders.one.path}: export them anew")
        values = torch.tensor([results[called[key]] for key in shared], dtype=torch.float64)
        figures: dict[str, Any] = {
            "better": "higher",
            "count": len(shared),
            "value": _mean(values),
            "network": "vbench",
            "model": f"VBench, {dimension}",
        }
        if against is not None:
            others = torch.tensor([against[called_other[key]] for key in shared], dtype=torch.float64)
            figures |= {"against": _mean(others), **paired(values, others)}
        measured = set(shared)
        figures["per_sample"] = [
            [arm[by_key[key]] if key in measured else None for key in keys]
            for arm, by_key in ((results, called), *([] if against is None else [(against, called_other)]))
        ]
        found[f"vbench_{dimension}"] = figures
    return found


def _mean(values: torch.Tensor) -> Any:
    generator = torch.Generator().manual_seed(0)
    return bootstrap(lambda rows: values[rows].mean().item(), len(values), generator=generator, repeats=REPEATS["mean"])
