"""Make the shipped demo models from nothing: autoencoder, denoiser, oracle, judge, reference statistics.

    python tools/build_demo_models.py image --work build/demo
    python tools/build_demo_models.py video --work build/demo-video

Hours on two CPU cores. Every stage is kept in the work folder and skipped when it is there; the denoiser's, the
longest, goes on where it was interrupted.
"""

from pathlib import Path

import click
import torch

from selfnpo_core.errors import RunError
from selfnpo_image.demo import assets, measure
from selfnpo_image.demo.build import denoiser, judge, oracle, pack, vae
from selfnpo_image.models import find_source
from selfnpo_image.sd15 import load_pipeline
from selfnpo_video.demo import assets as video_assets
from selfnpo_video.demo import measure as video_measure
from selfnpo_video.demo.build import denoiser as video_denoiser
from selfnpo_video.demo.build import oracle as video_oracle
from selfnpo_video.demo.build import pack as video_pack
from selfnpo_video.demo.build import vae as video_vae

SCALES = (1.0, 2.0, 3.0, 5.0)


@click.group(help=__doc__)
def main() -> None:
    torch.set_flush_denormal(True)  # late in training they would slow it down several times


@main.command("image")
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Folder for the stages' results.")
@click.option("--output", type=click.Path(path_type=Path), default=assets.FOLDER, show_default=True)
@click.option("--threads", default=0, help="CPU threads; 0 leaves torch's choice.")
@click.option("--steps", default=4500, show_default=True, help="Updates of the denoiser.")
@click.option("--samples", default=500, show_default=True, help="Pictures at each guidance scale for the check.")
@click.option("--go-on", is_flag=True, help="Begin the denoiser with the shipped weights rather than random ones.")
@click.option("--interim", is_flag=True, help="Write a model that is not good enough too, and say so in its card.")
def build_image(work: Path, output: Path, threads: int, steps: int, samples: int, go_on: bool, interim: bool) -> None:
    """The SD1.5-class model of coloured shapes."""
    if threads:
        torch.set_num_threads(threads)
    work.mkdir(parents=True, exist_ok=True)
    eyes = oracle.train(work / "oracle.safetensors")
    autoencoder = vae.train(work / "vae.safetensors")
    moments = pack.reference(eyes)
    reconstruction = pack.reconstruction_fid(autoencoder, eyes, moments)
    print(f"autoencoder: reconstruction FID {reconstruction:.2f}")
    initial = load_pipeline(find_source("demo")) if go_on else None
    pipe = denoiser.train(work / "denoiser.safetensors", autoencoder, steps=steps, initial=initial)
    critic = judge.train(work / "judge.safetensors", autoencoder, eyes)
    agreement = judge.agreement(critic, autoencoder)
    print(f"judge: agreement on fresh pairs {agreement}")

    with measure.judged_by(eyes, critic, moments):
        table = measure.sweep(pipe, scales=SCALES, count=samples, seed=9, steps=20)
    best = max(row["accuracy"] for row in table.values())
    try:
        pack.refuse_ragged(best, reconstruction)
        note = ""
    except RunError as error:
        if not interim:
            raise
        note = str(error)
    pack.write_parts(output, pipe, eyes, critic, moments)
    parameters = [sum(p.numel() for p in part.parameters()) for part in (pipe.unet, pipe.text_encoder, pipe.vae)]
    pack.write_card(
        output,
        {
            "interim": note,
            "parameters (UNet, text encoder, autoencoder)": parameters,
            "denoiser updates": steps,
            "best joint prompt accuracy": best,
            "autoencoder's reconstruction FID": round(reconstruction, 3),
            "judge's agreement, by damage": agreement["damage"],
            "judge's agreement, by content": agreement["content"],
            "by guidance scale": table,
        },
    )


@main.command("video")
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Folder for the stages' results.")
@click.option("--output", type=click.Path(path_type=Path), default=video_assets.FOLDER, show_default=True)
@click.option("--threads", default=0, help="CPU threads; 0 leaves torch's choice.")
@click.option("--steps", default=6000, show_default=True, help="Updates of the denoiser.")
@click.option("--samples", default=256, show_default=True, help="Clips at each guidance scale for the check.")
def build_video(work: Path, output: Path, threads: int, steps: int, samples: int) -> None:
    """The CogVideoX-class model of moving shapes."""
    if threads:
        torch.set_num_threads(threads)
    work.mkdir(parents=True, exist_ok=True)
    eyes = video_oracle.train(work / "oracle.safetensors")
    autoencoder = video_vae.train(work / "vae.safetensors")
    moments = video_pack.reference(eyes)
    reconstruction = video_pack.reconstruction_fvd(autoencoder, eyes, moments)
    print(f"autoencoder: reconstruction distance {reconstruction:.2f}")
    pipe = video_denoiser.train(work / "denoiser.safetensors", autoencoder, steps=steps)
    table = video_measure.sweep(pipe, eyes, moments, scales=SCALES, count=samples, seed=9, steps=20)
    best = max(row["accuracy"] for row in table.values())
    video_pack.refuse_ragged(best, reconstruction)
    parts = (pipe.transformer, pipe.text_encoder, pipe.vae)
    figures = {
        "parameters (transformer, text encoder, autoencoder)": [sum(p.numel() for p in m.parameters()) for m in parts],
        "denoiser updates": steps,
        "best prompt accuracy, motion included": best,
        "autoencoder's reconstruction distance": round(reconstruction, 3),
        "by guidance scale": table,
    }
    video_pack.write_assets(output, pipe, eyes, moments, figures)


if __name__ == "__main__":
    main()
