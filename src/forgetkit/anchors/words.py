"""Words of a text, each with its place, case, and where it stands in its sentence."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*|&")
_BLANK_LINE = re.compile(r"\n[ \t\r]*\n")
_POSSESSIVE = re.compile(r"['’][sS]$")
_OPENING = "\"'“‘([{_*"
_CLOSING = "\"'”’)]}_*"
_ABBREVIATIONS = frozenset({"mr", "mrs", "ms", "dr", "st", "prof", "rev", "capt", "gen", "col", "lieut", "sgt"})
CONNECTORS = frozenset({"of", "the", "de", "von", "van", "du", "la", "le", "&"})


@dataclass(frozen=True, slots=True)
class Word:
    """One word: `text` without possessive, character span in its document, and its surroundings."""

    text: str
    lower: str
    start: int
    end: int
    initial: bool
    """First word of a sentence, a quotation or a paragraph: its capital says nothing."""
    heading: bool
    """In a title-cased paragraph: its capital says nothing either."""
    joined: bool
    """Only blanks (or an abbreviation's full stop) stand between this word and the one before."""

    @property
    def capital(self) -> bool:
        """Capital first letter, but not a word of capitals only (single letters count as shouted)."""
        return self.text[0].isupper() and not self.shouted

    @property
    def shouted(self) -> bool:
        """All letters are capitals."""
        return self.text.isupper() and len(self.text) > 1


def _is_heading(words: list[re.Match[str]], paragraph: str) -> bool:
    """Title case: most long words are capitalised. Prose ends with a stop, and rarely has so many names."""
    long = [w.group() for w in words[1:] if len(w.group()) > 3]
    if not long:
        return False
    stopped = paragraph.rstrip()[-1:] in ".!?,;:\"”’'"
    if stopped and len(long) < 4:
        return False
    return sum(w[0].isupper() for w in long) >= (0.95 if stopped else 0.7) * len(long)


def _paragraphs(text: str) -> Iterator[tuple[int, int]]:
    start = 0
    for blank in _BLANK_LINE.finditer(text):
        yield start, blank.start()
        start = blank.end()
    yield start, len(text)


def _begins_sentence(paragraph: str, start: int, previous: str) -> bool:
    at = start - 1
    if at >= 0 and paragraph[at] in _OPENING:
        return True
    while at >= 0 and (paragraph[at].isspace() or paragraph[at] in _CLOSING):
        at -= 1
    if at < 0:
        return True
    if paragraph[at] == ".":
        return previous not in _ABBREVIATIONS
    return paragraph[at] in "!?:-–—…" or paragraph[at].isdigit()


def paragraphs_of_words(text: str) -> Iterator[list[Word]]:
    """The words of `text`, paragraph by paragraph (blank lines separate). Linear in the text's length."""
    for first, last in _paragraphs(text):
        paragraph = text[first:last]
        found = list(_WORD.finditer(paragraph))
        if not found:
            continue
        heading = _is_heading(found, paragraph)
        words: list[Word] = []
        previous, previous_end = "", 0
        for match in found:
            word = _POSSESSIVE.sub("", match.group())
            gap = paragraph[previous_end : match.start()]
            stripped = gap.strip()
            joined = bool(words) and bool(gap) and (not stripped or (stripped == "." and previous in _ABBREVIATIONS))
            initial = not joined and _begins_sentence(paragraph, match.start(), previous)
            end = match.start() + len(word)
            words.append(Word(word, word.lower(), first + match.start(), first + end, initial, heading, joined))
            # The possessive ends a run: "Dorothy's Aunt" is two expressions, so the gap must hold the 's.
            previous, previous_end = word.lower(), end
        yield words
