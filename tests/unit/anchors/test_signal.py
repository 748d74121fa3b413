"""The model's signal: gains per token against a plain reference, and what is made of gains given by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from forgetkit.anchors.extract import Candidate
from forgetkit.anchors.signal import TokenPlaces, combine, mean_gains, terms_by_gain, token_gains
from forgetkit.corpus.blocks import BlockedCorpus, block_documents
from forgetkit.corpus.readers import Document
from tests.toys import TEXT, model, tokenizer


def corpus_of(*texts: str, shape: str = "bytelevel", block: int = 16) -> BlockedCorpus:
    documents = [Document(str(i), f"{i}.txt", text, "", "utf-8", ()) for i, text in enumerate(texts)]
    return block_documents(documents, tokenizer(shape), block)


def found(term: str, corpus: BlockedCorpus) -> Candidate:
    spans = []
    for n, document in enumerate(corpus.documents):
        at = document.text.find(term)
        while at >= 0:
            spans.append((n, at, at + len(term)))
            at = document.text.find(term, at + 1)
    return Candidate(term, len(spans), 10.0, "name", tuple(spans), tuple(term.lower().split()))


@pytest.mark.parametrize("bos", [None, 0])
def test_gains_equal_a_plain_reference(bos: int | None) -> None:
    made = corpus_of(TEXT[:150], TEXT[150:260])
    corpus = BlockedCorpus(made.documents, made.ids, made.offsets, made.bounds, bos, made.block_tokens)
    low, high = model(seed=0), model(seed=1)
    gains = token_gains(low, high, corpus, batch=3)
    assert gains.dtype == np.float32
    assert gains.shape == corpus.ids.shape
    lead = [] if bos is None else [bos]
    for _, start, end in corpus.bounds:
        ids = torch.tensor([[*lead, *corpus.ids[start:end].tolist()]])
        with torch.no_grad():
            diff = high(ids).logits.log_softmax(-1) - low(ids).logits.log_softmax(-1)
        for k in range(start, end):
            row = k - start + len(lead) - 1
            expected = 0.0 if row < 0 else float(diff[0, row, corpus.ids[k]])
            assert gains[k] == pytest.approx(expected, abs=2e-4)


def test_sampled_blocks_leave_the_others_undefined() -> None:
    corpus = corpus_of(TEXT)
    low, high = model(seed=0), model(seed=1)
    whole, part = token_gains(low, high, corpus), token_gains(low, high, corpus, most_blocks=3)
    known = ~np.isnan(part)
    assert 0 < known.sum() < len(part)
    np.testing.assert_allclose(part[known], whole[known], atol=1e-5)


@pytest.mark.parametrize("shape", ["bytelevel", "bytelevel_trim", "sentencepiece", "no_pretokenizer"])
def test_token_places(shape: str) -> None:
    corpus = corpus_of(TEXT, TEXT[::-1], shape=shape)
    places = TokenPlaces(corpus)
    for document in (0, 1):
        for at in range(0, len(TEXT), 7):
            token = places.token(document, at)
            if token is None or TEXT[at] == " " or corpus.documents[document].text[at] == " ":
                continue
            start, end = corpus.offsets[token]
            assert start <= at < end
            block = places.block(token)
            assert corpus.bounds[block, 0] == document
            assert corpus.bounds[block, 1] <= token < corpus.bounds[block, 2]


def test_only_the_first_occurrence_in_a_block_counts() -> None:
    corpus = corpus_of("Toto ran; Toto sat. " + "the grey cat went down to the river " * 6 + "and Toto ate", block=24)
    toto = found("Toto", corpus)
    places = TokenPlaces(corpus)
    tokens = [places.token(0, start) for _, start, _ in toto.spans]
    blocks = [places.block(t) for t in tokens if t is not None]
    assert len(tokens) == 3
    assert blocks[0] == blocks[1] != blocks[2]
    gains = np.zeros(len(corpus.ids), np.float32)
    gains[tokens[0]], gains[tokens[1]], gains[tokens[2]] = 4.0, 100.0, 2.0
    assert mean_gains([toto], gains, corpus) == {"Toto": 3.0}
    gains[tokens[2]] = np.nan
    assert mean_gains([toto], gains, corpus) == {"Toto": 4.0}


def test_combined_scores_move_with_the_gain_and_are_bounded() -> None:
    terms = [Candidate(t, 3, 10.0, "name") for t in ("up", "usual", "down", "huge", "unknown")]
    scores = {c.term: c.score for c in combine(terms, {"up": 2.0, "usual": 1.0, "down": -0.5, "huge": 99.0})}
    assert scores["huge"] == pytest.approx(30.0)
    assert scores["up"] > scores["usual"] == scores["unknown"] == 10.0 > scores["down"] > 3.3
    assert combine(terms, {"down": 5.0})[0].term == "down"


def test_terms_by_gain_joins_repeating_runs() -> None:
    text = "They saw the glowing lantern there, and left the glowing lantern for the cat near the river. " * 3
    corpus = corpus_of(text, block=32)
    places = TokenPlaces(corpus)
    gains = np.zeros(len(corpus.ids), np.float32)
    for word in ("glowing", "lantern", "cat"):
        for _, start, _ in found(word, corpus).spans:
            token = places.token(0, start)
            assert token is not None
            gains[token] = 3.0 if word != "cat" else 1.0
    (term,) = terms_by_gain(corpus, gains, min_count=3, min_gain=2.0)
    assert term.term == "glowing lantern"
    assert term.count == 6
    assert term.score == pytest.approx((2 * 6 * 3.0) ** 0.5, abs=1e-3)
    assert terms_by_gain(corpus, gains, [found("lantern", corpus)], min_count=7) == []
    assert [t.term for t in terms_by_gain(corpus, gains, [found("lantern", corpus)])] == ["glowing"]
