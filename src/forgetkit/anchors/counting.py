"""One pass over a text: words by case, runs of capitals, lower-case phrases. And the search for terms."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from forgetkit.anchors.background import background_zipf, ordinary_words
from forgetkit.anchors.words import CONNECTORS, Word, paragraphs_of_words

LONGEST = 7  # words in a term
_MOST_RUNS = 400_000  # distinct runs counted at one time; singletons are dropped above
Phrase = tuple[str, ...]


@dataclass
class Counts:
    """What one pass over the target leaves: word counts by case, runs of capitals, lower-case phrases."""

    words: int = 0
    total: Counter[str] = field(default_factory=Counter)
    capital: Counter[str] = field(default_factory=Counter)
    small: Counter[str] = field(default_factory=Counter)
    forms: Counter[str] = field(default_factory=Counter)
    runs: Counter[tuple[str, ...]] = field(default_factory=Counter)
    phrases: Counter[tuple[str, ...]] = field(default_factory=Counter)
    after_article: Counter[tuple[str, ...]] = field(default_factory=Counter)


def _content(word: Word) -> bool:
    return len(word.text) > 2 and word.text.islower() and "'" not in word.text and background_zipf(word.lower) < 5.6


def _trim(run: list[Word]) -> tuple[str, ...]:
    """A run without connectors and speech words at its edges."""
    lists = ordinary_words()
    edges = (lists["speech"] | lists["calendar"]) - {"good", "dear", "poor", "little", "old", "great"}
    while run and (run[0].lower in CONNECTORS or run[0].lower in edges):
        run = run[1:]
    while run and (run[-1].lower in CONNECTORS or not run[-1].text[0].isupper()):
        run = run[:-1]
    return tuple(w.text for w in run)


def _runs(words: Sequence[Word]) -> Iterable[tuple[str, ...]]:
    """Maximal runs of capitals in one paragraph, with of/the inside, as tuples of words."""
    run: list[Word] = []
    for word in words:
        links = bool(run) and word.joined and not word.initial
        if links and (word.capital or (word.lower in CONNECTORS and run)):
            run.append(word)
            continue
        yield from _pieces(run)
        run = [word] if word.capital else []
    yield from _pieces(run)


def _pieces(run: list[Word]) -> Iterable[tuple[str, ...]]:
    if len(run) > 1 and not run[0].heading:
        # At the start of a sentence the first capital may be the sentence's own.
        trimmed = _trim(run[1:] if run[0].initial else run)
        if 1 < len(trimmed) <= LONGEST:
            yield trimmed
            yield from _heads(trimmed)


def _heads(run: tuple[str, ...]) -> Iterable[tuple[str, ...]]:
    """Parts of a run between its connectors: 'Wicked Witch of the West' also counts as 'Wicked Witch'."""
    part: list[str] = []
    parts = 0
    for word in (*run, "of"):
        if word.lower() in CONNECTORS:
            if 1 < len(part) < len(run):
                yield tuple(part)
            parts += bool(part)
            part = []
        else:
            part.append(word)


def _lower_phrases(words: Sequence[Word]) -> Iterable[tuple[tuple[str, ...], bool]]:
    """Pairs of content words and 'x of y', each with whether an article or possessive stands before."""
    articles = {
        "the",
        "a",
        "an",
        "his",
        "her",
        "my",
        "your",
        "their",
        "its",
        "our",
        "these",
        "those",
        "this",
        "that",
    }
    for i in range(len(words) - 1):
        first, second = words[i], words[i + 1]
        if not (second.joined and _content(first)):
            continue
        before = i > 0 and first.joined and words[i - 1].lower in articles
        if _content(second) and not second.text.endswith(("ed", "ing")):
            yield (first.text, second.text), before
        elif second.text == "of" and i + 2 < len(words) and words[i + 2].joined and _content(words[i + 2]):
            yield (first.text, "of", words[i + 2].text), before


def count_words(texts: Iterable[str]) -> Counts:
    """All counts of the texts, in one pass."""
    counts = Counts()
    for text in texts:
        for words in paragraphs_of_words(text):
            counts.words += len(words)
            for word in words:
                counts.total[word.lower] += 1
                if word.initial or word.heading or word.shouted:
                    continue
                if word.text[0].isupper():
                    counts.capital[word.lower] += 1
                    counts.forms[word.text] += 1
                else:
                    counts.small[word.lower] += 1
            counts.runs.update(_runs(words))
            for phrase, before in _lower_phrases(words):
                counts.phrases[phrase] += 1
                counts.after_article[phrase] += before
            for counter in (counts.runs, counts.phrases, counts.after_article):
                if len(counter) > _MOST_RUNS:
                    for key in [k for k, v in counter.items() if v <= 1]:
                        del counter[key]
    return counts


class TermIndex:
    """Longest-match occurrences of many terms in word streams. Terms are tuples of words."""

    def __init__(self, terms: Iterable[Phrase]) -> None:
        self._longest: dict[str, int] = {}
        self._terms: dict[Phrase, Phrase] = {}
        for term in terms:
            key = tuple(w.lower() for w in term)
            self._terms[key] = term
            self._longest[key[0]] = max(self._longest.get(key[0], 0), len(key))

    def find(self, words: Sequence[Word], capitals: Callable[[Phrase], bool]) -> Iterable[tuple[Phrase, int, int]]:
        """(term, first word, last word exclusive); only capitalised occurrences where `capitals(term)`."""
        i = 0
        while i < len(words):
            for n in range(self._longest.get(words[i].lower, 0), 0, -1):
                window = words[i : i + n]
                term = self._terms.get(tuple(w.lower for w in window)) if len(window) == n else None
                if term is None or not all(w.joined for w in window[1:]):
                    continue
                if capitals(term) and not all(
                    w.text[0].isupper() or not t[0].isupper() for w, t in zip(window, term, strict=True)
                ):
                    continue
                yield term, i, i + n
                i += n
                break
            else:
                i += 1
