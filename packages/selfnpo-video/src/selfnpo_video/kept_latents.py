"""Latents of clips that are denoised and not written yet: OUTPUT/.latents/00000-SEED.safetensors.

Denoising takes nearly all of a clip's time, and decoding most of its memory. So latents are on the disk before they are
decoded, and until the clip is: a run that ends in between goes on with decoding when the command is repeated.
"""

import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from selfnpo_core.system.caches import digest_of
from selfnpo_core.system.files import write_tensors

FOLDER = ".latents"
Record = Mapping[str, Any]


class KeptLatents:
    """Of a folder of samples, by the records of its metadata.jsonl. What was made otherwise is not there."""

    def __init__(self, output: Path):
        self.folder = output / FOLDER

    def keep(self, record: Record, latents: Tensor) -> None:
        """latents: (1, F, C, h, w), as they are to be decoded."""
        write_tensors(self._file(record), {"latents": latents}, {"of": digest_of(record)})

    def read(self, record: Record) -> Tensor | None:
        """(1, F, C, h, w), `None` where there are none of just this clip."""
        try:
            with safe_open(self._file(record), framework="pt") as file:
                of_it = (file.metadata() or {}).get("of") == digest_of(record)
                latents: Tensor | None = file.get_tensor("latents") if of_it else None
                return latents
        except (OSError, SafetensorError):
            return None

    def drop(self, record: Record) -> None:
        """Of a clip that is written."""
        self._file(record).unlink(missing_ok=True)
        with suppress(OSError):  # others are in it
            self.folder.rmdir()

    def clear(self) -> None:
        """All of them, where nothing is left to write."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _file(self, record: Record) -> Path:
        return self.folder / f"{Path(record['file']).stem}.safetensors"
