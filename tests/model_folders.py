"""Folders of tiny models as people have them: saved, copied to be changed, in the layouts that are on the hub."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import sentencepiece


def saved(pipe: Any, path: Path) -> Path:
    """A pipeline's diffusers folder."""
    pipe.save_pretrained(path)
    return path


def copied(folder: Path, path: Path) -> Path:
    """The same folder elsewhere, to be changed."""
    return Path(shutil.copytree(folder, path))


def edit(file: Path, **changes: Any) -> None:
    """Change fields of a JSON file; a field that is changed to `...` is dropped."""
    values = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({key: value for key, value in values.items() if value is not ...}))


def spiece_model(lines: list[str], words: int) -> bytes:
    """A vocabulary of sentencepiece, with T5's places for padding, end and unknown."""
    model, ids = io.BytesIO(), {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    how = {"vocab_size": words, "hard_vocab_limit": False, "minloglevel": 2}
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_writer=model, **how, **ids)
    return model.getvalue()


def publish_t5(tokenizer: Path) -> None:
    """Give a T5's tokenizer the layout that is published: `spiece.model`, and no tokenizer.json."""
    (tokenizer / "tokenizer.json").unlink()
    (tokenizer / "spiece.model").write_bytes(spiece_model(["a red fox on a boat", "two blue hats"] * 20, 45))
    edit(tokenizer / "tokenizer_config.json", extra_ids=100, extra_special_tokens=...)
