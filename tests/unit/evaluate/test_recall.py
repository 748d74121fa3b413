from __future__ import annotations

import numpy as np
import pytest
import torch

from forgetkit.evaluate.recall import (
    Place,
    _score,
    document_spans,
    eligible_places,
    measure_recall,
    sample_places,
)
from tests import toys
from tests.unit.evaluate.conftest import PLAIN, STORY, corpus, dictionary

TERMS = ("Dorothy", "Tin Woodman", "Scarecrow", "Toto", "Glinda")


@pytest.mark.parametrize("shape", toys.SHAPES)
def test_places_are_cue_free_and_exact(shape: str) -> None:
    text = STORY + "Dorothy and dorothy's dog Toto met DOROTHY again, and Toto barked. " + PLAIN + "Then Toto slept."
    blocks = corpus(text, "Toto. " + PLAIN + PLAIN + "So it was Toto!", block_tokens=16, shape=shape)
    words = dictionary(*TERMS)
    places, counts = eligible_places(blocks, words, context=20)
    assert places
    for place in places:
        document = blocks.documents[place.document].text
        low, _ = document_spans(blocks)[place.document]
        assert place.first - 20 >= low
        context = document[int(blocks.offsets[place.first - 20, 0]) : place.start]
        term = words.kept[place.anchor].term
        assert term.lower() not in context.lower()
        own = document[int(blocks.offsets[place.first, 0]) : int(blocks.offsets[place.last - 1, 1])]
        assert own.strip() == document[place.start : place.end]
    if shape != "no_pretokenizer":  # its tokens cross word ends: most occurrences are not token-aligned
        assert counts.cued >= 2  # DOROTHY, the second Toto
    total = counts.eligible + counts.cued + counts.short_context + counts.token_boundary
    assert total == counts.occurrences and counts.eligible == len(places)


def test_context_crosses_blocks_but_not_documents() -> None:
    blocks = corpus(PLAIN + "Dorothy came. ", "Dorothy came. " + PLAIN, block_tokens=8)
    places, counts = eligible_places(blocks, dictionary("Dorothy"), context=20)
    assert [p.document for p in places] == [0]
    assert counts.short_context == 1


def test_plural_and_longer_words_are_cues() -> None:
    for cue in ("Munchkins", "a Munchkinlike thing", "MUNCHKIN"):
        blocks = corpus(PLAIN + f"{cue} came in. The Munchkin slept. ")
        places, _ = eligible_places(blocks, dictionary("Munchkin"), context=16)
        assert all("slept" not in blocks.documents[0].text[p.end : p.end + 8] for p in places), cue
    blocks = corpus(PLAIN + "The Munchkin slept. ")
    assert len(eligible_places(blocks, dictionary("Munchkin"), context=16)[0]) == 1


def test_sampling_is_capped_seeded_and_in_order() -> None:
    places = [Place(0, i, i + 1, 0 if i < 80 else i, i, i + 1) for i in range(100)]
    taken = sample_places(places, 50, seed=1, per_anchor=10)
    assert len(taken) == 30 and sum(p.anchor == 0 for p in taken) == 10
    assert taken == sorted(taken, key=lambda p: p.first)
    assert taken == sample_places(places, 50, seed=1, per_anchor=10) != sample_places(places, 50, seed=2, per_anchor=10)


def test_score_by_hand() -> None:
    log = torch.log
    p = torch.tensor([[[0.7, 0.2, 0.1], [0.25, 0.25, 0.5]]])
    scores = _score(log(p), torch.tensor([[1, 2]]))
    assert scores[:, 0].tolist() == pytest.approx([0.2, 2.0, 0.0, np.log(0.2 * 0.5)])
    tied = _score(torch.zeros(1, 1, 4), torch.tensor([[3]]))
    assert tied[:, 0].tolist() == pytest.approx([0.25, 2.5, 0.25, np.log(0.25)])
    broken = _score(torch.full((1, 1, 4), float("nan")), torch.tensor([[3]]))
    assert np.isnan(broken).all()


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text"])
def test_equals_a_slow_loop(family: str) -> None:
    blocks = corpus(STORY)
    places, _ = eligible_places(blocks, dictionary(*TERMS), context=20)
    model = toys.model(family, vocab_size=len(toys.tokenizer()))
    scores = measure_recall(model, blocks, places, context=20)
    assert len({p.last - p.first for p in places}) > 1  # several lengths, so several batches
    bos = [] if blocks.bos_id is None else [blocks.bos_id]
    for i, place in enumerate(places):
        total, first = 0.0, None
        for t in range(place.first, place.last):
            ids = torch.tensor([bos + blocks.ids[place.first - 20 : t].tolist()])
            with torch.no_grad():
                p = torch.softmax(model(input_ids=ids).logits[0, -1].double(), -1)
            first = p if first is None else first
            total += float(torch.log(p[blocks.ids[t]]))
        assert first is not None
        target = int(blocks.ids[place.first])
        assert scores.probability[i] == pytest.approx(float(first[target]), rel=1e-4)
        assert scores.rank[i] == sorted(first.tolist(), reverse=True).index(float(first[target])) + 1
        assert scores.log_probability[i] == pytest.approx(total, rel=1e-4)
    series = scores.series(places)
    assert series["reciprocal_rank"].mean == pytest.approx(np.mean(1 / scores.rank))
