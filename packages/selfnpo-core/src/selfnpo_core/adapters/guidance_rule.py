"""A rule of guidance (`selfnpo_core.adapters.rules`) in a stock pipeline: the call stays as it is.

The denoiser's forward is replaced by one that runs what the rule asks for and returns the rule's two predictions, which
the pipeline then combines as always. Negative weights may be attached before it: they act inside.

Some pipelines (Wan) ask the two branches one after the other, the positive one first. There a tensor without numbers
answers for it, and gets them when the negative one is asked and the rule is done: before that the pipeline does not
look into it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from selfnpo_core.adapters.branches import LAYOUTS, NEGATIVE, RULE, Branches, known_denoisers
from selfnpo_core.adapters.hooks import batch_of, forward_of, replace_forward, sample_of
from selfnpo_core.adapters.negative_delta import is_compiled, take
from selfnpo_core.adapters.rules import GuidanceStep, Pair, Rows, Rule, Weaken
from selfnpo_core.errors import InputError
from selfnpo_core.schedule import NoiseSchedule

_Call = tuple[tuple[Any, ...], dict[str, Any]]
"""Arguments of a denoiser's forward."""


class GuidanceRule:
    """A rule put on a pipeline. Made by `attach`; a context manager."""

    @classmethod
    def attach(cls, pipe: Any, rule: Rule) -> GuidanceRule:
        """Have the pipeline's guidance done by `rule`, wherever guidance is on.

        Negative weights come first: attach them before the rule, detach them after it. Raises `InputError` for a
        pipeline that neither stacks [negative, positive] into one batch nor tells when it asks them one after the
        other, and for a compiled denoiser.
        """
        return cls(pipe, rule)

    def __init__(self, pipe: Any, rule: Rule) -> None:
        self._pipe, self._rule = pipe, rule
        self._branches = Branches(pipe, "null", self._begin, RULE)
        check_takes_rules(pipe)
        ((name, self._denoiser),) = self._branches.denoisers.items()
        self._apart = self._branches.layout.order == "separate"
        if is_compiled(getattr(pipe, name)):
            raise InputError("a compiled denoiser cannot be given a guidance rule: attach it to the plain one")
        self._run = forward_of(self._denoiser)

        def forward(*args: Any, **kwargs: Any) -> Any:
            return self._one_branch(args, kwargs) if self._apart else self._forward(args, kwargs)

        forward.inside = self._run  # type: ignore[attr-defined]
        self._begin()
        with ExitStack() as undo:
            self._branches.watch(undo)
            replace_forward(undo, self._denoiser, forward)
            self._undo = undo.pop_all()

    def detach(self) -> None:
        """Leave the pipeline as it was found."""
        self._undo.close()

    def __enter__(self) -> GuidanceRule:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()

    def _begin(self) -> None:
        """At the beginning of every pipeline call; the scheduler may be another one since the last."""
        scheduler = self._pipe.scheduler
        self._schedule = NoiseSchedule.from_scheduler(scheduler)
        self._predicts = "flow" if self._schedule.is_flow else str(scheduler.config.get("prediction_type", "epsilon"))
        self._index, self._memory = 0, dict[str, Any]()
        self._asked: tuple[_Call, Tensor] | None = None  # the positive branch, and what answered for it

    def _forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The denoiser's forward. Where guidance is off there is one branch, and nothing to combine."""
        batch = batch_of(args, kwargs)
        if not self._branches.has_negative(batch):
            return self._run_rows(args, kwargs, batch)
        _check_returns_tuple(kwargs)
        x_t = sample_of(args, kwargs)
        half = slice(batch // 2, batch)

        def both() -> Pair:
            negative, positive = self._run_rows(args, kwargs, batch)[0].float().chunk(2)
            return negative, positive

        def positive(weaken: Weaken | None) -> Tensor:
            some = take(args, batch, half), take(kwargs, batch, half)
            with weaken(self._denoiser) if weaken else nullcontext():
                return self._run_rows(*some, batch // 2)[0].float()

        def predict(*asked: Rows) -> tuple[Tensor, ...]:
            part = {"negative": torch.arange(batch // 2), "positive": torch.arange(batch // 2, batch)}
            rows = torch.cat([part[each.branch] for each in asked])
            some = take(args, batch, rows), take(kwargs, batch, rows)
            with self._shares(tuple(each.share for each in asked)):
                return self._run_rows(*some, len(rows))[0].float().chunk(len(asked))

        noisy, t = x_t[half].float(), _timesteps(args, kwargs, batch)[half]
        return (torch.cat(self._ruled(noisy, t, both, positive, predict)).to(x_t.dtype),)

    def _one_branch(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The denoiser's forward where the branches are asked one after the other."""
        batch = batch_of(args, kwargs)
        is_negative = self._branches.has_negative(batch)
        if not self._branches.guided:
            return self._run_rows(args, kwargs, batch)
        _check_returns_tuple(kwargs)
        x_t = sample_of(args, kwargs)
        if not is_negative:
            if self._asked is not None:
                raise InputError("this pipeline asked its positive branch twice in a step: no guidance rule fits it")
            answer = torch.full_like(x_t, torch.nan)
            self._asked = (args, kwargs), answer
            return (answer,)
        if self._asked is None:
            raise InputError("this pipeline asks its negative branch first: no guidance rule fits it")
        given, answer = self._asked
        self._asked, where = None, self._branches.where
        calls: dict[str, _Call] = {"positive": given, "negative": (args, kwargs)}

        def run(branch: str, weaken: Weaken | None = None) -> Tensor:
            context: Any = self._denoiser.cache_context
            with context({"positive": "cond", "negative": "uncond"}[branch], **where):
                with weaken(self._denoiser) if weaken else nullcontext():
                    output: Tensor = self._run_rows(*calls[branch], batch)[0]
                return output.float()

        def both() -> Pair:
            return run("negative"), run("positive")

        def predict(*asked: Rows) -> tuple[Tensor, ...]:
            found = []
            for each in asked:
                with self._shares((each.share,)):
                    found.append(run(each.branch))
            return tuple(found)

        def positive(weaken: Weaken | None) -> Tensor:
            return run("positive", weaken)

        pair = self._ruled(x_t.float(), _timesteps(args, kwargs, batch), both, positive, predict)
        answer.copy_(pair[1])
        return (pair[0].to(x_t.dtype),)

    def _ruled(
        self,
        x_t: Tensor,
        t: Tensor,
        both: Callable[[], Pair],
        positive: Callable[[Weaken | None], Tensor],
        predict: Callable[..., tuple[Tensor, ...]],
    ) -> Pair:
        """What the rule makes of a step. x_t: (B, *S), t: (B,), of one branch; the others as of `GuidanceStep`."""
        step = GuidanceStep(
            x_t=x_t,
            level=self._schedule.at(t, like=x_t),
            prediction_type=self._predicts,
            scale=float(self._pipe.guidance_scale),
            index=self._index,
            total=len(self._pipe.scheduler.timesteps),
            memory=self._memory,
            both=both,
            positive=positive,
            predict=predict,
        )
        self._index += 1
        return self._rule(step)

    def _run_rows(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], batch: int) -> Any:
        """What is inside, of so many rows. Negative weights in there learn of them by a hook that is not run here."""
        if (negative := self._negative) is not None:
            negative.enter(batch)
        return self._run(*args, **kwargs)

    @property
    def _negative(self) -> Branches | None:
        """The branches of the negative weights inside, if there are any."""
        found: Branches | None = vars(self._denoiser).get(NEGATIVE)
        return found

    def _shares(self, shares: tuple[float, ...]) -> AbstractContextManager[None]:
        if self._negative is not None:
            return self._negative.asked(shares)
        if any(shares):
            raise InputError("this rule asks negative weights, and there are none: attach them before the rule")
        return nullcontext()


def check_takes_rules(pipe: Any) -> None:
    """Raise `InputError` for a known pipeline that neither stacks [negative, positive] into one batch nor tells whether
    it will ask them one after the other."""
    denoisers = known_denoisers(pipe)
    kind = type(pipe).__name__
    layout = LAYOUTS[kind]
    if layout.order != "negative first" and not (layout.order == "separate" and layout.embeds):
        raise InputError(f"{kind} does not run [negative, positive] as one batch: no rule fits it")
    if len(denoisers) > 1:
        raise InputError(f"a guidance rule is for one denoiser, not {' and '.join(denoisers)} of {kind}")
    if layout.order == "separate":
        config: Any = next(iter(denoisers.values())).config
        if config.in_channels != (config.out_channels or config.in_channels):
            raise InputError(f"{kind} gives its denoiser more than the sample: no rule fits it")


def _check_returns_tuple(kwargs: Mapping[str, Any]) -> None:
    if kwargs.get("return_dict", True):
        raise InputError("a guidance rule wants the denoiser asked with return_dict=False, as stock pipelines do")


def _timesteps(args: tuple[Any, ...], kwargs: Mapping[str, Any], batch: int) -> Tensor:
    """(batch,), in the scheduler's units: a number for all rows, or one a row."""
    t = kwargs["timestep"] if "timestep" in kwargs else args[1]
    t = torch.as_tensor(t)
    if t.ndim > 1:
        if not bool((t == t[:, :1]).all()):
            raise InputError("a guidance rule wants one timestep a row: this pipeline has several")
        t = t[:, 0]
    return t.expand(batch)
