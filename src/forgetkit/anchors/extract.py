"""Expressions that belong to a text's own world, by statistics against general English and, if given, retain text.

A candidate's score is a signed root of Dunning's log-likelihood ratio, `sqrt(2 (c ln(c/e) - c + e))`, times the share
of capitals where case is the evidence: c = occurrences, e = those expected from the background. The background is
wordfreq, used as an informative Dirichlet prior that the retain text updates (Monroe et al. 2008, "Fightin' Words").
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.resources import files
from typing import Literal

import yaml
from wordfreq import zipf_frequency

from forgetkit.anchors.words import CONNECTORS, Word, paragraphs_of_words

Shape = Literal["name", "phrase", "invented", "common phrase"]
LONGEST = 7  # words in a term
_KEPT_SPANS = 400  # occurrences remembered per term: enough for kinds and contexts, bounded in memory
_MOST_RUNS = 400_000  # distinct runs counted at one time; singletons are dropped above
_RETAIN_CHARACTERS = 20_000_000  # read from the retain text; more does not change which terms are rare
_PRIOR_WORDS = 1_000_000.0  # weight of the wordfreq prior, in words of retain text
_UNKNOWN_ZIPF = 1.0  # a word that wordfreq does not list (it lists down to about 1.0)
_HYPHENED_ZIPF = 2.5  # wordfreq multiplies the parts of a compound and so over-rates it
_COLLOCATION = 0.05  # share of its rarer word's occurrences that a phrase takes in general English, at most
_COMMON_EFFECT = 8.5  # 2 ln(c/e) asked of lower-case expressions, which have no capital as evidence
_NAME_EFFECT = 3.0
_NUMBERS = frozenset(
    ["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "twenty", "hundred", "half", "whole"]
)


@dataclass(frozen=True)
class Candidate:
    """An expression with its evidence. `spans` are (document, start, end), at most 400 of `count`."""

    term: str
    count: int
    score: float
    shape: Shape
    spans: tuple[tuple[int, int, int], ...] = ()
    parts: tuple[str, ...] = ()
    """Lower-cased words of the term."""
    plurals: int = 0
    """How many of `count` are the term's regular plural."""


@dataclass
class _Counts:
    """What one pass over the target leaves: word counts by case, runs of capitals, lower-case phrases."""

    words: int = 0
    total: Counter[str] = field(default_factory=Counter)
    capital: Counter[str] = field(default_factory=Counter)
    small: Counter[str] = field(default_factory=Counter)
    forms: Counter[str] = field(default_factory=Counter)
    runs: Counter[tuple[str, ...]] = field(default_factory=Counter)
    phrases: Counter[tuple[str, ...]] = field(default_factory=Counter)
    after_article: Counter[tuple[str, ...]] = field(default_factory=Counter)


@lru_cache(maxsize=1)
def ordinary_words() -> dict[str, frozenset[str]]:
    """The lists of `data/ordinary.yaml`, by name."""
    text = (files("forgetkit.anchors") / "data" / "ordinary.yaml").read_text("utf-8")
    return {name: frozenset(map(str, words)) for name, words in yaml.safe_load(text).items()}


@lru_cache(maxsize=200_000)
def background_zipf(word: str) -> float:
    """log10 of occurrences per 1e9 words of general English; hyphen compounds and unknown words are floored."""
    found = float(zipf_frequency(word, "en"))
    if "-" in word:
        return min(found, _HYPHENED_ZIPF)
    return max(found, _UNKNOWN_ZIPF)


def background(word: str) -> float:
    """Relative frequency of `word` (lower case) in general English."""
    return float(10.0 ** (background_zipf(word) - 9.0))


def root_llr(count: float, expected: float) -> float:
    """Signed root of the log-likelihood ratio of `count` occurrences where `expected` would be usual."""
    if count <= 0:
        return -math.sqrt(2 * expected)
    value = 2 * (count * math.log(count / expected) - count + expected)
    return math.copysign(math.sqrt(max(value, 0.0)), count - expected)


def _is_roman(word: str) -> bool:
    return bool(word) and all(c in "IVXLCDM" for c in word)


def _content(word: Word) -> bool:
    return (
        len(word.text) > 2
        and word.text.islower()
        and "'" not in word.text
        and background_zipf(word.lower) < 5.6
    )


def _trim(run: list[Word]) -> tuple[str, ...]:
    """A run without connectors and speech words at its edges."""
    speech = ordinary_words()["speech"]
    while run and (
        run[0].lower in CONNECTORS
        or run[0].lower in speech - {"good", "dear", "poor", "little", "old", "great"}
    ):
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
        # At the start of a sentence the first capital may be the sentence's: both readings are counted.
        if run[0].initial:
            trimmed = _trim(run[1:])
        else:
            trimmed = _trim(run)
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
        if _content(second):
            yield (first.text, second.text), before
        elif second.text == "of" and i + 2 < len(words) and words[i + 2].joined and _content(words[i + 2]):
            yield (first.text, "of", words[i + 2].text), before


def _count(texts: Iterable[str]) -> _Counts:
    counts = _Counts()
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


Phrase = tuple[str, ...]


class TermIndex:
    """Longest-match occurrences of many terms in word streams. Terms are tuples of words."""

    def __init__(self, terms: Iterable[Phrase]) -> None:
        self._longest: dict[str, int] = {}
        self._terms: dict[Phrase, Phrase] = {}
        for term in terms:
            key = tuple(w.lower() for w in term)
            self._terms[key] = term
            self._longest[key[0]] = max(self._longest.get(key[0], 0), len(key))

    def find(
        self, words: Sequence[Word], capitals: Callable[[Phrase], bool]
    ) -> Iterable[tuple[Phrase, int, int]]:
        """(term, first word, last word exclusive); where `capitals(term)`, only capitalised occurrences count."""
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


def _retain_counts(retain: Sequence[str], terms: Iterable[Phrase]) -> tuple[Counter[Phrase], int]:
    """Occurrences of the terms in (an even sample of) the retain text, capitals where the term has them."""
    index = TermIndex(terms)
    found: Counter[Phrase] = Counter()
    words_read = 0
    share = min(1.0, _RETAIN_CHARACTERS / max(1, sum(map(len, retain))))
    for text in retain:
        for words in paragraphs_of_words(text[: math.ceil(len(text) * share)]):
            words_read += len(words)
            found.update(term for term, _, _ in index.find(words, lambda t: t[0][0].isupper()))
    return found, words_read


class _Background:
    """Expected relative frequency of a term: the wordfreq prior, updated by the retain text when there is one."""

    def __init__(self, retain: Sequence[str], terms: Sequence[Phrase]) -> None:
        self._found, self._words = _retain_counts(retain, terms) if retain else (Counter(), 0)

    def __call__(self, term: Phrase) -> float:
        rates = [background(w.lower()) for w in term if w.lower() not in CONNECTORS]
        prior = min(rates) * (_COLLOCATION if len(rates) > 1 else 1.0)
        if not self._words:
            return prior
        # Capitalised retain occurrences replace a prior that cannot know case: little prior weight for names.
        weight = _PRIOR_WORDS / 10 if term[0][0].isupper() else _PRIOR_WORDS
        return (self._found[term] + weight * prior) / (self._words + weight)


def locate(
    terms: Iterable[str], texts: Sequence[str], score: Callable[[Phrase, int, int], float]
) -> list[Candidate]:
    """Candidates for given terms, by longest match: any case for lower-case terms, capitals for the others.

    `score(words, count, words in the texts)`; terms that do not occur are left out.
    """
    phrases = {tuple(w.text for p in paragraphs_of_words(term) for w in p): term for term in terms}
    phrases.pop((), None)
    count, _, spans = _occurrences(texts, phrases, lambda t: not any(w[0].isupper() for w in t))
    total = sum(len(p) for text in texts for p in paragraphs_of_words(text))
    return [
        Candidate(
            term,
            count[t],
            round(score(t, count[t], total), 3),
            "phrase",
            tuple(spans[t]),
            tuple(w.lower() for w in t),
        )
        for t, term in phrases.items()
        if count[t]
    ]


def _share(counts: _Counts, word: str) -> float:
    capital, small = counts.capital[word], counts.small[word]
    return capital / (capital + small) if capital + small else 0.0


def _single_terms(counts: _Counts, min_count: int) -> list[Phrase]:
    """Names (capitalised mid-sentence) and invented words, in their most frequent form."""
    form: dict[str, str] = {}
    for spelled, _ in sorted(counts.forms.items(), key=lambda kv: (kv[1], kv[0])):
        form[spelled.lower()] = spelled
    out: list[Phrase] = []
    for word, total in counts.total.items():
        if total < min_count or _is_roman(word.upper()):
            continue
        if counts.capital[word] >= max(2, min_count / 2) and _share(counts, word) >= 0.5 and len(word) > 1:
            out.append((form[word],))
        elif _is_invented(word) and counts.small[word]:
            out.append((word,))
    return out


def _is_invented(word: str) -> bool:
    endings = ("ly", "ing", "ed", "ness", "like", "less", "ful", "est", "wise", "some")
    plain = len(word) > 3 and not any(c in "'’" for c in word) and not word.endswith(endings)
    if not plain:
        return False
    if "-" in word:
        return all(background_zipf(p) < 2.2 for p in word.split("-")) or max(map(len, word.split("-"))) <= 0
    return background_zipf(word) < 1.9 and background_zipf(word.rstrip("s")) < 2.2


def _phrase_terms(counts: _Counts, min_count: int) -> list[Phrase]:
    out: list[Phrase] = [
        run
        for run, c in counts.runs.items()
        if c >= min_count and not _starts_ordinary(run) and _coheres(counts, run, c)
    ]
    plain = ordinary_words()["plain"]
    capitals = {
        tuple(w.lower() for w in run): c
        for run, c in sorted(counts.runs.items(), key=lambda kv: (kv[1], kv[0]))
    }
    for phrase, small in counts.phrases.items():
        c = small + capitals.get(phrase, 0)
        if c < max(5, min_count) or 4 * small < c or 2 * counts.after_article[phrase] < small:
            continue
        if phrase[0].split("-")[0] in _NUMBERS or phrase[-1] in plain:
            continue
        rarest = min(counts.total[w] for w in phrase if w != "of")
        zipfs = [background_zipf(w) for w in phrase if w != "of"]
        if c >= 0.15 * rarest and min(zipfs) < 4.9 and sum(zipfs) < 9.8:
            out.append(phrase)
    return out


def _starts_ordinary(run: Phrase) -> bool:
    return run[0].lower() in {"your", "his", "her", "my", "our", "their", "i", "i'm", "i'll", "i've"}


def _coheres(counts: _Counts, run: Phrase, count: int) -> bool:
    """The run is one expression rather than neighbours by chance: it takes a part's occurrences often enough."""
    parts = [counts.total[w.lower()] for w in run if w.lower() not in CONNECTORS]
    return (
        count * counts.words / math.prod(p / counts.words for p in parts[1:]) > 20 * parts[0] * counts.words
        if parts
        else False
    )


def _occurrences(
    texts: Iterable[str], terms: Iterable[Phrase], small: Callable[[Phrase], bool]
) -> tuple[Counter[Phrase], Counter[Phrase], dict[Phrase, list[tuple[int, int, int]]]]:
    """Longest-match counts, those that a sentence's start cannot explain, and the first spans of each term."""
    index = TermIndex(terms)
    count: Counter[Phrase] = Counter()
    firm: Counter[Phrase] = Counter()
    spans: dict[Phrase, list[tuple[int, int, int]]] = {}
    for document, text in enumerate(texts):
        for words in paragraphs_of_words(text):
            for term, i, j in index.find(words, lambda t: not small(t)):
                count[term] += 1
                firm[term] += not (words[i].initial or words[i].heading)
                kept = spans.setdefault(term, [])
                if len(kept) < _KEPT_SPANS:
                    kept.append((document, words[i].start, words[j - 1].end))
    return count, firm, spans


def _composes(term: Phrase, count: Counter[Phrase], good: set[Phrase]) -> bool:
    """An ordinary head before an anchor that stands alone anyway ('Princess Ozma', 'Land of Oz').

    Replacing the inner anchor changes the phrase already, and puts the loss on the telling word instead of its title.
    """
    composing = ordinary_words()["composing"]
    lowered = [w.lower() for w in term]
    at = 0
    while at < len(term) - 1 and (lowered[at] in composing or (at > 0 and lowered[at] in CONNECTORS)):
        at += 1
    tail = term[at:]
    if 0 < at < len(term) and tail in good:
        return count[tail] >= count[term]
    pieces = _split(term)
    return len(pieces) > 1 and all(p in good and count[p] >= count[term] for p in pieces)


def _split(term: Phrase) -> list[Phrase]:
    """The parts of a phrase between its connectors."""
    pieces: list[list[str]] = [[]]
    for word in term:
        if word.lower() in CONNECTORS:
            pieces.append([])
        else:
            pieces[-1].append(word)
    return [tuple(p) for p in pieces if p]


def extract(
    texts: Sequence[str],
    retain: Sequence[str] = (),
    *,
    min_count: int = 3,
    min_score: float = 6.0,
    max_terms: int = 1500,
    compose: bool = True,
) -> list[Candidate]:
    """The target's idiosyncratic expressions, best score first (ties by term).

    `compose` leaves out phrases that replacing an inner anchor already changes ('Princess Ozma' with 'Ozma').
    Time is linear in the text; memory grows with distinct words and runs, not with length.
    """
    counts = _count(texts)
    if not counts.words:
        return []
    by_words: dict[Phrase, Phrase] = {}  # one spelling each: lower case, where enough occurrences have it
    for term in _phrase_terms(counts, min_count) + _single_terms(counts, min_count):
        key = tuple(w.lower() for w in term)
        known = by_words.get(key)
        if known is None or term == key or (known != key and counts.runs[term] > counts.runs[known]):
            by_words[key] = term
    terms = list(by_words.values())
    expect = _Background(retain, terms)
    chosen = set(terms)
    for look in range(
        4
    ):  # a phrase that falls gives its occurrences back to its parts, hence more than one look
        count, firm, spans = _occurrences(
            texts, chosen, lambda t: t[0].islower() or _share(counts, t[0].lower()) < 0.05
        )
        scores = {t: _score(t, count[t], firm[t], counts, expect) for t in chosen if count[t] >= min_count}
        good = {t for t, s in scores.items() if s >= min_score}
        if compose:
            good -= {t for t in good if len(t) > 1 and _composes(t, count, good)}
        doubles = _doubles(good, count)
        good -= doubles
        again = good | doubles | {t for t in terms if len(t) == 1 and look == 0}
        if again == chosen:
            break
        chosen = again
    plurals = {(*t[:-1], t[-1][:-1]): count[t] for t in doubles}
    best = sorted(good, key=lambda t: (-scores[t], t))[:max_terms]
    return [_candidate(t, count[t], scores[t], tuple(spans[t]), texts, plurals.get(t, 0)) for t in best]


def _candidate(
    term: Phrase,
    count: int,
    score: float,
    spans: tuple[tuple[int, int, int], ...],
    texts: Sequence[str],
    plurals: int,
) -> Candidate:
    # As written: between the words of 'Dr. Nikidik' stands more than a blank.
    written = Counter(" ".join(texts[d][a:b].split()) for d, a, b in spans)
    spelled = [w for w, _ in written.most_common() if not w.isupper()] or [" ".join(term)]
    if not any(w[0].isupper() for w in term):
        spelled = [" ".join(term)]
    capital = any(w[0].isupper() for w in term)
    shape: Shape = (
        ("phrase" if capital else "common phrase") if len(term) > 1 else ("name" if capital else "invented")
    )
    return Candidate(
        spelled[0], count + plurals, round(score, 3), shape, spans, tuple(w.lower() for w in term), plurals
    )


def _score(term: Phrase, count: int, firm: int, counts: _Counts, expect: _Background) -> float:
    expected = expect(term) * counts.words
    effect = 2 * math.log(count / expected)
    capital = any(w[0].isupper() for w in term)
    if effect < (_NAME_EFFECT if capital else _COMMON_EFFECT):
        return 0.0
    score = root_llr(count, expected)
    if len(term) == 1:
        lowered = term[0].lower()
        lists = ordinary_words()
        if any(lowered in words or lowered.rstrip("s") in words for words in lists.values()):
            return 0.0
        if capital:
            score *= _share(counts, lowered) * min(1.0, 2 * firm / count)
    elif all(
        any(w.lower() in words for words in ordinary_words().values()) or w.lower() in CONNECTORS
        for w in term
    ):
        return 0.0
    return score


def _doubles(good: set[Phrase], count: Counter[Phrase]) -> set[Phrase]:
    """Plurals beside their singular, which the matcher covers: the plural goes."""
    return {
        t
        for t in good
        if t[-1].endswith("s") and (*t[:-1], t[-1][:-1]) in good and count[(*t[:-1], t[-1][:-1])] >= 2
    }
