"""Make the shipped demo models from nothing: autoencoder, denoiser, oracle, judge, reference statistics.

    python tools/build_demo_models.py things /usr/share/fonts/truetype/noto/NotoColorEmoji.ttf
    python tools/build_demo_models.py image --work build/demo --steps 4750 --earlier 2500
    python tools/build_demo_models.py video --work build/demo-video
    python tools/build_demo_models.py preferred
    python tools/build_demo_models.py sdxl --work build/demo-sdxl

Hours on two CPU cores. Every stage is kept in the work folder and skipped when it is there; the denoiser's, the
longest, goes on where it was interrupted.
"""

import copy
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch

from selfnpo_core.adapters.attach import ETA, load_lora
from selfnpo_core.commands.options import stack
from selfnpo_core.errors import RunError
from selfnpo_core.experiments.measure import sample, sweep
from selfnpo_core.worlds.assets import reconstructed, reconstruction_distance, reference, refuse_ragged, write_assets
from selfnpo_core.worlds.building import snapshot_path
from selfnpo_core.worlds.font import draw_sheet
from selfnpo_core.worlds.judge import preferred_share
from selfnpo_core.worlds.things import ATLAS, CODES
from selfnpo_core.worlds.world import Judges, Task, World
from selfnpo_image import shipped
from selfnpo_image.demo import pictures
from selfnpo_image.demo.build import denoiser, judge, oracle, pack, preferred, sdxl, vae
from selfnpo_video.demo import assets as video_assets
from selfnpo_video.demo import moving
from selfnpo_video.demo.build import denoiser as video_denoiser
from selfnpo_video.demo.build import judge as video_judge
from selfnpo_video.demo.build import oracle as video_oracle
from selfnpo_video.demo.build import pack as video_pack
from selfnpo_video.demo.build import vae as video_vae

SCALES = (1.0, 2.0, 3.0, 5.0)

shared_options = stack(
    click.option("--work", type=click.Path(path_type=Path), required=True, help="Folder for the stages' results."),
    click.option("--threads", default=0, help="CPU threads; 0 leaves torch's choice."),
    click.option("--go-on", is_flag=True, help="Begin the denoiser with the shipped weights rather than random ones."),
    click.option("--history", default="", help="For the card: how these weights came to be, if not at one go."),
    click.option("--interim", is_flag=True, help="Write a model that is not good enough too, and say so in its card."),
    click.option("--until", type=int, help="Stop the denoiser after so many updates: what is not learned leaves room."),
    click.option("--earlier", type=int, help="Updates after which the denoiser is kept too, as WORK/earlier."),
)


@dataclass(frozen=True, kw_only=True)
class Build:
    """What both models' builders are asked."""

    work: Path
    threads: int
    steps: int
    until: int | None
    earlier: int | None
    go_on: bool
    history: str
    interim: bool

    @property
    def updates(self) -> int:
        """Of the denoiser."""
        return self.until or self.steps

    def begin(self) -> Path:
        """The folder of the stages' results."""
        _begin(self.work, self.threads)
        return self.work

    def check_autoencoder(self, reconstruction: float, limits: dict[str, float]) -> None:
        """Refuse a bad one before hours are spent on what is trained with it."""
        print(f"autoencoder: reconstruction distance {reconstruction:.2f}")
        if not self.interim:
            refuse_ragged(1.0, reconstruction, **limits)

    def denoiser(self, train: Callable[..., Any], autoencoder: torch.nn.Module, initial: Any) -> Any:
        """The pipeline with the denoiser; an earlier state of it goes to WORK/earlier, a folder like the model's."""
        file = self.work / "denoiser.safetensors"
        snapshots = () if self.earlier is None else (self.earlier,)
        pipe = train(file, autoencoder, steps=self.steps, until=self.until, snapshots=snapshots, initial=initial)
        if self.earlier is not None:
            kept = snapshot_path(file, self.earlier)
            if not kept.exists():
                raise RunError(f"{kept} was not kept when the denoiser was trained: remove {file} to train it again")
            before = train(kept, copy.deepcopy(autoencoder))
            before.to(torch.float16).save_pretrained(self.work / "earlier")
        return pipe

    def write(
        self,
        output: Path,
        pipe: Any,
        judges: Judges,
        figures: dict[str, Any],
        parts: dict[str, torch.nn.Module],
        limits: dict[str, float],
        card: str,
    ) -> None:
        """Refuse a model that is not good enough, or with `interim` say so in its card; else write the assets."""
        reconstruction = next(value for name, value in figures.items() if "reconstruction" in name)
        note = ""
        try:
            refuse_ragged(figures["best joint prompt accuracy"], reconstruction, **limits)
        except RunError as error:
            if not self.interim:
                raise
            note = str(error)
        sizes = [sum(p.numel() for p in part.parameters()) for part in parts.values()]
        figures = {"interim": note, f"parameters ({', '.join(parts)})": sizes, **figures}
        write_assets(output, pipe, judges, figures, card, self.history)


@click.group(help=__doc__)
def main() -> None:
    torch.set_flush_denormal(True)  # late in training they would slow it down several times


@main.command("things")
@click.argument("font", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--output", type=click.Path(path_type=Path), default=ATLAS, show_default=True)
def build_things(font: Path, output: Path) -> None:
    """The things of the world of pictures, from FONT, Noto Color Emoji (Debian: fonts-noto-color-emoji)."""
    draw_sheet(font).save(output, optimize=True)
    print(f"{len(CODES)} things are in {output}")


@main.command("image")
@shared_options
@click.option("--output", type=click.Path(path_type=Path), default=shipped.FOLDER, show_default=True)
@click.option("--steps", default=6000, show_default=True, help="Updates of the denoiser.")
@click.option("--samples", default=500, show_default=True, help="Pictures at each guidance scale for the check.")
def build_image(output: Path, samples: int, **shared: Any) -> None:
    """The SD1.5-class model of things."""
    build = Build(**shared)
    work = build.begin()
    world = pictures.Things()
    eyes = oracle.train(work / "oracle.safetensors")
    autoencoder = vae.train(work / "vae.safetensors")
    moments = reference(world, eyes, pack.REFERENCE_PICTURES)
    reconstruction = reconstruction_distance(world, autoencoder, eyes, moments, pack.RECONSTRUCTED_PICTURES)
    limits = {"least": pack.MIN_JOINT_ACCURACY, "most": pack.MAX_RECONSTRUCTION_FID}
    build.check_autoencoder(reconstruction, limits)
    initial = pictures.demo().pipeline() if build.go_on else None
    pipe = build.denoiser(denoiser.train, autoencoder, initial)
    critic = judge.train(work / "judge.safetensors", autoencoder, eyes)
    world.judges = Judges(oracle=eyes, preference=critic, reference=moments)
    figures = _measured(world, pipe, judge.agreement(critic, autoencoder), reconstruction, build.updates, samples)
    parts = {"UNet": pipe.unet, "text encoder": pipe.text_encoder, "autoencoder": pipe.vae}
    build.write(output, pipe, world.judges, figures, parts, limits, pack.CARD)


@main.command("preferred")
@click.option("--output", type=click.Path(path_type=Path), default=shipped.PREFERRED.parent, show_default=True)
@click.option(
    "--captions", default=1536, show_default=True, help="A pair is drawn of each; those without a clear winner go."
)
@click.option("--steps", default=300, show_default=True, help="Updates.")
@click.option("--samples", default=500, show_default=True, help="Pictures at each guidance scale for the check.")
@click.option("--threads", default=0, help="CPU threads; 0 leaves torch's choice.")
def build_preferred(output: Path, captions: int, steps: int, samples: int, threads: int) -> None:
    """The image demo's preference-tuned variant, a LoRA on the shipped model. Minutes."""
    _begin(output, threads)
    demo = pictures.demo()
    aside = output.with_name(f"{output.name}.partial")
    file = preferred.train(aside, demo, captions=captions, steps=steps)
    pipe = demo.pipeline()
    before = sweep(demo.world, pipe, scales=(1.0, 3.0), count=samples, seed=9, steps=20)
    load_lora(pipe, file, ETA)
    after = sweep(demo.world, pipe, scales=(1.0, 3.0), count=samples, seed=9, steps=20)
    card = {"schema": 1, "captions": captions, "updates": steps, "before": before, "after": after}
    print(json.dumps(card, indent=2))
    if after["1"]["accuracy"] <= before["1"]["accuracy"]:
        raise RunError(f"the tuned model is no better than the one it was tuned from; it stays in {aside}")
    (aside / "card.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    if output.exists():
        shutil.rmtree(output)
    aside.rename(output)


@main.command("sdxl")
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Folder for the stages' results.")
@click.option("--steps", default=1500, show_default=True, help="Updates, from the shipped model's weights.")
@click.option("--samples", default=500, show_default=True, help="Pictures at each guidance scale for the figures.")
@click.option("--threads", default=0, help="CPU threads; 0 leaves torch's choice.")
def build_sdxl(work: Path, steps: int, samples: int, threads: int) -> None:
    """An SDXL-class model of the same world, WORK/model: not shipped, for trying what is SDXL's own. Half an hour."""
    _begin(work, threads)
    demo = pictures.demo()
    pipe = sdxl.train(work / "denoiser.safetensors", demo.pipeline(), steps=steps)
    table = sweep(demo.world, pipe, scales=SCALES, count=samples, seed=9, steps=20)
    pipe.save_pretrained(work / "model", safe_serialization=True)
    card = {"schema": 1, "what": "a toy, SDXL-class", "updates": steps, "by guidance scale": table}
    (work / "card.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(card, indent=2))
    print(f"try: selfnpo-image train --model {work / 'model'}")


@main.command("video")
@shared_options
@click.option("--output", type=click.Path(path_type=Path), default=video_assets.FOLDER, show_default=True)
@click.option("--steps", default=4000, show_default=True, help="Updates of the denoiser.")
@click.option("--samples", default=256, show_default=True, help="Clips at each guidance scale for the check.")
def build_video(output: Path, samples: int, **shared: Any) -> None:
    """The CogVideoX-class model of moving things."""
    build = Build(**shared)
    work = build.begin()
    world = moving.MovingThings()
    eyes = video_oracle.train(work / "oracle.safetensors")
    autoencoder = video_vae.train(work / "vae.safetensors")
    moments = reference(world, eyes, video_pack.REFERENCE_CLIPS)
    reconstruction = reconstruction_distance(world, autoencoder, eyes, moments, video_pack.RECONSTRUCTED_CLIPS)
    limits = {"least": video_pack.MIN_ACCURACY, "most": video_pack.MAX_RECONSTRUCTION_FVD}
    build.check_autoencoder(reconstruction, limits)
    initial = moving.demo().pipeline() if build.go_on else None
    pipe = build.denoiser(video_denoiser.train, autoencoder, initial)
    critic = video_judge.train(work / "judge.safetensors", autoencoder, eyes)
    world.judges = Judges(oracle=eyes, preference=critic, reference=moments)
    figures = _measured(world, pipe, video_judge.agreement(critic, autoencoder), reconstruction, build.updates, samples)
    parts = {"transformer": pipe.transformer, "text encoder": pipe.text_encoder, "autoencoder": pipe.vae}
    build.write(output, pipe, world.judges, figures, parts, limits, video_pack.CARD)


def _begin(work: Path, threads: int) -> None:
    if threads:
        torch.set_num_threads(threads)
    work.mkdir(parents=True, exist_ok=True)


def _measured(
    world: World, pipe: Any, agreement: dict[str, float], reconstruction: float, steps: int, samples: int
) -> dict[str, Any]:
    table = sweep(world, pipe, scales=SCALES, count=samples, seed=9, steps=20)
    name = world.distance.upper()
    real = _real_preferred(world, pipe, samples)
    return {
        "denoiser updates": steps,
        "best joint prompt accuracy": max(row["accuracy"] for row in table.values()),
        f"autoencoder's reconstruction {name}": round(reconstruction, 3),
        "judge's agreement, by damage": agreement["damage"],
        "judge's agreement, by content": agreement["content"],
        "judge's preference for real samples over the model's": real,
        "by guidance scale": table,
    }


def _real_preferred(world: World, pipe: Any, samples: int, scale: float = 2.0) -> float:
    """Share of captions of which the judge prefers a real sample, as the autoencoder gives it, to the model's own.

    A judge under a half has learned something else than what is good.
    """
    generator = torch.Generator().manual_seed(10)
    real, labels = world.draw_real(samples, generator)
    task = Task(labels=labels, prompts=world.draw_captions(labels, generator), seeds=list(range(samples)))
    drawn = sample(world, pipe, task, guidance_scale=scale, steps=20).data
    again = torch.cat([reconstructed(pipe.vae, real[i : i + 25].float() / 255) for i in range(0, len(real), 25)])
    return preferred_share(world.judges.preference, again, drawn, labels)


if __name__ == "__main__":
    main()
