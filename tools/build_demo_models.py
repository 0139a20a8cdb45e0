"""Make the shipped demo models from nothing: autoencoder, denoiser, oracle, judge, reference statistics.

    python tools/build_demo_models.py --work build/demo

Hours on two CPU cores. Every stage is kept in the work folder and skipped when it is there.
"""

from pathlib import Path

import click
import torch

from selfnpo_image.demo import assets, measure
from selfnpo_image.demo.build import denoiser, judge, oracle, pack, vae


@click.command(help=__doc__)
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Folder for the stages' results.")
@click.option("--output", type=click.Path(path_type=Path), default=assets.FOLDER, show_default=True)
@click.option("--threads", default=0, help="CPU threads; 0 leaves torch's choice.")
@click.option("--steps", default=4500, show_default=True, help="Updates of the denoiser.")
def main(work: Path, output: Path, threads: int, steps: int) -> None:
    if threads:
        torch.set_num_threads(threads)
    work.mkdir(parents=True, exist_ok=True)
    eyes = oracle.train(work / "oracle.safetensors")
    autoencoder = vae.train(work / "vae.safetensors")
    moments = pack.reference(eyes)
    reconstruction = pack.reconstruction_fid(autoencoder, eyes, moments)
    print(f"autoencoder: reconstruction FID {reconstruction:.2f}")
    pipe = denoiser.train(work / "denoiser.safetensors", autoencoder, steps=steps)
    critic = judge.train(work / "judge.safetensors", autoencoder)
    agreement = judge.agreement(critic, autoencoder)
    print(f"judge: agreement on fresh pairs {agreement}")
    pack.write_parts(output, pipe, eyes, critic, moments)
    table = measure.sweep(pipe, scales=(1.0, 2.0, 3.0, 5.0), count=500, seed=9, steps=20)
    best = max(row["accuracy"] for row in table.values())
    pack.refuse_ragged(best, reconstruction)
    pack.write_card(
        output,
        {
            "parameters (UNet, text encoder, autoencoder)": [
                sum(p.numel() for p in part.parameters()) for part in (pipe.unet, pipe.text_encoder, pipe.vae)
            ],
            "denoiser updates": steps,
            "best joint prompt accuracy": best,
            "autoencoder's reconstruction FID": round(reconstruction, 3),
            "judge's agreement, by damage": agreement["damage"],
            "judge's agreement, by content": agreement["content"],
            "by guidance scale": table,
        },
    )


if __name__ == "__main__":
    main()
