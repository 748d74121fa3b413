"""Find anchor terms in running text, in every form in which English prints them.

The case-sensitive forms of every term are generated beforehand and searched all at once (Aho-Corasick,
overlapping); lowering the haystack instead would move offsets ("İ" becomes two characters).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import ahocorasick_rs

if TYPE_CHECKING:  # the dictionary's lint uses this module
    from forgetkit.anchors.dictionary import Anchor, Dictionary

_APOSTROPHES = "'’"
_CONTRACTIONS = frozenset({"s", "ll", "d", "ve", "re", "m"})
_OPENING = frozenset("\"'“‘«([{*_")
_PREPOSITIONS = frozenset({"of", "in", "from", "with", "at", "on", "under", "for", "to"})
_IRREGULAR = {
    "man": "men",
    "woman": "women",
    "child": "children",
    "person": "people",
    "foot": "feet",
    "tooth": "teeth",
    "goose": "geese",
    "mouse": "mice",
    "ox": "oxen",
    "fish": "fish",
    "sheep": "sheep",
    "deer": "deer",
    "folk": "folk",
    "people": "people",
    **{stem + "f": stem + "ves" for stem in ("wol", "el", "lea", "thie", "hal", "cal", "shel", "loa", "sel")},
    **{stem + "fe": stem + "ves" for stem in ("kni", "wi", "li")},
    **{word: word + "es" for word in ("hero", "potato", "tomato", "echo", "buffalo")},
}
_NOT_MEN = ("human", "german", "roman", "shaman", "norman", "ottoman", "talisman", "caiman", "herman")
_VOWEL_SOUND = re.compile(r"(?:[aeio]|u(?!ni(?!n|m)|s[aeiu]|t[ieo]|k|tr)|hour|honou?r|honest|heir)", re.IGNORECASE)
_CONSONANT_SOUND = re.compile(r"(?:eu|ewe|one\b|once\b|oui)", re.IGNORECASE)
_UNSPACED = (  # scripts written without spaces, or (Hangul) with particles attached to nouns
    (0x0E00, 0x0EFF),
    (0x1000, 0x109F),
    (0x1100, 0x11FF),
    (0x1780, 0x17FF),
    (0x3040, 0x30FF),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xAC00, 0xD7AF),
    (0xF900, 0xFAFF),
    (0x20000, 0x323AF),
)


class Match(NamedTuple):
    """One occurrence: code-point span, index into `Dictionary.kept`, and the text that stands for it."""

    start: int
    end: int
    anchor: int
    replacement: str


def vowel_sound(text: str) -> bool:
    """Whether the first word takes "an" rather than "a" (spelling heuristic)."""
    plain = unicodedata.normalize("NFD", text)
    return bool(_VOWEL_SOUND.match(plain)) and not _CONSONANT_SOUND.match(plain)


def looks_plural(phrase: str) -> bool:
    """Whether the head noun of a phrase looks like an English plural."""
    word = _split_head(phrase)[1].lower()
    if word in _IRREGULAR.values() and word not in ("fish", "sheep", "deer"):
        return True
    if word.endswith("men") and len(word) > 4:
        return True
    return len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is"))


def plural(phrase: str, name: bool = False) -> str:
    """Regular English plural of a phrase's head noun ("Witch of the West" -> "Witches of the West").

    Args:
        phrase: one or more words.
        name: a personal name, whose y stays ("Dorothys").
    """
    before, word, after = _split_head(phrase)
    return before + _plural_word(word, name) + after


def _split_head(phrase: str) -> tuple[str, str, str]:
    """Cut a phrase into (before, head noun, after): the last word before the first preposition."""
    words = list(re.finditer(r"[^\s\-]+", phrase))
    head = len(words) - 1
    for k, word in enumerate(words):
        if k and word.group().lower() in _PREPOSITIONS:
            head = k - 1
            break
    if head < 0:
        return phrase, "", ""
    return phrase[: words[head].start()], words[head].group(), phrase[words[head].end() :]


def _plural_word(word: str, name: bool) -> str:
    low = word.lower()
    if low in _IRREGULAR:
        return _like(word, _IRREGULAR[low])
    if low.endswith("man") and not low.endswith(_NOT_MEN) and not name:
        return word[:-2] + "en"
    if low.endswith(("s", "x", "z", "ch", "sh")):
        return word + "es"
    if low.endswith("y") and len(low) > 1 and low[-2] not in "aeiou" and not name:
        return word[:-1] + "ies"
    return word + "s"


def _like(model: str, word: str) -> str:
    return capital_first(word) if model[:1].isupper() else word


def capital_first(text: str) -> str:
    """Upper-case the first character only."""
    return text[:1].upper() + text[1:]


def title_case(text: str) -> str:
    """Upper-case the first letter of every word, also after a hyphen but not after an apostrophe."""
    return re.sub(r"(^|[\s\-])(\w)", lambda m: m.group(1) + m.group(2).upper(), text)


def _as_written(text: str) -> str:
    return text


_CASES: tuple[Callable[[str], str], ...] = (_as_written, capital_first, title_case, str.upper)


def _spellings(form: str) -> Iterator[str]:
    """Yield the form with other apostrophes and separators: hyphens, a line break, "Woggle-bug"."""
    if "'" in form or "’" in form:
        yield form.replace("’", "'")
        yield form.replace("'", "’")
    joints = [m.start() for m in re.finditer(r"[ \-‐‑]", form)]
    if not joints:
        return
    for separator in (" ", "-", "‐", "‑", "\u00a0"):
        yield re.sub(r"[ \-‐‑]", separator, form)
    for k in joints:
        if form[k] == " ":
            yield form[:k] + "\n" + form[k + 1 :]
        else:
            yield form[: k + 1] + form[k + 1 : k + 2].lower() + form[k + 2 :]
    if len(joints) == 1:
        k = joints[0]
        yield form[:k] + "-" + form[k + 1 : k + 2].lower() + form[k + 2 :]


def _forms(anchor: Anchor) -> Iterator[tuple[int, str, str]]:
    """Yield (priority, pattern, replacement); on a clash between anchors the lower priority number wins."""
    name = anchor.kind in ("woman", "man", "person") and anchor.counterpart[:1].isupper()
    pairs = [(0, anchor.term, anchor.counterpart)]
    head = _split_head(anchor.term)[1]
    # plurals of very short words are other words ("Ha" -> "Has", "I" -> "Is")
    if len(head) > 2 and not (anchor.kind in ("group", "creature", "object") and looks_plural(anchor.term)):
        many = anchor.counterpart if looks_plural(anchor.counterpart) else plural(anchor.counterpart, name)
        pairs += [(10, plural(anchor.term, named), many) for named in (name, not name)]
    for base, term, counterpart in pairs:
        for k, case in enumerate(_CASES):
            form, replacement = case(term), case(counterpart)
            if case is capital_first and form == term:
                continue
            yield base + k, form, replacement
            for spelling in _spellings(form):
                yield base + 5, spelling, replacement


def _is_word(char: str) -> bool:
    return char.isalnum() or char == "_" or unicodedata.category(char).startswith("M")


def _is_unspaced(char: str) -> bool:
    code = ord(char)
    return code >= 0x0E00 and any(low <= code <= high for low, high in _UNSPACED)


def _boundary(text: str, start: int, end: int) -> bool:
    """Whether [start, end) is a whole word: "Dorothy" is one in "Dorothy's", "Don" is none in "Don't"."""
    if start and _is_word(text[start - 1]) and not (_is_unspaced(text[start]) or _is_unspaced(text[start - 1])):
        return False
    if end == len(text):
        return True
    following = text[end]
    if _is_word(following):
        # a combining mark changes the term's own last character, in any script
        unspaced = _is_unspaced(text[end - 1]) or _is_unspaced(following)
        return unspaced and not unicodedata.category(following).startswith("M")
    letter = text[end + 1 : end + 2]
    if following in _APOSTROPHES and letter.isascii() and letter.isalpha():
        stop = end + 1
        while stop < len(text) and stop < end + 5 and _is_word(text[stop]):
            stop += 1
        return text[end + 1 : stop].lower() in _CONTRACTIONS
    return True


def _sentence_start(text: str, at: int) -> bool:
    """Whether a sentence (or a quotation) begins at `at`."""
    k, quoted = at, False
    while k and (text[k - 1] in " \t" or text[k - 1] in _OPENING):
        quoted = quoted or text[k - 1] in _OPENING
        k -= 1
    return not k or text[k - 1] in ".!?…\n”" or (quoted and text[k - 1] in ",:;—-")


class Matcher:
    """All kept anchors of a dictionary, ready to be found; match indices refer to `dictionary.kept`."""

    def __init__(self, dictionary: Dictionary) -> None:
        self.anchors: tuple[Anchor, ...] = dictionary.kept
        ranked: dict[str, tuple[int, int, str]] = {}
        for index, anchor in enumerate(self.anchors):
            for priority, pattern, replacement in _forms(anchor):
                entry = (priority, index, replacement)
                if pattern and (pattern not in ranked or entry[:2] < ranked[pattern][:2]):
                    ranked[pattern] = entry
        self._entries = [(index, replacement) for _, index, replacement in ranked.values()]
        self._automaton = ahocorasick_rs.AhoCorasick(list(ranked), store_patterns=False) if ranked else None

    def find(self, text: str) -> list[Match]:
        """Non-overlapping occurrences in reading order, the longest at each place; offsets are code points.

        The possessive mark stays outside of a match. The case of an occurrence is carried over to its
        replacement. An article before it is left alone: a prediction after "an" must see "an" on both sides.
        """
        if self._automaton is None:
            return []
        hits = self._automaton.find_matches_as_indexes(text, overlapping=True)
        hits.sort(key=lambda hit: (hit[1], -hit[2]))
        found: list[Match] = []
        last = 0
        for pattern, start, end in hits:
            if start < last or not _boundary(text, start, end):
                continue
            index, replacement = self._entries[pattern]
            if replacement[:1].islower() and text[start].isupper() and _sentence_start(text, start):
                replacement = capital_first(replacement)
            found.append(Match(start, end, index, replacement))
            last = end
        return found
