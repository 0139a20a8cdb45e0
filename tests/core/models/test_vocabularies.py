"""A tokenizer without its files is empty, and the libraries say nothing of it."""

import json
import shutil

import pytest
from tests.model_folders import spiece_model
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer, T5Tokenizer

from selfnpo_core.errors import InputError
from selfnpo_core.models.vocabularies import check_tokenizer, limit_length

TEXTS = ["a red fox", "two blue boats"]
T5, CLIP = {"vocab_size": 256}, {"vocab_size": 516, "max_position_embeddings": 77}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The layouts that are on the hub: `spiece.model` alone for T5, vocab.json and merges.txt for CLIP."""
    folder = tmp_path_factory.mktemp("tokenizers")
    lines = [f"{text} number {n} of many" for n in range(50) for text in TEXTS]
    t5 = {"extra_ids": 100, "model_max_length": 512, "tokenizer_class": "T5Tokenizer"}
    (folder / "t5").mkdir()
    (folder / "t5/spiece.model").write_bytes(spiece_model(lines, 60))
    (folder / "t5/tokenizer_config.json").write_text(json.dumps(t5))
    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(letter + "</w>" for letter in letters), "re", "red</w>", "<|startoftext|>", "<|endoftext|>"]
    clip = {"model_max_length": 77, "pad_token": "<|endoftext|>", "tokenizer_class": "CLIPTokenizer"}
    (folder / "clip").mkdir()
    (folder / "clip/vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (folder / "clip/merges.txt").write_text("#version: 0.2\nr e\nre d</w>\n")
    (folder / "clip/tokenizer_config.json").write_text(json.dumps(clip))
    return folder


def test_the_published_layouts_load(published):
    for made, name, encoder in ((T5Tokenizer, "t5", T5), (CLIPTokenizer, "clip", CLIP)):
        tokenizer = made.from_pretrained(published / name)
        check_tokenizer(tokenizer, encoder, name, "m")
        one, other = tokenizer(TEXTS).input_ids
        assert one != other


@pytest.mark.parametrize(
    ("made", "name", "lost", "files"),
    [
        (T5Tokenizer, "t5", "spiece.model", "spiece.model or tokenizer.json"),
        (CLIPTokenizer, "clip", "*.*", "vocab.json or merges.txt or tokenizer.json"),
    ],
)
def test_a_lost_vocabulary_is_named(published, tmp_path, made, name, lost, files):
    copy = shutil.copytree(published / name, tmp_path / name)
    for file in copy.glob(lost):
        file.unlink()
    tokenizer = made.from_pretrained(copy)
    with pytest.raises(InputError, match=rf"m lacks the vocabulary of its {name}_2, .*\({files} is missing or empty\)"):
        check_tokenizer(tokenizer, {"vocab_size": 512}, f"{name}_2", "m")


def test_another_models_tokenizer_and_lost_merges(published, tmp_path):
    clip = CLIPTokenizer.from_pretrained(published / "clip")
    with pytest.raises(InputError, match="a tokenizer of another model"):
        check_tokenizer(clip, {"vocab_size": 300}, "tokenizer", "m")
    clip.save_pretrained(tmp_path)
    file = tmp_path / "tokenizer.json"
    state = json.loads(file.read_text())
    state["model"]["merges"] = []
    file.write_text(json.dumps(state))
    with pytest.raises(InputError, match=r"lacks the merges of its tokenizer \(merges\.txt\)"):
        check_tokenizer(CLIPTokenizer.from_pretrained(tmp_path), CLIP, "tokenizer", "m")
    clip.pad_token = None
    with pytest.raises(InputError, match="without a padding token"):
        check_tokenizer(clip, CLIP, "tokenizer", "m")


@pytest.mark.parametrize(
    ("said", "length"),
    [(77, 77), (64, 64), (None, 77), ([77], 77), ("77", 77), (1e30, 77), (248, 77), (-1, 77), (60.0, 60), (True, 77)],
)
def test_tokens_are_cut_at_the_encoders_positions(published, said, length):
    tokenizer = CLIPTokenizer.from_pretrained(published / "clip")
    tokenizer.model_max_length = said
    limit_length(tokenizer, CLIP)
    assert tokenizer.model_max_length == length
    assert len(tokenizer("red " * 100, padding="max_length", truncation=True).input_ids) == length


@pytest.mark.parametrize("said", [None, -1, True, "77", [77]])
def test_positions_that_are_none_are_as_usual(published, said):
    tokenizer = CLIPTokenizer.from_pretrained(published / "clip")
    tokenizer.model_max_length = None
    limit_length(tokenizer, {"max_position_embeddings": said})
    assert tokenizer.model_max_length == 77


def test_t5_has_no_positions(published):
    tokenizer = T5Tokenizer.from_pretrained(published / "t5")
    tokenizer.model_max_length = ["x"]
    limit_length(tokenizer)
    assert len(tokenizer(TEXTS).input_ids) == 2
