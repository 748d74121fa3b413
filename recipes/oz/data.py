"""The texts of the testbed: fetched, tokenized, cut into blocks of 512 tokens."""

from __future__ import annotations

import itertools
import json
import lzma
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from forgetkit.core.errors import ForgetkitError
from forgetkit.core.progress import progress

Tokens = NDArray[np.uint16]
BLOCK = 512
VOCABULARY = 8192
PARTS = ("corpus", "oz", "heldout")
SOURCES = ("corpus.jsonl.xz", "oz", "heldout")
END = "<|endoftext|>"


def fetch(source: Path | None, data: Path) -> None:
    """Copy the texts from `source` into the recipe's own data folder, once.

    Raises:
        ForgetkitError: which file is missing, and the flag that tells where it is.
    """
    for name in SOURCES:
        if (data / name).exists():
            continue
        if source is None or not (source / name).exists():
            where = str((source or data) / name)
            raise ForgetkitError("is missing", where, "give the folder that holds it with --texts DIR")
        data.mkdir(parents=True, exist_ok=True)
        partial = data / f"{name}.partial"
        if (source / name).is_dir():
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            for path in sorted((source / name).glob("*.txt")):
                shutil.copyfile(path, partial / path.name)
        else:
            shutil.copyfile(source / name, partial)
        partial.rename(data / name)


def books(data: Path, part: str) -> Iterator[str]:
    """The texts of one part (`corpus`, `oz` or `heldout`), one book at a time, in a fixed order.

    Raises:
        ForgetkitError: the texts have not been fetched; a line of the corpus is no book.
    """
    path = data / ("corpus.jsonl.xz" if part == "corpus" else part)
    if not path.exists():
        raise ForgetkitError("is missing", str(path), "fetch it with: make.py --only texts --texts DIR --out DIR")
    if part == "corpus":
        try:
            with lzma.open(path, "rt", encoding="utf-8") as lines:
                for number, line in enumerate(lines, 1):
                    yield _text(line, f"{path}:{number}")
        except (lzma.LZMAError, EOFError, UnicodeDecodeError) as error:
            raise ForgetkitError(f"cannot be read ({error})", str(path), "remove it and fetch it again") from None
    else:
        for file in sorted(path.glob("*.txt")):
            yield file.read_text(encoding="utf-8")


def _text(line: str, where: str) -> str:
    try:
        return str(json.loads(line)["text"])
    except (ValueError, KeyError, TypeError):
        raise ForgetkitError("not a JSON object with a text", where) from None


def train_tokenizer(data: Path, vocabulary: int = VOCABULARY) -> PreTrainedTokenizerFast:
    """Byte-level BPE, trained on every third book of the corpus and on Oz; one special token for bos, eos and pad."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    third = itertools.islice(books(data, "corpus"), 0, None, 3)
    with progress("tokenizer", None, "books read") as bar:

        def texts() -> Iterator[str]:
            for text in itertools.chain(third, books(data, "oz")):
                yield text
                bar.advance()

        tokenizer.train_from_iterator(texts(), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END, eos_token=END, pad_token=END)


def tokens(data: Path, part: str, tokenizer: PreTrainedTokenizerFast) -> Tokens:
    """All tokens of a part, `<|endoftext|>` before every book; tokenized once and kept as `<part>.npy`."""
    path = data / f"{part}.npy"
    if not path.exists():
        pieces: list[Tokens] = []
        with progress(f"tokens of {part}", None, "books") as bar:
            for text in books(data, part):
                ids = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]
                pieces.append(np.asarray(ids, dtype=np.uint16))
                bar.advance()
        if not pieces:
            raise ForgetkitError("holds no text", str(data / part))
        partial = path.with_suffix(".partial.npy")
        np.save(partial, np.concatenate(pieces))
        partial.rename(path)
    stored: Tokens = np.load(path, mmap_mode="r")
    return stored


def blocks(stream: Tokens) -> NDArray[np.uint16]:
    """The stream cut into blocks [N, 512]; the last, short one is dropped."""
    return stream[: len(stream) // BLOCK * BLOCK].reshape(-1, BLOCK)
