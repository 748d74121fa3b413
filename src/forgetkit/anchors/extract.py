"""Expressions that belong to a text's own world, against general English and, if given, retain text.

A candidate's score is a signed root of Dunning's log-likelihood ratio, `sqrt(2 (c ln(c/e) - c + e))`, times
the share of capitals where case is the evidence: c = occurrences, e = those expected from the background.
The background is wordfreq, used as an informative Dirichlet prior that the retain text updates (Monroe et al.
2008, "Fightin' Words").
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from forgetkit.anchors.background import background, background_zipf, ordinary_words, root_llr
from forgetkit.anchors.counting import Counts, Phrase, TermIndex, count_words
from forgetkit.anchors.words import CONNECTORS, paragraphs_of_words

Shape = Literal["name", "phrase", "invented", "common phrase"]
_KEPT_SPANS = 400  # occurrences remembered per term: enough for kinds and contexts, bounded in memory
_RETAIN_CHARACTERS = 20_000_000  # read from the retain text; more does not change which terms are rare
_PRIOR_WORDS = 1_000_000.0  # weight of the wordfreq prior, in words of retain text
_COLLOCATION = 0.05  # share of its rarer word's occurrences that a phrase takes in general English, at most
_COMMON_EFFECT = 8.5  # 2 ln(c/e) asked of lower-case expressions, which have no capital as evidence
_NAME_EFFECT = 3.0
_NUMBERS = "two three four five six seven eight nine ten eleven twelve twenty hundred half whole"


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
    """Expected relative frequency of a term: the wordfreq prior, updated by the retain text if any."""

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


def locate(terms: Iterable[str], texts: Sequence[str], score: Callable[[Phrase, int, int], float]) -> list[Candidate]:
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


def _share(counts: Counts, word: str) -> float:
    capital, small = counts.capital[word], counts.small[word]
    return capital / (capital + small) if capital + small else 0.0


def _single_terms(counts: Counts, min_count: int) -> list[Phrase]:
    """Names (capitalised mid-sentence) and invented words, in their most frequent form."""
    form: dict[str, str] = {}
    for spelled, _ in sorted(counts.forms.items(), key=lambda kv: (kv[1], kv[0])):
        form[spelled.lower()] = spelled
    out: list[Phrase] = []
    for word, total in counts.total.items():
        if total < min_count:
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
        return all(background_zipf(p) < 2.2 for p in word.split("-"))
    return background_zipf(word) < 1.9 and background_zipf(word.rstrip("s")) < 2.2


def _phrase_terms(counts: Counts, min_count: int) -> list[Phrase]:
    out: list[Phrase] = [
        run
        for run, c in counts.runs.items()
        if c >= min_count and not _starts_ordinary(run) and _coheres(counts, run, c)
    ]
    plain = ordinary_words()["plain"]
    capitals = {
        tuple(w.lower() for w in run): c for run, c in sorted(counts.runs.items(), key=lambda kv: (kv[1], kv[0]))
    }
    for phrase, small in counts.phrases.items():
        c = small + capitals.get(phrase, 0)
        if c < max(5, min_count) or 4 * small < c or 2 * counts.after_article[phrase] < small:
            continue
        if phrase[0].split("-")[0] in _NUMBERS.split() or phrase[-1] in plain:
            continue
        rarest = min(counts.total[w] for w in phrase if w != "of")
        zipfs = [background_zipf(w) for w in phrase if w != "of"]
        if c >= 0.15 * rarest and min(zipfs) < 4.9 and sum(zipfs) < 9.8:
            out.append(phrase)
    return out


def _starts_ordinary(run: Phrase) -> bool:
    return run[0].lower() in {"your", "his", "her", "my", "our", "their", "i", "i'm", "i'll", "i've"}


def _coheres(counts: Counts, run: Phrase, count: int) -> bool:
    """The run is one expression rather than neighbours by chance: more frequent than its parts make it."""
    parts = [counts.total[w.lower()] for w in run if w.lower() not in CONNECTORS]
    by_chance = counts.words * math.prod(p / counts.words for p in parts)
    return bool(parts) and (count > 20 * by_chance or 2 * count >= min(parts))


def _occurrences(
    texts: Iterable[str], terms: Iterable[Phrase], small: Callable[[Phrase], bool]
) -> tuple[Counter[Phrase], Counter[Phrase], dict[Phrase, list[tuple[int, int, int]]]]:
    """Longest-match counts, those that a sentence's start cannot explain, and the first spans."""
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

    Replacing the inner anchor changes the phrase already, and puts the loss on the telling word.
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
    counts = count_words(texts)
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
    for look in range(4):  # a phrase that falls gives its occurrences back to its parts, hence more than one look
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
    shape: Shape = ("phrase" if capital else "common phrase") if len(term) > 1 else ("name" if capital else "invented")
    return Candidate(
        spelled[0], count + plurals, round(score, 3), shape, spans, tuple(w.lower() for w in term), plurals
    )


def _score(term: Phrase, count: int, firm: int, counts: Counts, expect: _Background) -> float:
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
    elif all(any(w.lower() in words for words in ordinary_words().values()) or w.lower() in CONNECTORS for w in term):
        return 0.0
    return score


def _doubles(good: set[Phrase], count: Counter[Phrase]) -> set[Phrase]:
    """Plurals beside their singular, which the matcher covers: the plural goes."""
    return {
        t for t in good if t[-1].endswith("s") and (*t[:-1], t[-1][:-1]) in good and count[(*t[:-1], t[-1][:-1])] >= 2
    }
