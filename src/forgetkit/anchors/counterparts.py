"""A generic counterpart for every anchor: same kind, number, article and case; ordinary words that the target lacks.

Words that anchors share map to the same word ('Dorothy' -> 'Martha' makes 'Dorothy Gale' 'Martha Hill'), and no
counterpart, of one word or more, is given twice.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from importlib.resources import files
from itertools import pairwise
from typing import Any

import yaml

from forgetkit.anchors.dictionary import Kind
from forgetkit.anchors.extract import Candidate, ordinary_words
from forgetkit.anchors.matcher import looks_plural, plural, title_case, vowel_sound
from forgetkit.anchors.words import CONNECTORS, paragraphs_of_words

Context = tuple[str, str]
"""Text before and after an occurrence."""
Rank = Callable[[Sequence[Context], Sequence[str]], Sequence[float]]
"""Scores of candidate counterparts (second argument) in contexts (first): the highest wins."""

_LEFT, _RIGHT = 160, 60  # characters of context
_SAMPLED_CONTEXTS = 4
_PRONOUN = re.compile(r"\b(she|her|hers|he|his|him|it|its|they|their|them)\b", re.IGNORECASE)
_SPEECH = re.compile(r"(?:said|asked|replied|cried|answered|exclaimed|returned|remarked|inquired)\s*$")
_SPEECH_AFTER = re.compile(
    r",?\s+(?:said|asked|replied|cried|answered|exclaimed|returned|remarked|inquired|laughed|smiled)\b"
)
_ARTICLE = re.compile(
    r"\b(?:the|a|an|this|that|these|those|my|your|his|her|our|their)(?:\s+[a-z]+)?\s+$", re.IGNORECASE
)
_PLACE = re.compile(
    r"\b(?:in|to|into|from|of|at|through|throughout|near|toward|towards|over|across)\s+$", re.IGNORECASE
)
_SPLIT = re.compile(r"(\s+)")


@lru_cache(maxsize=1)
def pools() -> dict[str, Any]:
    """`data/counterparts.yaml`: lists of words by kind, and the maps `heads` and `kinds`."""
    loaded: dict[str, Any] = yaml.safe_load(
        (files("forgetkit.anchors") / "data" / "counterparts.yaml").read_text("utf-8")
    )
    return loaded


@lru_cache(maxsize=1)
def _kind_of_head() -> dict[str, Kind]:
    return {word: kind for kind, words in reversed(pools()["kinds"].items()) for word in words}


def _head(words: Sequence[str]) -> str:
    """The head noun: the last word before a connector."""
    for i, word in enumerate(words):
        if i and word in CONNECTORS:
            return words[i - 1]
    return words[-1]


def _singular(word: str) -> str:
    return word[:-1] if len(word) > 3 and looks_plural(word) and word.endswith("s") else word


def contexts_of(
    candidate: Candidate, texts: Sequence[str], most: int, rng: random.Random | None = None
) -> list[Context]:
    """Up to `most` contexts, in order of the text: evenly spread, or sampled by `rng`."""
    spans = candidate.spans
    if len(spans) > most:
        picked = rng.sample(range(len(spans)), most) if rng else [i * len(spans) // most for i in range(most)]
        spans = tuple(spans[i] for i in sorted(picked))
    return [(texts[d][max(0, a - _LEFT) : a], texts[d][b : b + _RIGHT]) for d, a, b in spans]


def guess_kind(candidate: Candidate, texts: Sequence[str]) -> Kind:
    """The kind by the head noun, else by number, articles, prepositions, verbs of speech and pronouns nearby."""
    words = candidate.parts or tuple(candidate.term.lower().split())
    first, head = words[0].rstrip("."), _head(words)
    known = _kind_of_head()
    if "&" in words:
        return "man"
    if len(words) > 1 and known.get(first) in ("woman", "man") and head not in known:
        return known[first]
    for word in (head, head.split("-")[-1], _singular(head), _singular(head).split("-")[-1]):
        if word in known:
            return known[word]
    if len(words) == 1:
        for ending in (
            "woman",
            "man",
            "lion",
            "tiger",
            "bug",
            "horse",
            "bird",
            "fish",
            "daw",
            "cat",
            "hound",
            "monkey",
        ):
            if len(head) > len(ending) + 1 and _singular(head).endswith(ending):
                return known.get(ending, "creature")
        if head.endswith(("smith", "maker", "keeper", "chopper")):
            return "title"
    if 3 * candidate.plurals > candidate.count and candidate.term[0].isupper():
        return "group"
    seen = _Surroundings(candidate, texts)
    if looks_plural(candidate.term) and seen.articles >= 0.35:
        return "group" if candidate.term[0].isupper() else "object"
    if candidate.term[0].islower():
        return "phrase" if len(words) > 1 else "object"
    if seen.articles >= 0.6:
        if "it" in seen.most and seen.speech < 0.15:
            return "creature" if len(words) == 1 else "phrase"
        return "title"
    if seen.places >= (0.3 if seen.speech < 0.05 else 0.6) and not seen.titled:
        return "place"
    return "woman" if seen.pronouns["she"] > seen.pronouns["he"] else "man"


class _Surroundings:
    """Shares of a candidate's occurrences by what stands beside them."""

    def __init__(self, candidate: Candidate, texts: Sequence[str]) -> None:
        found = contexts_of(candidate, texts, len(candidate.spans))
        n = max(1, len(found))
        self.articles = sum(bool(_ARTICLE.search(left)) for left, _ in found) / n
        self.places = sum(bool(_PLACE.search(left)) for left, _ in found) / n
        said = (bool(_SPEECH.search(left) or _SPEECH_AFTER.match(right)) for left, right in found)
        self.speech = sum(said) / n
        self.pronouns: Counter[str] = Counter()
        self.titled = 0
        for left, _ in found:
            before = left.split()[-1:]
            title = before[0].lower().strip(".\"'") if before and left[-1:] == " " else ""
            if title in _TITLES:
                self.titled += 1
                self.pronouns[_TITLES[title]] += 5
        for _, right in found:
            if pronoun := _PRONOUN.search(right):
                self.pronouns[_GENDER[pronoun.group().lower()]] += 1
        self.most = max(self.pronouns, key=lambda k: (self.pronouns[k], k)) if self.pronouns else ""


_TITLES = {
    **dict.fromkeys(
        ["queen", "princess", "mrs", "miss", "aunt", "lady", "mistress", "dame", "duchess", "empress", "sister", "mother"], "she"
    ),
    **dict.fromkeys(["king", "prince", "mr", "uncle", "lord", "sir", "emperor", "duke", "brother", "father"], "he"),
}
_GENDER = {
    **dict.fromkeys(("she", "her", "hers"), "she"),
    **dict.fromkeys(("he", "his", "him"), "he"),
    **dict.fromkeys(("it", "its"), "it"),
    **dict.fromkeys(("they", "their", "them"), "they"),
}


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
        self._anchor_words = {
            w for c in candidates for w in c.parts if w not in common and w not in CONNECTORS
        }
        self._single_anchors = {c.parts[0] for c in candidates if len(c.parts) == 1}
        self._word_map: dict[str, str] = {}
        self._taken: set[str] = set()
        self._taken_words: set[str] = set()
        lasts = {c.parts[-1] for c in candidates if len(c.parts) == 2}
        self._surnames = lasts - {c.parts[0] for c in candidates if len(c.parts) > 1}

    def propose(self, candidate: Candidate, kind: Kind, most: int = 8) -> list[str]:
        """Up to `most` counterparts, all allowed; at least one."""
        out: list[str] = []
        for round_ in range(40 * most):
            made = self._make(candidate, kind, strict=round_ < 20 * most, extra=round_ >= 30 * most)
            if made and made not in out and self._allowed(made, candidate):
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

    def _allowed(self, made: str, candidate: Candidate) -> bool:
        words = [w.lower().rstrip(".") for w in made.split()]
        content = [w for w in words if w not in CONNECTORS]
        if made.lower() in self._taken or len(set(content)) < len(content):
            return False
        if any(w in self._anchor_words or _singular(w) in self._anchor_words for w in content):
            return False
        if set(content) & set(candidate.parts):
            return False
        if len(words) == 1:
            return words[0] not in self._vocabulary and _singular(words[0]) not in self._vocabulary
        return not all(pair in self._pairs for pair in pairwise(words))

    def _make(self, candidate: Candidate, kind: Kind, *, strict: bool, extra: bool) -> str:
        words = candidate.term.split()
        parts: list[str] = []
        segment_ends = {i - 1 for i, w in enumerate(words) if i and w.lower() in CONNECTORS} | {
            len(words) - 1
        }
        head = min(segment_ends)
        for i, word in enumerate(words):
            lowered = word.lower()
            if lowered in CONNECTORS:
                parts.append(word)
                continue
            fixed = self._word_map.get(lowered) if len(words) > 1 else None
            made = fixed or self._pick(
                self._pool(words, i, head, kind, i in segment_ends), word, strict, i == 0
            )
            if (
                not fixed
                and looks_plural(word)
                and not looks_plural(made)
                and kind not in ("woman", "man", "place")
            ):
                made = plural(made)
            parts.append(title_case(made) if word[0].isupper() else made.lower())
        if extra:  # single-word pools are used up: two words are many more
            name = "surname" if kind in ("woman", "man", "person") else "modifier"
            more = self._rng.choice(pools()[name])
            parts = (
                [*parts, more]
                if name == "surname"
                else [more if words[0][0].isupper() else more.lower(), *parts]
            )
        return " ".join(parts)

    def _pool(self, words: Sequence[str], i: int, head: int, kind: Kind, ends: bool) -> Sequence[str]:
        """Words that may stand for word `i` of a term."""
        table = pools()
        lowered = words[i].lower().rstrip(".")
        if lowered in table["heads"]:
            return list(table["heads"][lowered])
        if kind in ("woman", "man", "person") and lowered not in _kind_of_head():
            named = i == len(words) - 1 or words[i].lower() not in ordinary_words()["speech"]
            if i > head and "&" not in words[head + 1 : i]:
                return list(table[self._tail(words, i, head)])
            titled = i > 0 and words[i - 1].lower().rstrip(".") in table["heads"]
            if i > 0 and named and not titled:
                return list(table["surname"])
            if lowered in self._surnames and len(words) == 1:
                return list(table["surname"])
            if named and not (len(words) > 1 and words[-1].lower() in _kind_of_head()):
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
        fresh = [
            w for w in pool if w.lower() not in self._taken_words and w.lower() not in self._anchor_words
        ]
        matched = [w for w in fresh if not first or vowel_sound(w) == vowel]
        if strict and first:
            matched = [w for w in matched if w.lower() not in self._vocabulary] or matched
        return self._rng.choice(matched or fresh or list(pool))


def _kind_in(candidate: Candidate, known: dict[str, tuple[Kind, str]], texts: Sequence[str]) -> Kind:
    """The kind of the name at the head of a phrase, if that name is an anchor of its own; else a guess."""
    words = candidate.term.split()
    if len(words) > 1 and _head(candidate.parts) not in _kind_of_head():
        for word in (words[0], _head(words)):
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
    most: int = 8,
) -> dict[str, tuple[Kind, str]]:
    """Kind and counterpart of every candidate, by term. Deterministic for a seed.

    Single words come first, so that phrases follow the words they are made of. `rank` chooses among up to `most`
    proposals, without it the first is taken. `kinds` and `suggested` (from elsewhere) are used where allowed.
    """
    proposer = Proposer(candidates, texts, seed)
    rng = random.Random(seed)
    out: dict[str, tuple[Kind, str]] = {}
    for candidate in sorted(candidates, key=lambda c: (len(c.parts), -c.score, c.term)):
        kind = (kinds or {}).get(candidate.term) or _kind_in(candidate, out, texts)
        offered = (suggested or {}).get(candidate.term)
        if offered and proposer._allowed(offered, candidate):
            proposals = [offered]
        else:
            proposals = proposer.propose(candidate, kind, most)
        best = 0
        if rank and len(proposals) > 1 and candidate.spans:
            scores = list(rank(contexts_of(candidate, texts, _SAMPLED_CONTEXTS, rng), proposals))
            best = max(range(len(scores)), key=lambda i: (scores[i], -i))
        proposer.accept(candidate, proposals[best])
        out[candidate.term] = (kind, proposals[best])
    return out
