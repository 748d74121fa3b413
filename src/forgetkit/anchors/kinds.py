"""What kind of thing an expression names: by its head noun, else by what stands beside it."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from importlib.resources import files
from typing import Any

import yaml

from forgetkit.anchors.dictionary import Kind
from forgetkit.anchors.extract import Candidate
from forgetkit.anchors.matcher import looks_plural
from forgetkit.anchors.words import CONNECTORS

Context = tuple[str, str]
"""Text before and after an occurrence."""

_LEFT, _RIGHT = 80, 60  # characters of context
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


@lru_cache(maxsize=1)
def pools() -> dict[str, Any]:
    """`data/counterparts.yaml`: lists of words by kind, and the maps `heads` and `kinds`."""
    loaded: dict[str, Any] = yaml.safe_load(
        (files("forgetkit.anchors") / "data" / "counterparts.yaml").read_text("utf-8")
    )
    return loaded


@lru_cache(maxsize=1)
def kind_of_head() -> dict[str, Kind]:
    """Kinds by head noun."""
    return {word: kind for kind, words in reversed(pools()["kinds"].items()) for word in words}


def head_of(words: Sequence[str]) -> str:
    """The head noun: the last word before a connector."""
    for i, word in enumerate(words):
        if i and word in CONNECTORS:
            return words[i - 1]
    return words[-1]


def singular(word: str) -> str:
    """Without a plural's s."""
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
    """The kind by the head noun, else by number, articles, prepositions, speech and pronouns nearby."""
    words = candidate.parts or tuple(candidate.term.lower().split())
    first, head = words[0].rstrip("."), head_of(words)
    known = kind_of_head()
    if "&" in words:
        return "man"
    if len(words) > 1 and known.get(first) in ("woman", "man") and head not in known:
        return known[first]
    for word in (head, head.split("-")[-1], singular(head), singular(head).split("-")[-1]):
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
            if len(head) > len(ending) + 1 and singular(head).endswith(ending):
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
        [
            "queen",
            "princess",
            "mrs",
            "miss",
            "aunt",
            "lady",
            "mistress",
            "dame",
            "duchess",
            "empress",
            "sister",
            "mother",
        ],
        "she",
    ),
    **dict.fromkeys(["king", "prince", "mr", "uncle", "lord", "sir", "emperor", "duke", "brother", "father"], "he"),
}
_GENDER = {
    **dict.fromkeys(("she", "her", "hers"), "she"),
    **dict.fromkeys(("he", "his", "him"), "he"),
    **dict.fromkeys(("it", "its"), "it"),
    **dict.fromkeys(("they", "their", "them"), "they"),
}
