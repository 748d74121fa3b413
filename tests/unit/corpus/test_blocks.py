from __future__ import annotations

import hashlib
import itertools
import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from forgetkit.core.errors import ForgetkitError
from forgetkit.corpus.blocks import BlockedCorpus, block_documents
from forgetkit.corpus.readers import Document
from forgetkit.corpus.tokenise import beginning, encode
from tests.toys import SHAPES, TEXT, tokenizer


def document(text, name="d"):
    return Document(name, name, text, hashlib.sha256(text.encode()).hexdigest(), "utf-8", ())


def stream(text, tok):
    encoded = tok(text, add_special_tokens=False, return_offsets_mapping=True)
    return encoded["input_ids"], [tuple(pair) for pair in encoded["offset_mapping"]]


PIECES = st.sampled_from(
    [*TEXT.split(" ")[:60], " ", "  ", "\n\n", "“Zoë’s”", "☃", "👩\u200d🚀", "né", "\t", "İ", "1900"]
)
TEXTS = st.one_of(
    st.lists(PIECES, min_size=1, max_size=40).map(" ".join),
    st.text(st.characters(codec="utf-8"), max_size=40),
)


@settings(max_examples=60, deadline=None)
@pytest.mark.parametrize("shape", SHAPES)
@given(texts=st.lists(TEXTS, min_size=1, max_size=4), size=st.integers(8, 40))
def test_T9_blocks_concatenate_to_the_exact_token_stream(shape, texts, size):
    tok = tokenizer(shape)
    corpus = block_documents([document(text) for text in texts], tok, size)
    for number, text in enumerate(texts):
        ids, offsets = stream(text, tok)
        blocks = [block for block in corpus if block.document == number]
        assert [i for block in blocks for i in block.ids.tolist()] == ids
        assert [tuple(o) for block in blocks for o in block.offsets.tolist()] == offsets
        assert all(1 <= len(block.ids) <= size for block in blocks)
        assert len(ids) < 2 or all(len(block.ids) >= 2 for block in blocks)
        assert all(len(block.ids) == size for block in blocks[:-2])
        if blocks:
            assert blocks[0].char_start == 0
        for before, after in itertools.pairwise(blocks):
            assert before.char_end - 1 <= after.char_start <= before.char_end


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("piece", [700, 2500])
def test_T9_tokenising_in_pieces_equals_tokenising_the_whole(shape, piece):
    tok = tokenizer(shape)
    text = (TEXT + "\n\n“Zoë’s naïve ☃” <|endoftext|> and on  they went. ") * 30
    ids, offsets = encode(text, tok, piece=piece)
    expected = stream(text, tok)
    assert ids.tolist() == expected[0]
    assert [tuple(o) for o in offsets.tolist()] == expected[1]


def pieces_taken(tok, text, piece):
    """How many calls `encode` needed for more than a window of text."""
    lengths = []

    class Counting:
        is_fast = True
        backend_tokenizer = tok.backend_tokenizer

        def __call__(self, part, **options):
            lengths.append(len(part))
            return tok(part, **options)

    encode(text, Counting(), piece=piece)
    return sum(length > 512 for length in lengths), max(lengths)


def test_long_texts_are_really_cut_where_that_is_safe_and_nowhere_else(caplog):
    text = TEXT * 60
    for shape in ("bytelevel", "bytelevel_trim", "sentencepiece"):
        count, longest = pieces_taken(tokenizer(shape), text, 5000)
        assert count >= len(text) // 5000
        assert longest <= 5000
    with caplog.at_level(logging.WARNING, logger="forgetkit"):
        assert pieces_taken(tokenizer("no_pretokenizer"), text, 5000) == (1, len(text))
    assert "tokenised whole" in caplog.text


def test_a_long_line_without_any_space_is_tokenised_whole():
    tok = tokenizer()
    text = "prairies" * 2000
    assert encode(text, tok, piece=1000)[0].tolist() == stream(text, tok)[0]


@pytest.mark.parametrize(
    ("count", "sizes"), [(16, [8, 8]), (17, [8, 7, 2]), (18, [8, 8, 2]), (9, [7, 2]), (1, [1]), (3, [3])]
)
def test_last_block_is_kept_and_never_a_single_token(count, sizes):
    corpus = block_documents([document("\x7f" * count)], tokenizer(), 8)  # one token per character
    assert [len(block.ids) for block in corpus] == sizes


def test_empty_document_has_no_block_and_windows_include_the_space_that_offsets_leave_out():
    corpus = block_documents([document(""), document(TEXT)], tokenizer("bytelevel_trim"), 16)
    assert {block.document for block in corpus} == {1}
    assert "".join(TEXT[block.char_start : block.char_end] for block in corpus) == TEXT


def test_bos_is_what_the_tokenizer_prepends_not_what_it_names():
    plain = tokenizer()
    assert plain.bos_token_id is not None
    assert beginning(plain) is None
    with_bos = PreTrainedTokenizerFast(
        tokenizer_object=plain.backend_tokenizer.from_str(plain.backend_tokenizer.to_str())
    )
    with_bos.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    assert beginning(with_bos) == 0
    corpus = block_documents([document(TEXT)], with_bos, 16)
    assert corpus.bos_id == 0
    assert corpus.ids.tolist() == stream(TEXT, plain)[0]
    at_end = PreTrainedTokenizerFast(
        tokenizer_object=plain.backend_tokenizer.from_str(plain.backend_tokenizer.to_str())
    )
    at_end.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <|endoftext|>", special_tokens=[("<|endoftext|>", 0)]
    )
    assert beginning(at_end) is None
    with_bos.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> <|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    with pytest.raises(ForgetkitError, match="more than one"):
        beginning(with_bos)


def test_a_tokenizer_without_offsets_is_refused_before_it_is_used():
    class Slow:
        is_fast = False

    with pytest.raises(ForgetkitError, match="Slow"):
        block_documents([document("x")], Slow(), 8)


@pytest.fixture
def saved(tmp_path):
    corpus = block_documents([document(TEXT, "a"), document("Zoë\u2028☃ " * 20, "b")], tokenizer(), 16)
    corpus.save(tmp_path / "c")
    return corpus, tmp_path / "c"


def test_save_and_load_give_back_the_same_corpus(saved):
    corpus, folder = saved
    loaded = BlockedCorpus.load(folder)
    assert loaded.documents == corpus.documents
    assert (loaded.bos_id, loaded.block_tokens, len(loaded), loaded.n_tokens) == (
        None,
        16,
        len(corpus),
        corpus.n_tokens,
    )
    for name in ("ids", "offsets", "bounds"):
        assert getattr(loaded, name).dtype == getattr(corpus, name).dtype
        assert np.array_equal(getattr(loaded, name), getattr(corpus, name))
    assert sorted(p.name for p in folder.iterdir()) == ["blocks.safetensors", "documents.jsonl"]
    assert corpus[-1].index == len(corpus) - 1
    with pytest.raises(IndexError):
        corpus[len(corpus)]


CHANGES = {
    "type": lambda a: a | {"ids": a["ids"].astype(np.int64)},
    "shape": lambda a: a | {"offsets": a["offsets"][:-1].copy()},
    "gap": lambda a: a | {"bounds": a["bounds"][:-1].copy()},
    "empty block": lambda a: a | {"bounds": np.insert(a["bounds"], 1, [0, 16, 16], axis=0)},
    "document": lambda a: a | {"bounds": a["bounds"] + np.array([5, 0, 0])},
    "offset": lambda a: a | {"offsets": a["offsets"] + np.int32(10_000)},
    "missing": lambda a: {"ids": a["ids"]},
}


@pytest.mark.parametrize("change", CHANGES)
def test_inconsistent_arrays_are_refused(saved, change):
    _, folder = saved
    path = folder / "blocks.safetensors"
    save_file(CHANGES[change](load_file(path)), path, {"corpus": '{"bos_id": null, "block_tokens": 16}'})
    with pytest.raises(ForgetkitError, match=r"blocks\.safetensors"):
        BlockedCorpus.load(folder)


@pytest.mark.parametrize("name", ["blocks.safetensors", "documents.jsonl"])
def test_truncated_missing_and_altered_files_are_refused(saved, name):
    _, folder = saved
    data = (folder / name).read_bytes()
    for bad in (
        data[: len(data) // 2],
        b"",
        data.replace(b"Dorothy", b"Dorothi") if name.endswith("l") else data[:-1],
    ):
        (folder / name).write_bytes(bad)
        with pytest.raises(ForgetkitError):
            BlockedCorpus.load(folder)
    (folder / name).unlink()
    with pytest.raises(ForgetkitError):
        BlockedCorpus.load(folder)


@pytest.mark.parametrize("shape", SHAPES)
def test_ids_and_offsets(shape):
    tok = tokenizer(shape)
    text = "Dorothy’s “Emerald City” ïs fár 🙂 away"
    ids, offsets = encode(text, tok)
    assert ids.dtype == offsets.dtype == np.int32
    assert offsets.shape == (len(ids), 2)
    assert offsets.min() >= 0
    assert offsets.max() == len(text)
    assert tok.decode(ids) == text
    assert [a.shape for a in encode("", tok)] == [(0,), (0, 2)]


def test_nothing_is_cut_off_and_nothing_added():
    backend = tokenizer().backend_tokenizer
    tok = PreTrainedTokenizerFast(tokenizer_object=type(backend).from_str(backend.to_str()), model_max_length=5)
    tok.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=["<|endoftext|>", "$A", "<|endoftext|>"], special_tokens=[("<|endoftext|>", 0)]
    )
    assert tok(TEXT)["input_ids"][0] == 0
    ids, _ = encode(TEXT, tok)
    assert len(ids) > 50
    assert 0 not in ids
