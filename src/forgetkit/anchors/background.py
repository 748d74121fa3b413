"""How frequent words are in general English, and how surprising a count is."""

from __future__ import annotations

import math
from functools import lru_cache
from importlib.resources import files

import yaml
from wordfreq import zipf_frequency

_UNKNOWN_ZIPF = 1.0  # a word that wordfreq does not list (it lists down to about 1.0)
_HYPHENED_ZIPF = 2.5  # wordfreq multiplies the parts of a compound and so over-rates it


@lru_cache(maxsize=1)
def ordinary_words() -> dict[str, frozenset[str]]:
    """The lists of `data/ordinary.yaml`, by name."""
    text = (files("forgetkit.anchors") / "data" / "ordinary.yaml").read_text("utf-8")
    return {name: frozenset(map(str, words)) for name, words in yaml.safe_load(text).items()}


@lru_cache(maxsize=200_000)
def background_zipf(word: str) -> float:
    """log10 of occurrences per 1e9 words of general English; bounded for unknown and compound words."""
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
