"""Prompts' embeddings are made once: runs share a cache on disk, and the processes of a run fill it together.

    FOLDER/files.json                      sha256 of files that were read before, by path
    FOLDER/<encoder>/encoder.json          what encodes, for people to read
    FOLDER/<encoder>/<rows>.safetensors    rows of some prompts, about 64 MiB, never changed under its name

An entry's key is the sha256 of what encodes and of the text. What encodes is: the contents of the files that weights,
configurations and code come from, the tokenizer, dtype, number of tokens, the libraries' versions, and the device,
since each kind of device rounds in its own way. Every text is encoded by itself: how a matrix product rounds depends on
its shape (by 6e-6 in a toy T5), so that a row would depend on what else was missing. Thus a run is the same, bit for
bit, with an empty cache, a full one and none. It is slower than in batches, but done once, and shared out
over the machines, of each of which one process reads the encoders.

A row is used only if its checksum, stored beside it, is that of its key and its bytes. Files get their name when they
are whole, and nothing is locked: what is missing, damaged or swept away by another process is encoded anew. What this
cannot see: a file of the encoder whose contents changed and whose size, time of change and inode did not; other
arithmetic on a device of the same name (CPUs: of the same instruction set and number of threads).
"""

import json
import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache as once
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm import tqdm

from selfnpo_core.system.caches import MOST_BYTES, cache_folder, checksum, digest_of, remove, sha256_of, sweep, touch
from selfnpo_core.system.files import file_aside, read_json, save_tensors
from selfnpo_core.system.processes import gathered, is_first_of_node, is_main, on_main, own_share

log = logging.getLogger(__name__)
SHARD_BYTES = 64 << 20

Text = str | None
"""A prompt; `None` is the null prompt, which need not be what the empty text is."""
Row = tuple[Tensor, ...]
"""What a denoiser is told of one text, in host memory: the family's tensors, without a batch dimension."""
Encode = Callable[[Text], Row]
_BAR_FROM = 32
_ROUNDS = 2
_SETTLED_NS = 2_000_000_000


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """A model's text encoder, or several.

    load: read the weights; called at most once, and only if a text is to be encoded.
    files: what the weights, configurations and code are read from, by names that no machine changes.
    facts: all else that decides what comes out, as json can hold it.
    """

    load: Callable[[], Encode]
    files: Mapping[str, Path]
    facts: Mapping[str, Any]
    device: torch.device


@torch.no_grad()
def embedded(texts: Sequence[Text], encoder: Encoder, cache: "EmbeddingsCache | None" = None) -> tuple[Tensor, ...]:
    """The texts' rows as tensors (N, …) in host memory. With a cache, for all processes of a run together."""
    table, load = EmbeddingTable(texts), once(encoder.load)
    if cache is not None:
        _fill_together(table, cache.part_of(encoder), load)
    for _ in _encoded(table, list(table.missing), load):
        pass
    return table.columns


def _fill_together(table: "EmbeddingTable", cached: "EncoderCache", load: Callable[[], Encode]) -> None:
    """What is missing is shared out over the nodes, of each of which one process reads the encoder.

    As often as there are nodes, for those that see different folders. The rest is left over.
    """
    texts = {cached.key(text): text for text in table.missing}
    for attempt in range(max(_ROUNDS, sum(gathered(is_first_of_node)))):
        found_by = gathered(lambda: (cached.read(table), is_first_of_node()))
        lacking, first = [keys for keys, _ in found_by], [is_first for _, is_first in found_by]
        if attempt == 0 and is_main():
            found = len(table) - len(table.missing)
            log.info("%d of %d texts have their embeddings in %s", found, len(table), cached.root)
        if not any(lacking):
            break
        own = [texts[key] for key in own_share(lacking, first)]
        gathered(partial(cached.write, _encoded(table, own, load)))
    else:
        cached.read(table)
    cached.sweep()


def _encoded(table: "EmbeddingTable", texts: Sequence[Text], load: Callable[[], Encode]) -> Iterator[tuple[Text, Row]]:
    """Encode, put into the table and hand on."""
    hidden = len(texts) < _BAR_FROM or not is_main()
    for text in tqdm(texts, desc="embed prompts", unit="prompt", disable=hidden):
        row = load()(text)
        table.put(text, row)
        yield text, row


class EmbeddingTable:
    """The embeddings of texts, a row each, in their order, put in as they come; a text may stand there twice."""

    def __init__(self, texts: Sequence[Text]):
        self.columns: tuple[Tensor, ...] = ()
        self._places: dict[Text, list[int]] = {}
        for place, text in enumerate(texts):
            self._places.setdefault(text, []).append(place)
        self._rows = len(texts)
        self.missing = dict.fromkeys(self._places)

    def __len__(self) -> int:
        """Different texts."""
        return len(self._places)

    def put(self, text: Text, row: Row) -> None:
        if not self.columns:
            self.columns = tuple(torch.empty((self._rows, *part.shape), dtype=part.dtype) for part in row)
        for column, part in zip(self.columns, row, strict=True):
            for place in self._places[text]:
                column[place] = part
        self.missing.pop(text, None)


class EmbeddingsCache:
    """A folder that keeps embeddings, of any encoders. To empty it, delete it."""

    def __init__(self, folder: Path):
        self.folder = folder

    @classmethod
    def of(cls, setting: str | None) -> "EmbeddingsCache | None":
        """By the recipe's `embeddings_cache`: a folder, "auto" for one in the user's own cache, `None` for none."""
        folder = cache_folder("embeddings_cache", setting, "embeddings")
        return None if folder is None else cls(folder)

    def part_of(self, encoder: Encoder) -> "EncoderCache":
        """The part of the cache that is this encoder's."""
        on_main(lambda: [self.sha256(path) for path in encoder.files.values()])  # the others find it remembered
        about = {
            "files": {name: self.sha256(path) for name, path in encoder.files.items()},
            **encoder.facts,
            **arithmetic(encoder.device),
        }
        return EncoderCache(self.folder, about)

    def sha256(self, path: Path) -> str:
        """Of a file's contents. One that has lain there unchanged since it was last hashed is not read again."""
        path, memory = path.resolve(), self.folder / "files.json"
        seen = _looks(path)
        known = _remembered(memory)
        match known.get(str(path)):
            case [*looks, str(digest)] if looks == seen:
                return digest
        with open(path, "rb") as file:
            digest = sha256_of(iter(lambda: file.read(1 << 22), b""))
        if _looks(path) == seen and time.time_ns() - seen[1] > _SETTLED_NS:  # else the next change may look the same
            with suppress(OSError), file_aside(memory) as aside:
                aside.write_text(json.dumps({**known, str(path): [*seen, digest]}, indent=0), encoding="utf-8")
        return digest


class EncoderCache:
    """The rows of one encoder in a cache."""

    def __init__(self, root: Path, about: Mapping[str, Any]):
        self.about, self.encoder = about, digest_of(about)
        self.root, self.folder = root, root / self.encoder[:32]
        self._used: set[Path] = set()
        self._writes = True

    def key(self, text: Text) -> str:
        return digest_of([self.encoder, text])

    def read(self, table: EmbeddingTable) -> list[str]:
        """Put what is there into the table, and return the keys of what is not. Damaged files are removed."""
        wanted = {self.key(text): text for text in table.missing}
        for path in sorted(self.folder.glob("*.safetensors")) if wanted else []:
            try:
                rows = dict(self._rows(path, wanted))
            except FileNotFoundError:  # swept away since
                continue
            except OSError as error:
                log.warning("%s in the embeddings cache cannot be read (%s): going on without", path, error)
                continue
            except (SafetensorError, ValueError, LookupError, TypeError) as error:
                log.warning("%s in the embeddings cache is damaged (%s): it is made anew", path, _one_line(error))
                remove(path)
                continue
            for key, row in rows.items():
                table.put(wanted.pop(key), row)
            if rows:
                self._use(path)
        return list(wanted)

    def write(self, rows: Iterable[tuple[Text, Row]]) -> None:
        """Keep rows as they come, in files of about `SHARD_BYTES`."""
        held: dict[str, Row] = {}
        size = 0
        for text, row in rows:
            held[self.key(text)] = row
            size += sum(part.nbytes for part in row)
            if size >= SHARD_BYTES:
                self._save(held)
                held, size = {}, 0
        if held:
            self._save(held)

    def sweep(self) -> None:
        """Remove what is oldest while the cache is too large, and what killed processes left half-written."""
        sweep(self.root, self._used, MOST_BYTES)

    def _use(self, path: Path) -> None:
        self._used.add(path)
        touch(path)

    def _save(self, rows: Mapping[str, Row]) -> None:
        if not self._writes:
            return
        path = self.folder / f"{digest_of(list(rows))[:32]}.safetensors"
        columns = {str(i): torch.stack(column) for i, column in enumerate(zip(*rows.values(), strict=True))}
        checksums = json.dumps([[key, checksum(key, row)] for key, row in rows.items()])
        try:
            if not (about := self.folder / "encoder.json").exists():
                with file_aside(about) as aside:
                    aside.write_text(json.dumps(self.about, indent=1), encoding="utf-8")
            with file_aside(path) as aside:
                save_tensors(aside, columns, {"encoder": self.encoder, "rows": checksums})
                aside.chmod(about.stat().st_mode)  # safetensors lets nobody else read it
            self._use(path)
        except OSError as error:
            log.warning("the embeddings cache %s cannot be written (%s): going on without", self.root, error)
            self._writes = False

    def _rows(self, path: Path, wanted: Collection[str]) -> Iterator[tuple[str, Row]]:
        """Those of a file that are wanted, each compared with its checksum."""
        with safe_open(str(path), framework="pt") as file:
            about = file.metadata() or {}
            if about["encoder"] != self.encoder:
                raise ValueError("of another encoder")
            columns = [file.get_slice(str(i)) for i in range(len(file.keys()))]
            for place, (key, known) in enumerate(json.loads(about["rows"])):
                if key in wanted:
                    row = tuple(column[place] for column in columns)
                    if checksum(key, row) != known:
                        raise ValueError("a row has another checksum")
                    yield key, row


def tokenizer_facts(tokenizer: Any) -> dict[str, str]:
    """What a tokenizer of transformers does to a text, but for how it pads and cuts, which calls change."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    fixed = {key: value for key, value in state.items() if key not in ("padding", "truncation")}
    settings = [fixed, tokenizer.special_tokens_map, tokenizer.model_max_length, tokenizer.padding_side]
    if template := getattr(tokenizer, "chat_template", None):
        settings.append(template)
    return {"class": type(tokenizer).__name__, "sha256": digest_of(settings)}


def arithmetic(device: torch.device) -> dict[str, Any]:
    """What decides how numbers are rounded, as far as it is known."""
    if device.type == "cuda":
        where: list[Any] = [torch.cuda.get_device_name(device), torch.version.cuda or torch.version.hip]
    elif device.type == "cpu":
        where = ["cpu", torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()]
    else:
        where = [device.type]
    others = {name: version(name) for name in ("transformers", "diffusers", "tokenizers")}
    return {
        "device": [*where, torch.get_float32_matmul_precision()],
        "versions": {"torch": torch.__version__, **others},
    }


def _looks(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ino]


def _remembered(memory: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        known = read_json(memory)
        if isinstance(known, dict):
            return known
    return {}


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
