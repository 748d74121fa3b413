"""Cue-free anchor recall: does the model produce an anchor that nothing in the context gives away?

A *place* is an occurrence of an anchor in the target before which exactly `context` tokens of the same
document exist, in which the anchor does not occur: no match of the same dictionary entry (any variant:
plural, possessive, capitals), and no case-insensitive occurrence of its term, be it within a longer word or a
longer anchor.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel

from forgetkit.anchors.dictionary import Dictionary
from forgetkit.anchors.matcher import Matcher
from forgetkit.core.progress import progress
from forgetkit.corpus.blocks import BlockedCorpus
from forgetkit.evaluate.forward import check_vocabulary, forward_logits, length_batches, vocabulary_size
from forgetkit.evaluate.statistics import Floats, Ints, Series

PER_ANCHOR = 10


@dataclass(frozen=True)
class Place:
    """An anchor occurrence: tokens [first, last) are the anchor (global token indices of the corpus).

    anchor: index into `dictionary.kept`; start, end: its characters in documents[document].text.
    """

    document: int
    first: int
    last: int
    anchor: int
    start: int
    end: int


@dataclass(frozen=True)
class PlaceCounts:
    """What happened to the anchor occurrences of the target."""

    occurrences: int
    eligible: int
    short_context: int
    token_boundary: int
    cued: int


def document_spans(corpus: BlockedCorpus) -> dict[int, tuple[int, int]]:
    """Global token range [first, last) of every document that has tokens."""
    spans: dict[int, tuple[int, int]] = {}
    for document, first, last in corpus.bounds.tolist():
        low, high = spans.get(document, (first, last))
        spans[document] = (min(low, first), max(high, last))
    return spans


def eligible_places(corpus: BlockedCorpus, dictionary: Dictionary, context: int) -> tuple[list[Place], PlaceCounts]:
    """All cue-free places in text order, and the tally of the rest.

    An occurrence counts only if its first token begins exactly at the anchor (or with the white space before
    it) and its last token ends exactly at the anchor's end: otherwise no token's probability is the anchor's.
    """
    matcher = Matcher(dictionary)
    terms = [_folded(anchor.term) for anchor in dictionary.kept]
    places: list[Place] = []
    tally = {"occurrences": 0, "short_context": 0, "token_boundary": 0, "cued": 0}
    for document, (low, high) in sorted(document_spans(corpus).items()):
        text = corpus.documents[document].text
        starts, ends = (
            corpus.offsets[low:high, 0].astype(np.int64),
            corpus.offsets[low:high, 1].astype(np.int64),
        )
        seen_until: dict[int, int] = {}
        for match in sorted(matcher.find(text), key=lambda m: (m.start, m.end)):
            tally["occurrences"] += 1
            previous_end = seen_until.get(match.anchor, -1)
            seen_until[match.anchor] = match.end
            first, last = _token_range(starts, ends, match.start, match.end)
            if first < 0 or text[starts[first] : match.start].strip() or last < first:
                tally["token_boundary"] += 1
            elif first < context:
                tally["short_context"] += 1
            else:
                left = int(starts[first - context])
                if previous_end > left or terms[match.anchor] in _folded(text[left : match.start]):
                    tally["cued"] += 1
                    continue
                places.append(Place(document, low + first, low + last + 1, match.anchor, match.start, match.end))
    return places, PlaceCounts(eligible=len(places), **tally)


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())


def _token_range(starts: Ints, ends: Ints, start: int, end: int) -> tuple[int, int]:
    """First token that holds character `start` and the last that ends at `end`; -1 where there is none."""
    first = int(np.searchsorted(ends, start, side="right"))
    if first >= len(ends) or starts[first] > start:
        return -1, -1
    last = int(np.searchsorted(ends, end, side="right")) - 1
    while last > first and starts[last] >= end:  # zero-width tokens after the anchor (trimmed white space)
        last -= 1
    return (first, last) if last >= first and ends[last] == end else (first, -1)


def sample_places(places: list[Place], n: int, seed: int, per_anchor: int = PER_ANCHOR) -> list[Place]:
    """At most `n` places, at most `per_anchor` of one anchor, else by natural frequency; in text order.

    Places are drawn in seeded random order, so frequent anchors come more often, up to the cap. The cap is
    not lifted where fewer than `n` remain: a few main characters would then be most of the score.
    """
    taken: list[Place] = []
    used: dict[int, int] = {}
    for i in np.random.default_rng(seed).permutation(len(places)).tolist():
        if len(taken) == n:
            break
        if used.get(places[i].anchor, 0) < per_anchor:
            used[places[i].anchor] = used.get(places[i].anchor, 0) + 1
            taken.append(places[i])
    return sorted(taken, key=lambda p: p.first)


@dataclass(frozen=True)
class RecallScores:
    """Per place [n]: probability and rank of the anchor's first token, top-1 credit, log-probability.

    rank: 1 = most probable; equal logits share the mean of their ranks (frequent in bf16, and a constant
    model must not come first everywhere). top1: 1 if first, 1/k in a tie of k. log_probability: nats, all
    tokens of the anchor, teacher-forced.
    """

    probability: Floats
    rank: Floats
    top1: Floats
    log_probability: Floats

    def series(self, places: list[Place]) -> dict[str, Series]:
        """The metrics over places, clustered by anchor."""
        groups = np.array([p.anchor for p in places], dtype=np.int64)
        metrics = {
            "probability": self.probability,
            "top1": self.top1,
            "reciprocal_rank": 1.0 / self.rank,
            "anchor_probability": np.exp(self.log_probability),
            "anchor_log_probability": self.log_probability,
        }
        return {name: Series(values, np.ones(len(values)), groups) for name, values in metrics.items()}


def measure_recall(model: PreTrainedModel, corpus: BlockedCorpus, places: list[Place], context: int) -> RecallScores:
    """Score every place, from exactly `context` tokens before it (after the BOS token, if any).

    Batches hold rows of equal length only, so no padding is involved. Non-finite logits give NaN.
    """
    sizes = [p.last - p.first for p in places]
    bos = [] if corpus.bos_id is None else [corpus.bos_id]
    scores = np.full((4, len(places)), np.nan)
    if places:
        check_vocabulary(model, int(corpus.ids.max()))
    with progress("anchor recall", len(places), "places") as bar:
        for batch in length_batches(sizes, sizes, vocabulary_size(model), equal=True):
            rows = [bos + corpus.ids[places[i].first - context : places[i].last].tolist() for i in batch]
            ids = torch.tensor(rows, dtype=torch.long)
            size = sizes[batch[0]]
            logits = forward_logits(model, ids[:, :-1], keep=size).float()
            scores[:, batch] = _score(logits, ids[:, -size:].to(logits.device))
            bar.advance(len(batch))
    return RecallScores(*scores)


def _score(logits_BKV: torch.Tensor, targets_BK: torch.Tensor) -> np.ndarray:
    """[4, B]: probability, rank, top-1 credit of the first target; log-probability of all targets."""
    log_p = torch.log_softmax(logits_BKV, -1).gather(-1, targets_BK[..., None])[..., 0].double()
    first = logits_BKV[:, 0]
    own = first.gather(-1, targets_BK[:, :1])
    above, ties = (first > own).sum(-1).double(), (first == own).sum(-1).double()
    rank, top1 = 1 + above + (ties - 1) / 2, (above == 0) / ties
    broken = ~torch.isfinite(first).all(-1)
    rank[broken] = top1[broken] = float("nan")
    return torch.stack([log_p[:, 0].exp(), rank, top1.double(), log_p.sum(-1)]).cpu().numpy()
