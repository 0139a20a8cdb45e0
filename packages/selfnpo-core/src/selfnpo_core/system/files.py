"""Files that are whole or not there: written aside, brought to the disk, and only then given their name."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from selfnpo_core.errors import InputError
from selfnpo_core.system.foreign import foreign_kind
from selfnpo_core.system.paths import LONGEST_NAME
from selfnpo_core.system.text import parse_json, read_text, writable

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
BLOCK = 1 << 20
SAFETENSORS_TYPES: Mapping[torch.dtype, str] = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""Names of types in the format."""


@contextmanager
def written_aside(target: Path) -> Iterator[Path]:
    """A new folder to fill, which becomes `target` when the block ends; if it fails, `target` stays as it was."""
    target.parent.mkdir(parents=True, exist_ok=True)
    old = _old(target)
    if old.exists() and not target.exists():  # killed between the two renames of `_replace_folder`
        os.rename(old, target)
    aside = target.with_name(f".{target.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        yield aside
        _sync_tree(aside)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    _replace_folder(aside, target)


def _replace_folder(aside: Path, target: Path) -> None:
    old = _old(target)
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        os.rename(target, old)
    os.rename(aside, target)
    _sync(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def _old(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")


def tidy(folder: Path) -> None:
    """Finish or take back what a process was killed at while it replaced something in this folder."""
    for old in folder.glob(".*.old"):
        target = folder / old.name[1:].removesuffix(".old")
        if target.exists():
            shutil.rmtree(old)
        else:
            os.rename(old, target)
    for aside in folder.glob(".*.partial"):
        if aside.is_dir():
            shutil.rmtree(aside)
        else:
            aside.unlink()


def write_text(path: Path, text: str) -> None:
    """Replace a text file by a whole new one. One process at a time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _renamed(_aside(path, ".partial"), path) as aside:
        aside.write_text(text, encoding="utf-8", newline="\n")


@contextmanager
def file_aside(target: Path) -> Iterator[Path]:
    """A new file to write, which becomes `target` when the block ends. Several processes may do so at once."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with _renamed(_aside(target, f".{uuid4().hex}.partial"), target) as aside:
        yield aside


def _aside(target: Path, ending: str) -> Path:
    """Hidden, beside `target`; a name that leaves no room for the ending is shortened to its hash."""
    name = target.name
    if len(os.fsencode(name)) + len(ending) >= LONGEST_NAME:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()[:32]
    return target.with_name(f".{name}{ending}")


@contextmanager
def named_aside(target: Path, within: Path | None = None) -> Iterator[Path]:
    """A file or folder to make under its own name in a folder aside; it becomes `target` when the block ends.

    For writers that go by a name's suffix, or that may still write after they have failed. within: the folder aside,
    where the caller looks for what a kill has left.
    """
    folder = within or _aside(target, f".{uuid4().hex}.partial")
    folder.mkdir(exist_ok=True)
    try:
        made = folder / target.name
        yield made
        _sync_tree(folder)
        if target.is_dir():  # the whole one that a rename cannot replace
            shutil.rmtree(target)
        os.replace(made, target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    _sync(target.parent)


@contextmanager
def _renamed(aside: Path, target: Path) -> Iterator[Path]:
    """A file to write at `aside`, which becomes `target` once it is on the disk; if it fails, it is removed."""
    try:
        yield aside
        _sync(aside)
        os.replace(aside, target)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    _sync(target.parent)


def write_json(path: Path, value: Any) -> None:
    write_text(path, writable(json.dumps(value, indent=1, ensure_ascii=False)) + "\n")


def read_json(path: Path) -> Any:
    """Of any encoding with a byte-order mark, else UTF-8. Raises OSError and ValueError."""
    return parse_json(read_text(path))


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """A safetensors file; its I/O errors come as OSError, with their number."""
    own: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        own[name] = tensor.clone() if tensor.data_ptr() in seen else tensor
        seen.add(own[name].data_ptr())
    try:
        save_file(own, str(path), metadata=metadata)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


class HashedFile:
    """A safetensors file that is hashed as it is written, so that it need not be read again.

    outlines: the shapes and types of what it will hold, which may be on the meta device. Tensors are added in
    `file_order`. Layout: 8 bytes of length, a JSON header padded to 8 bytes, the tensors without gaps.
    """

    def __init__(self, path: Path, outlines: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None):
        header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
        self._left, end = [], 0
        for name in file_order(outlines):
            outline = outlines[name]
            start, end = end, end + outline.numel() * outline.element_size()
            kind = SAFETENSORS_TYPES[outline.dtype]
            header[name] = {"dtype": kind, "shape": list(outline.shape), "data_offsets": [start, end]}
            self._left.append((outline.shape, outline.dtype))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        self._digest, self._file, self.size = hashlib.sha256(), open(path, "wb"), 0  # noqa: SIM115
        self._write(len(text).to_bytes(8, "little") + text)

    def add(self, tensor: Tensor) -> None:
        assert self._left.pop(0) == (tensor.shape, tensor.dtype)
        for block in _blocks(tensor):
            self._write(block)

    def close(self) -> str:
        """Bring it to the disk. Returns its sha256."""
        assert not self._left
        with self._file as file:
            file.flush()
            os.fsync(file.fileno())
        return self._digest.hexdigest()

    def _write(self, block: bytes | memoryview) -> None:
        self._file.write(block)
        self._digest.update(block)
        self.size += len(block)


def file_order(outlines: Mapping[str, Tensor]) -> list[str]:
    """Names in the order in which a safetensors file holds them: wider numbers first, so that each lies aligned."""
    return sorted(outlines, key=lambda name: (-outlines[name].element_size(), name))


def _blocks(tensor: Tensor) -> Iterator[memoryview]:
    """A tensor's bytes, in parts that stay in the processor's caches from the disk's copy to the hash."""
    numbers = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    for start in range(0, len(numbers), BLOCK):
        yield numbers[start : start + BLOCK].data


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Replace a safetensors file by a whole new one. Several processes may do so at once."""
    with file_aside(path) as aside:
        save_tensors(aside, tensors, metadata)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """A safetensors file. Pickled weights are refused: loading them runs whatever code they hold."""
    if path.suffix in PICKLES:
        raise InputError(f"{path} is a pickle, which can run code when loaded: convert it to .safetensors")
    if not path.is_file():
        raise InputError(f"{path} does not exist")
    try:
        return load_file(str(path))
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} {foreign_kind(path) or not_whole(error)}") from None


def not_whole(error: Exception) -> str:
    """The rest of a message that begins with the file's name, of a file that safetensors does not take."""
    return f"is not a whole safetensors file ({' '.join(str(error).split())}): make or copy it again"


def same_tensors(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[k].dtype == other[k].dtype and torch.equal(one[k].cpu(), other[k].cpu()) for k in one
    )


def _sync_tree(folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        _sync(path)
    _sync(folder)


def _sync(path: Path) -> None:
    """Bring a file or folder to the disk. Windows opens no folders, and syncs only what is open for writing."""
    try:
        handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    except PermissionError:
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_sha256(path: str | Path) -> str:
    """Hash of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
