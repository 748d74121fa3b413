"""Porter's stemmer as ROUGE's reference package uses it, so that stemmed ROUGE can be compared with published numbers.

M. Porter, "An algorithm for suffix stripping", Program 14.3 (1980), with the later amendments of its author and of
NLTK (`NLTK_EXTENSIONS`), which `rouge-score` stems with.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable

_IRREGULAR = {
    "skies": "sky",
    "dying": "die",
    "lying": "lie",
    "tying": "tie",
    "innings": "inning",
    "outings": "outing",
    "cannings": "canning",
} | {word: word for word in ("sky", "news", "inning", "outing", "canning", "howe", "proceed", "exceed", "succeed")}
_STEP_2 = (
    *(("ational", "ate"), ("tional", "tion"), ("enci", "ence"), ("anci", "ance"), ("izer", "ize"), ("bli", "ble")),
    *(("alli", "al"), ("entli", "ent"), ("eli", "e"), ("ousli", "ous"), ("ization", "ize"), ("ation", "ate")),
    *(("ator", "ate"), ("alism", "al"), ("iveness", "ive"), ("fulness", "ful"), ("ousness", "ous"), ("aliti", "al")),
    *(("iviti", "ive"), ("biliti", "ble"), ("fulli", "ful")),
)
_STEP_3 = (
    *(("icate", "ic"), ("ative", ""), ("alize", "al"), ("iciti", "ic"), ("ical", "ic"), ("ful", ""), ("ness", "")),
)
_STEP_4 = (
    *("al", "ance", "ence", "er", "ic", "able", "ible", "ant", "ement", "ment", "ent", "ion"),
    *("ou", "ism", "ate", "iti", "ous", "ive", "ize"),
)


def stem(word: str) -> str:
    """Stem of a lower-case word: "generously" -> "gener", "dies" -> "die"; words of one or two letters stay."""
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if len(word) <= 2:
        return word
    for step in (_step_1a, _step_1b, _step_1c, _step_2, _step_3, _step_4, _step_5):
        word = step(word)
    return word


def _consonants(word: str) -> list[bool]:
    """Per letter; y is a consonant at the start and after a vowel."""
    flags: list[bool] = []
    for letter in word:
        flags.append(letter not in "aeiou" and (letter != "y" or not flags or not flags[-1]))
    return flags


def _measure(word: str) -> int:
    """Number of vowel-consonant sequences."""
    flags = _consonants(word)
    return sum(not before and after for before, after in itertools.pairwise(flags))


def _short(word: str) -> bool:
    """Ends consonant-vowel-consonant (the last not w, x or y), or is vowel-consonant."""
    flags = _consonants(word)
    if len(word) == 2:
        return flags == [False, True]
    return flags[-3:] == [True, False, True] and word[-1] not in "wxy"


def _replace(word: str, rules: Iterable[tuple[str, str]], condition: Callable[[str], bool]) -> str:
    """The first rule whose suffix fits decides, whether or not its condition holds."""
    for suffix, replacement in rules:
        if word.endswith(suffix):
            rest = word[: len(word) - len(suffix)]
            return rest + replacement if condition(rest) else word
    return word


def _step_1a(word: str) -> str:
    if word.endswith("ies") and len(word) == 4:
        return word[:-1]
    return _replace(word, (("sses", "ss"), ("ies", "i"), ("ss", "ss"), ("s", "")), lambda rest: True)


def _step_1b(word: str) -> str:
    if word.endswith("ied"):
        return word[:-1] if len(word) == 4 else word[:-2]
    if word.endswith("eed"):
        return word[:-1] if _measure(word[:-3]) > 0 else word
    rest = next((word[: -len(end)] for end in ("ed", "ing") if word.endswith(end)), "")
    if all(_consonants(rest)):
        return word
    if rest.endswith(("at", "bl", "iz")):
        return rest + "e"
    if len(rest) > 1 and rest[-1] == rest[-2] and _consonants(rest)[-1]:
        return rest if rest[-1] in "lsz" else rest[:-1]
    return rest + "e" if _measure(rest) == 1 and _short(rest) else rest


def _step_1c(word: str) -> str:
    return _replace(word, (("y", "i"),), lambda rest: len(rest) > 1 and _consonants(rest)[-1])


def _step_2(word: str) -> str:
    if word.endswith("alli") and _measure(word[:-4]) > 0:
        return _step_2(word[:-2])
    if word.endswith("logi"):
        return word[:-1] if _measure(word[:-3]) > 0 else word
    return _replace(word, _STEP_2, lambda rest: _measure(rest) > 0)


def _step_3(word: str) -> str:
    return _replace(word, _STEP_3, lambda rest: _measure(rest) > 0)


def _step_4(word: str) -> str:
    ion = word.endswith("ion")
    fits: Callable[[str], bool] = lambda rest: _measure(rest) > 1 and (not ion or rest[-1] in "st")  # noqa: E731
    return _replace(word, ((suffix, "") for suffix in _STEP_4), fits)


def _step_5(word: str) -> str:
    if word.endswith("e"):
        rest = word[:-1]
        if _measure(rest) > 1 or (_measure(rest) == 1 and not _short(rest)):
            word = rest
    return word[:-1] if word.endswith("ll") and _measure(word[:-1]) > 1 else word
