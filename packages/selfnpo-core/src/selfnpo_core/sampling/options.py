"""What the options of `sample` and `compare` mean, whatever the family."""

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from selfnpo_core.errors import InputError
from selfnpo_core.system.files import file_sha256
from selfnpo_core.weights.npo_folder import NpoConfig, Recommended, check_base, load_npo
from selfnpo_core.weights.npo_rule import NpoRule, build_rule, read_knots

if TYPE_CHECKING:
    from selfnpo_core.adapters.attach import Mode

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Negative:
    """Negative weights and how they are used; `path` is the weights file itself."""

    path: Path
    beta: float
    alpha: float
    condition: Literal["null", "prompt"]
    other_base: bool = False
    full: bool = False
    """An offset of all weights rather than a LoRA."""
    mode: "Mode" = "auto"
    rank: int = 32
    rule: NpoRule = field(default_factory=NpoRule)

    def check_base(self, denoiser: nn.Module, name: str) -> None:
        """Raise `InputError` unless these weights were made for this base; asked before η is put into it."""
        if not self.other_base:
            check_base(load_npo(self.path), denoiser, name)

    def attach(self, pipe: Any, eta: Mapping[str, Tensor] | None = None) -> AbstractContextManager[Any]:
        """On the pipeline's negative branch for the duration of a `with` block. The base has been checked.

        eta: a preference in whole weights that is in the pipeline's denoiser; see `attach_npo`.
        """
        from selfnpo_core.adapters import attach_npo

        return attach_npo(
            pipe,
            self.path,
            alpha=self.alpha,
            beta=self.beta,
            condition=self.condition,
            rule=self.rule,
            other_base=True,
            eta=eta,
            mode=self.mode,
            rank=self.rank,
        )

    @property
    def record(self) -> dict[str, Any]:
        """What metadata.jsonl says of them."""
        return {"npo": str(self.path), "npo_sha256": file_sha256(self.path), **self.use}

    @property
    def use(self) -> dict[str, Any]:
        """How they are used."""
        return {
            "beta": self.beta if self.rule.uses_beta else None,
            "alpha": self.alpha,
            "negative_condition": self.condition,
            "negative_rule": None if self.rule == NpoRule() else str(self.rule),
            "negative_mode": self.mode,
            "negative_rank": self.rank if self.mode == "lowrank" else None,
        }


NO_NEGATIVE: Mapping[str, Any] = dict.fromkeys(
    ("npo", "npo_sha256", "beta", "alpha", "negative_condition", "negative_rule", "negative_mode", "negative_rank")
)
"""As `Negative.record`, where there are none."""


def negative_words(record: Mapping[str, Any]) -> str:
    """For people: how strong negative weights are and by which rule they act. record: `Negative.use`, or more."""
    beta, rule = record["beta"], record.get("negative_rule")
    words = "negative weights" if beta is None else f"negative weights {beta:g}"
    return f"{words}, {rule}" if rule else words


def prompts_of(options: Mapping[str, Any], load_prompts: Callable[[str, str], list[str]]) -> list[str]:
    """--prompt or --prompts. load_prompts: (file or `builtin`, model) → prompts."""
    if options["prompt"] and options["prompts"]:
        raise InputError("--prompt and --prompts are both given: give one of them")
    if not options["prompt"] and not options["prompts"]:
        raise InputError("nothing to draw: give --prompt TEXT, --prompts FILE or --prompts builtin")
    return list(options["prompt"]) or load_prompts(options["prompts"], options["model"])


def negative_of(options: Mapping[str, Any]) -> tuple[Negative | None, NpoConfig | None]:
    """What --npo and all options about it mean; what is not given is as the weights recommend."""
    if options["npo"] is None:
        for key in (
            *RULE_OPTIONS,
            "beta",
            "alpha",
            "negative_condition",
            "other_base",
            "negative_mode",
            "negative_rank",
        ):
            if options[key] not in (None, False):
                raise InputError(f"--{key.replace('_', '-')} needs --npo: give the negative weights, or leave it out")
        return None, None
    npo = load_npo(options["npo"])
    recommended = npo.config.recommended if npo.config else Recommended()
    if options["negative_rank"] is not None and options["negative_mode"] != "lowrank":
        raise InputError("--negative-rank is for --negative-mode lowrank: leave it out")
    if options["alpha"] not in (None, 1.0) and options["preference"] is None:
        raise InputError("--alpha is the share of --preference on the negative branch, and there is none: leave it out")
    rule = rule_of(options, recommended.rule)
    condition = rule.condition(options["negative_condition"], npo.config.negative_condition if npo.config else "null")
    if options["beta"] is not None and not rule.uses_beta:
        raise InputError(f"--beta is not of rule {rule.name}, whose strength is --npo-weight: leave it out")
    negative = Negative(
        path=npo.path,
        beta=recommended.beta if options["beta"] is None else options["beta"],
        alpha=recommended.alpha if options["alpha"] is None else options["alpha"],
        condition=condition,
        other_base=options["other_base"],
        full=npo.kind == "delta",
        mode=options["negative_mode"] or "auto",
        rank=options["negative_rank"] or 32,
        rule=rule,
    )
    rule.check_alpha(negative.alpha)
    return negative, npo.config


RULE_OPTIONS: Mapping[str, str] = {
    "npo_rule": "name",
    "npo_weight": "weight",
    "npo_switch": "switch",
    "beta_knots": "beta_knots",
}
"""Option → setting of an `NpoRule`."""


def rule_of(options: Mapping[str, Any], recommended: NpoRule) -> NpoRule:
    """What --npo-rule and its settings mean. Of another rule than the recommended one nothing is taken over."""
    given = {setting: options[key] for key, setting in RULE_OPTIONS.items() if options[key] is not None}
    if "beta_knots" in given:
        given["beta_knots"] = read_knots(given["beta_knots"])
    same = given.get("name", recommended.name) == recommended.name
    return build_rule({**(recommended.model_dump() if same else {}), **given})


def negative_prompt_of(options: Mapping[str, Any], negative: Negative | None, config: NpoConfig | None) -> str | None:
    """--negative-prompt, else the null prompt that the negative weights were trained with, and said so.

    `None` is what the model's own pipeline gives its negative branch.
    """
    given: str | None = options["negative_prompt"]
    trained = None if config is None else config.null_prompt
    if negative is None or negative.condition == "prompt" or trained is None or given == trained:
        return given
    if given is not None:
        log.warning(
            "the negative weights were trained with the null prompt '%s', and are asked with '%s'", trained, given
        )
        return given
    log.info("null prompt: '%s', with which the negative weights were trained (--negative-prompt)", trained)
    return trained


def scale_of(options: Mapping[str, Any], config: NpoConfig | None, default: float) -> float:
    """--guidance-scale, else the middle of what the weights recommend, else the model's default."""
    if options["guidance_scale"] is not None:
        return float(options["guidance_scale"])
    return default if config is None else sum(config.recommended.guidance_scale) / 2


def dtype_of(name: str, device: torch.device, best: str = "fp16") -> str:
    """--dtype; "auto" is `best` on a GPU."""
    if name == "auto":
        return best if device.type == "cuda" else "fp32"
    if name == "fp16" and device.type == "cpu":
        log.warning("fp16 is slow on a CPU, and some layers lack it: fp32 or bf16 is better")
    return name
