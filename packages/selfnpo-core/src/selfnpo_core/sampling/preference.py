"""Models tuned to people's preferences, η: both sides of the guidance run at θ + η, the negative one at θ + α·η + β·δ.

η is a LoRA (as SPO's), or the difference between a whole tuned denoiser (Diffusion-DPO, or any fine-tune of θ) and θ.
"""

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from selfnpo_core.adapters.attach import ETA, load_lora
from selfnpo_core.errors import InputError
from selfnpo_core.models import quantised
from selfnpo_core.models.cached import incomplete, is_offline
from selfnpo_core.models.components import choose, header_of
from selfnpo_core.models.headers import read_header
from selfnpo_core.models.hub import files_of
from selfnpo_core.models.identity import SAME_BASE
from selfnpo_core.models.loading import one_line_errors, quiet
from selfnpo_core.models.sources import Source
from selfnpo_core.models.stated import stated_in
from selfnpo_core.sampling.options import Negative
from selfnpo_core.schedule import NoiseSchedule
from selfnpo_core.system.files import file_sha256, read_json
from selfnpo_core.system.paths import user_path
from selfnpo_core.weights.file_kinds import is_whole, kind_of
from selfnpo_core.weights.lora_file import ADAPTER_CONFIG, ADAPTER_FILE, is_adapter
from selfnpo_core.weights.npo_folder import LORA_FILE

log = logging.getLogger(__name__)
ROWS = 64
"""Of each weight of a text encoder that is compared with another's."""


@dataclass(frozen=True, kw_only=True)
class Whole:
    """A tuned model. prediction_type: `None` where nothing says it.

    encoders: component → its text encoder, or the folder that it is in. They are compared, not used.
    """

    denoiser: nn.Module
    prediction_type: str | None = None
    encoders: Mapping[str, nn.Module | Path] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Preference:
    """η by the name that its user gave it: a LoRA's file, or what loads the tuned model."""

    name: str
    lora: Path | None = None
    whole: Callable[[], Whole] | None = None

    @torch.no_grad()
    def apply(self, pipe: Any, component: str, *, keep: bool) -> dict[str, Tensor] | None:
        """Bring the pipeline to θ + η: a LoRA is loaded as the active adapter "eta", whole weights take θ's place.

        keep: return η of whole weights (parameter → difference, in the weights' dtype), for a negative side with α ≠ 1.
        Of a whole model only the denoiser is taken; a text encoder that was tuned too, or whose weights have names that
        tell nothing, is named. Raises `InputError` for weights of another architecture or prediction type.
        """
        if self.lora is not None:
            parts = load_lora(pipe, self.lora, ETA)
            if parts and keep:
                log.warning("alpha is of the denoiser: %s of %s has its layers on both sides", _all(parts), self.name)
            return None
        assert self.whole is not None
        whole = self.whole()
        network: nn.Module = getattr(pipe, component)
        tuned = dict(whole.denoiser.named_parameters())
        own = dict(network.named_parameters())
        _check_same(self.name, {n: p.shape for n, p in tuned.items()}, {n: p.shape for n, p in own.items()})
        _check_prediction(self.name, whole.prediction_type, pipe)
        encoders = whole.encoders.items()
        found = {part: _is_tuned(getattr(pipe, part, None), encoder) for part, encoder in encoders}
        if others := [part for part, tuned_too in found.items() if tuned_too]:
            what = component, _all(others)
            log.warning("preference %s: only its %s is taken, and its %s, tuned too, is left out", self.name, *what)
        if unknown := [part for part, tuned_too in found.items() if tuned_too is None]:
            what = component, _all(unknown)
            log.warning(
                "preference %s: only its %s is taken; whether its %s, which is left out, is tuned too, its names of "
                "weights do not tell",
                self.name,
                *what,
            )
        eta: dict[str, Tensor] = {}
        for name, parameter in own.items():
            new = tuned.pop(name).to(parameter.device)
            if keep:
                difference = new.float() - parameter.float()
                if bool(difference.any()):
                    eta[name] = difference.to(parameter.dtype)
            parameter.copy_(new)
        return eta if keep else None


def find(
    name: str,
    *,
    network: type[nn.Module],
    component: str,
    locate: Callable[[str], Source],
    whole: Callable[[Source], Whole],
) -> Preference:
    """What `--preference NAME` stands for; no weights are read, but what is on the hub is fetched.

    name: a LoRA file, or a folder with one; a folder with a denoiser (config.json), or with one under `component`; or
        whatever `--model` could be, which `whole` loads. locate: what `--model NAME` stands for.
    """
    source = locate(name)
    if source.kind == "hub":
        return _on_hub(name, source, network, component, whole)
    path = Path(source.location)
    if path.is_file() and path.suffix.lower() == ".safetensors":
        names = read_header(path).shapes
        if is_adapter(names):
            return Preference(name=name, lora=path)
        if not is_whole(names):
            raise InputError(f"preference {name} {kind_of(names)}")
        return Preference(name=name, whole=partial(whole, source))
    if path.is_dir():
        for folder in (path, path / "npo"):
            for file in (LORA_FILE, ADAPTER_FILE):
                if (folder / file).is_file():
                    return Preference(name=name, lora=folder / file)
        if not (path / "model_index.json").is_file():
            for folder in (path, path / component):
                if (folder / "config.json").is_file():
                    return Preference(name=name, whole=partial(_load, network, folder, name))
            raise InputError(
                f"preference {name} holds neither a LoRA ({LORA_FILE}) nor a {component} (config.json): give one"
            )
    return Preference(name=name, whole=partial(whole, source))


def _on_hub(
    name: str, source: Source, network: type[nn.Module], component: str, whole: Callable[[Source], Whole]
) -> Preference:
    """A repository with a whole model, a denoiser, or a LoRA alone."""
    from huggingface_hub import hf_hub_download, snapshot_download

    pinned = source.revision
    with quiet(), one_line_errors(source):
        files = files_of(source.location, source.revision)
        if "model_index.json" in files:
            return Preference(name=name, whole=partial(whole, source))
        for folder in (f"{component}/", ""):
            if f"{folder}config.json" in files:
                patterns = [f"{folder}*.json", f"{folder}*.safetensors"]
                place = Path(snapshot_download(source.location, revision=pinned, allow_patterns=patterns)) / folder
                if is_offline() and choose(path.name for path in place.glob("*") if path.is_file()) is None:
                    raise incomplete(source.location, [f"{folder}*.safetensors"], pinned)
                return Preference(name=name, whole=partial(_load, network, place, name))
        loras = [file for file in files if file.endswith(".safetensors") and "/" not in file]
        if len(loras) == 1:
            if loras[0] == ADAPTER_FILE and ADAPTER_CONFIG in files:
                hf_hub_download(source.location, ADAPTER_CONFIG, revision=pinned)  # where alpha is said
            return Preference(name=name, lora=Path(hf_hub_download(source.location, loras[0], revision=pinned)))
    raise InputError(
        f"preference {name} on the hub is neither a model, nor a {component}, nor one LoRA: give a file of it"
    )


class TunedJob(Protocol):
    """What `with_preference` asks of a family's job."""

    @property
    def preference(self) -> str | None: ...

    @property
    def negative(self) -> Negative | None: ...


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A pipeline at θ + η. eta: η of whole weights, for `Negative.attach`, where α asks for it."""

    pipe: Any
    eta: Mapping[str, Tensor] | None = None


def with_preference(pipe: Any, component: str, job: TunedJob, find_it: Callable[[str], Preference]) -> Prepared:
    """The loaded pipeline with the job's preference in it, its base checked before.

    find_it: a name → the preference.
    """
    if job.negative is not None:
        job.negative.check_base(getattr(pipe, component), pipe.name_or_path)
    if job.preference is None:
        return Prepared(pipe=pipe)
    keep = job.negative is not None and job.negative.alpha != 1.0
    return Prepared(pipe=pipe, eta=find_it(job.preference).apply(pipe, component, keep=keep))


def record(name: str | None) -> dict[str, str | None]:
    """What metadata.jsonl says of a preference; of a file, its hash too."""
    path = None if name is None else user_path(name)
    return {"preference": name, "preference_sha256": file_sha256(path) if path is not None and path.is_file() else None}


def prediction_beside(folder: Path) -> str | None:
    """Of a diffusers folder, by its scheduler's configuration."""
    try:
        config = read_json(folder / "scheduler" / "scheduler_config.json")
        flow = "FlowMatch" in str(config.get("_class_name"))
        return "flow" if flow else str(config.get("prediction_type", "epsilon"))
    except (OSError, ValueError, AttributeError):
        return None


def prediction_of(scheduler: Any) -> str:
    """Of a pipeline's scheduler."""
    flow = NoiseSchedule.from_scheduler(scheduler).is_flow
    return "flow" if flow else str(scheduler.config.get("prediction_type", "epsilon"))


def _load(network: Any, folder: Path, name: str) -> Whole:
    """A denoiser alone. What its weights say of themselves holds, unless a scheduler beside it says otherwise."""
    config = network.load_config(folder)
    if config.get("_class_name", network.__name__) != network.__name__:
        raise InputError(f"preference {name} is a {config['_class_name']}, and the model has a {network.__name__}")
    quantised.check_config(config, folder / "config.json")
    weights = choose(path.name for path in folder.glob("*.safetensors"))
    if weights is None:
        raise InputError(f"preference {name} has no safetensors weights: get it as safetensors")
    header = header_of(folder, weights)
    quantised.check_header(header, folder)
    said, beside = stated_in(header, name).prediction, prediction_beside(folder.resolve().parent)
    if said is not None and beside not in (None, said):
        raise InputError(
            f"preference {name} says of itself {said}, and the scheduler beside it {beside}: correct prediction_type"
        )
    try:
        loaded: nn.Module = network.from_pretrained(folder, use_safetensors=True, variant=weights.variant)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        detail = " ".join(str(error).split())[:160]
        raise InputError(f"preference {name} cannot be loaded ({detail}): get it again") from None
    return Whole(denoiser=loaded, prediction_type=said or beside)


def _check_prediction(name: str, tuned: str | None, pipe: Any) -> None:
    scheduler = getattr(pipe, "scheduler", None)
    if tuned is None or scheduler is None:
        return
    own = prediction_of(scheduler)
    if tuned != own:
        raise InputError(
            f"preference {name} predicts '{tuned}', and the model predicts '{own}': give one that was tuned from it"
        )


def _is_tuned(own: nn.Module | None, other: nn.Module | Path) -> bool | None:
    """Whether two text encoders differ by more than a change of dtype, by some of their weights.

    `None` where none of the other's weights is known by its name.
    """
    if own is None:
        return False
    weights = own.state_dict()
    read = _rows_of(other, weights.keys()) if isinstance(other, Path) else _rows(other.state_dict())
    if not read:
        return None
    for name, rows in read.items():
        mine = weights[name][:ROWS].float().cpu() if name in weights else None
        if mine is None or mine.shape != rows.shape or float((mine - rows).norm()) > SAME_BASE * float(rows.norm()):
            return True
    return False


def _rows(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: weights[name][:ROWS].float().cpu() for name in _some(weights) if weights[name].ndim}


def _rows_of(folder: Path, known: Collection[str]) -> dict[str, Tensor]:
    """The same of the files in a folder, by the names that are known; nothing else of them is read."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(str(file), framework="pt") as opened:
            stored = {_known(name, known): name for name in opened.keys()}  # noqa: SIM118 (not a dict)
            for name in _some([name for name in stored if name is not None]):
                if opened.get_slice(stored[name]).get_shape():
                    found[name] = opened.get_slice(stored[name])[:ROWS].float()
    return found


def _known(name: str, known: Collection[str]) -> str | None:
    """What a stored weight is called in the model: libraries put prefixes before names, or take them away.

    `None` where it is called nothing there, or might be several.
    """
    if name in known:
        return name
    alike = [own for own in known if name.endswith(f".{own}") or own.endswith(f".{name}")]
    return alike[0] if len(alike) == 1 else None


def _some(names: Collection[str]) -> list[str]:
    """A dozen, evenly spread."""
    every = sorted(names)
    return every[:: max(1, len(every) // 12)]


def _all(names: Collection[str]) -> str:
    return " and ".join(sorted(names))


def _check_same(name: str, tuned: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    for key in own.keys() | tuned.keys():
        if tuned.get(key) != own.get(key):
            what, has = (tuple(shapes[key]) if key in shapes else "missing" for shapes in (tuned, own))
            raise InputError(
                f"preference {name} is of another architecture than the model ('{key}' is {what}, but {has} in the "
                "model): give one that was tuned from it"
            )
