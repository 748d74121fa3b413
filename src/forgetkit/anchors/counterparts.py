"""A generic counterpart for every anchor: same kind, number, article and case; ordinary words.

Words that anchors share map to the same word ('Dorothy' -> 'Martha' makes 'Dorothy Gale' 'Martha Hill'), and
no counterpart, of one word or more, is given twice.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

from forgetkit.anchors.background import ordinary_words
from forgetkit.anchors.dictionary import Kind
from forgetkit.anchors.extract import Candidate
from forgetkit.anchors.kinds import Context, contexts_of, guess_kind, head_of, kind_of_head, pools, singular
from forgetkit.anchors.matcher import looks_plural, plural, title_case, vowel_sound
from forgetkit.anchors.words import CONNECTORS, paragraphs_of_words

Rank = Callable[[Sequence[Context], Sequence[str]], Sequence[float]]
"""Scores of candidate counterparts (second argument) in contexts (first): the highest wins."""

_SAMPLED_CONTEXTS = 4
_RANKED_RIGHT = 30  # characters after a candidate that are scored with it: its number and article show there


class Proposer:
    """Proposes counterparts one anchor after the other, and remembers what was taken."""

    def __init__(self, candidates: Sequence[Candidate], texts: Iterable[str], seed: int) -> None:
        self._rng = random.Random(seed)
        self._vocabulary: set[str] = set()
        self._pairs: set[tuple[str, str]] = set()
        for text in texts:
            for words in paragraphs_of_words(text):
                lowered = [w.lower for w in words]
                self._vocabulary.update(lowered)
                self._pairs.update(pairwise(lowered))
        common = {w for words in ordinary_words().values() for w in words} | set(pools()["heads"])
        self._anchor_words = {w for c in candidates for w in c.parts if w not in common and w not in CONNECTORS}
        self._single_anchors = {c.parts[0] for c in candidates if len(c.parts) == 1}
        self._word_map: dict[str, str] = {}
        self._taken: set[str] = set()
        self._taken_words: set[str] = set()
        lasts = {c.parts[-1] for c in candidates if len(c.parts) == 2}
        self._surnames = lasts - {c.parts[0] for c in candidates if len(c.parts) > 1}

    def propose(self, candidate: Candidate, kind: Kind, most: int = 6) -> list[str]:
        """Up to `most` counterparts, all allowed; at least one."""
        out: list[str] = []
        for round_ in range(40 * most):
            made = self._make(candidate, kind, strict=round_ < 20 * most, extra=round_ >= 30 * most)
            if made and made not in out and self.allowed(made, candidate):
                out.append(made)
            if len(out) == most:
                break
        while not out:  # pools exhausted: surnames in a row are endless
            made = " ".join(self._rng.sample(pools()["surname"], 3))
            if made.lower() not in self._taken:
                out.append(made)
        return out

    def accept(self, candidate: Candidate, counterpart: str) -> None:
        """Take `counterpart`: it and its words are not proposed again, and shared words follow it."""
        self._taken.add(counterpart.lower())
        theirs, ours = candidate.term.lower().split(), counterpart.split()
        for word in ours:
            self._taken_words.add(word.lower())
        if len(theirs) == len(ours):
            for word, other in zip(theirs, ours, strict=True):
                if word not in CONNECTORS:
                    self._word_map.setdefault(word, other)

    def allowed(self, made: str, candidate: Candidate) -> bool:
        """Whether a counterpart is free, shares no word with anchors, and does not occur in the target."""
        words = [w.lower().rstrip(".") for w in made.split()]
        content = [w for w in words if w not in CONNECTORS]
        if made.lower() in self._taken or len(set(content)) < len(content):
            return False
        if any(w in self._anchor_words or singular(w) in self._anchor_words for w in content):
            return False
        if set(content) & set(candidate.parts):
            return False
        if len(words) == 1:
            return words[0] not in self._vocabulary and singular(words[0]) not in self._vocabulary
        return not all(pair in self._pairs for pair in pairwise(words))

    def _make(self, candidate: Candidate, kind: Kind, *, strict: bool, extra: bool) -> str:
        words = candidate.term.split()
        parts: list[str] = []
        segment_ends = {i - 1 for i, w in enumerate(words) if i and w.lower() in CONNECTORS} | {len(words) - 1}
        head = min(segment_ends)
        for i, word in enumerate(words):
            lowered = word.lower()
            if lowered in CONNECTORS:
                parts.append(word)
                continue
            fixed = self._word_map.get(lowered) if len(words) > 1 else None
            made = fixed or self._pick(self._pool(words, i, head, kind, i in segment_ends), word, strict, i == 0)
            if not fixed and looks_plural(word) and not looks_plural(made) and kind not in ("woman", "man", "place"):
                made = plural(made)
            parts.append(title_case(made) if word[0].isupper() else made.lower())
        if extra:  # single-word pools are used up: two words are many more
            name = "surname" if kind in ("woman", "man", "person") else "modifier"
            more = self._rng.choice(pools()[name])
            parts = [*parts, more] if name == "surname" else [more if words[0][0].isupper() else more.lower(), *parts]
        return " ".join(parts)

    def _pool(self, words: Sequence[str], i: int, head: int, kind: Kind, ends: bool) -> Sequence[str]:
        """Words that may stand for word `i` of a term."""
        table = pools()
        lowered = words[i].lower().rstrip(".")
        if lowered in table["heads"]:
            return list(table["heads"][lowered])
        if kind in ("woman", "man", "person") and lowered not in kind_of_head():
            named = i == len(words) - 1 or words[i].lower() not in ordinary_words()["speech"]
            if i > head and "&" not in words[head + 1 : i]:
                return list(table[self._tail(words, i, head)])
            titled = i > 0 and words[i - 1].lower().rstrip(".") in table["heads"]
            if i > 0 and named and not titled:
                return list(table["surname"])
            if lowered in self._surnames and len(words) == 1:
                return list(table["surname"])
            if named and not (len(words) > 1 and words[-1].lower() in kind_of_head()):
                return list(table["woman" if kind == "woman" else "man"])
            return list(table["modifier"])
        if not ends:
            return list(table["modifier"])
        if i > head:
            return list(table[self._tail(words, i, head)])
        if kind == "place" and len(words) > 1:
            return list(table["spot"])
        name = {
            "woman": "title",
            "man": "title",
            "person": "title",
            "phrase": "object",
            "other": "object",
        }.get(kind, kind)
        return list(table[name])

    @staticmethod
    def _tail(words: Sequence[str], i: int, head: int) -> str:
        """Pool of a word after the head: 'Glinda the Good', 'Witch of the West', 'Powder of Life'."""
        if words[head + 1].lower() == "the":
            return "modifier"
        return "where" if words[i - 1].lower() != "of" else "abstract"

    def _pick(self, pool: Sequence[str], word: str, strict: bool, first: bool) -> str:
        vowel = vowel_sound(word)
        fresh = [w for w in pool if w.lower() not in self._taken_words and w.lower() not in self._anchor_words]
        matched = [w for w in fresh if not first or vowel_sound(w) == vowel]
        if strict and first:
            matched = [w for w in matched if w.lower() not in self._vocabulary] or matched
        return self._rng.choice(matched or fresh or list(pool))


def _kind_in(candidate: Candidate, known: dict[str, tuple[Kind, str]], texts: Sequence[str]) -> Kind:
    """The kind of the name at the head of a phrase, if that name is an anchor of its own; else a guess."""
    words = candidate.term.split()
    if len(words) > 1 and head_of(candidate.parts) not in kind_of_head():
        for word in (words[0], head_of(words)):
            if word in known and known[word][0] in ("woman", "man"):
                return known[word][0]
    return guess_kind(candidate, texts)


def choose_counterparts(
    candidates: Sequence[Candidate],
    texts: Sequence[str],
    *,
    seed: int,
    rank: Rank | None = None,
    kinds: dict[str, Kind] | None = None,
    suggested: dict[str, str] | None = None,
    most: int = 6,
) -> dict[str, tuple[Kind, str]]:
    """Kind and counterpart of every candidate, by term. Deterministic for a seed.

    Single words come first, so that phrases follow the words they are made of. `rank` chooses among up to
    `most` proposals; without it the first is taken. `kinds` and `suggested` come from elsewhere and are used
    where allowed.
    """
    proposer = Proposer(candidates, texts, seed)
    rng = random.Random(seed)
    out: dict[str, tuple[Kind, str]] = {}
    for candidate in sorted(candidates, key=lambda c: (len(c.parts), -c.score, c.term)):
        kind = (kinds or {}).get(candidate.term) or _kind_in(candidate, out, texts)
        offered = (suggested or {}).get(candidate.term)
        if offered and proposer.allowed(offered, candidate):
            proposals = [offered]
        else:
            proposals = proposer.propose(candidate, kind, most)
        best = 0
        if rank and len(proposals) > 1 and candidate.spans:
            sampled = contexts_of(candidate, texts, _SAMPLED_CONTEXTS, rng)
            scores = list(rank([(a, b[:_RANKED_RIGHT]) for a, b in sampled], proposals))
            best = max(range(len(scores)), key=lambda i: (scores[i], -i))
        proposer.accept(candidate, proposals[best])
        out[candidate.term] = (kind, proposals[best])
    return out
