"""The anchor dictionary: target expression -> generic counterpart (`ALGORITHM.md` 2a).

It is a YAML file that people read and edit; `lint` tells them what would do harm.
"""

from __future__ import annotations

import bisect
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from wordfreq import zipf_frequency

from forgetkit.anchors.matcher import Match, Matcher, looks_plural, vowel_sound
from forgetkit.core.errors import ForgetkitError, suggest

Kind = Literal["woman", "man", "person", "group", "place", "creature", "object", "title", "phrase", "other"]
_Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]

_HEADER = """\
# Anchor terms of the target, and the generic counterpart that stands for each.
#
# How to edit (your changes win, also when the dictionary is built again):
#   - a better counterpart: change `counterpart:`. Keep its kind, number and first sound (a / an), and choose
#     ordinary words that neither occur in the target nor are anchors themselves.
#   - leave a term alone: set `keep: false`.
#   - a term that is missing: add an entry; only `term:` and `counterpart:` are needed.
# Capitals, plurals, possessives and hyphens are handled: one entry per term is enough.
# `kind:` is one of {kinds}.
# Check the result with: forgetkit anchors lint

"""


class Anchor(BaseModel):
    """One expression that belongs to the target world, and what stands for it in the generic text."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    term: _Text
    kind: Kind = "other"
    counterpart: _Text
    count: Annotated[int, Field(ge=0)] = 0
    contexts: tuple[str, ...] = ()
    score: Annotated[float, Field(allow_inf_nan=False)] = 0.0
    source: Literal["statistics", "model", "llm", "person"] = "person"
    keep: bool = True


_FIELDS = tuple(Anchor.model_fields)
_SCALARS = ("term", "kind", "counterpart", "count", "score", "source", "keep")


@dataclass(frozen=True)
class Finding:
    """One remark of `lint`."""

    level: Literal["error", "warning"]
    term: str
    message: str


@dataclass(frozen=True)
class Dictionary:
    """All anchors, also those that are switched off."""

    anchors: tuple[Anchor, ...] = ()

    @cached_property
    def kept(self) -> tuple[Anchor, ...]:
        """The anchors in use; matches and alignments refer to them by their index here."""
        return tuple(anchor for anchor in self.anchors if anchor.keep)

    def redealt(self, seed: int) -> Dictionary:
        """The kept anchors, in their order, with counterparts dealt anew within each kind."""
        generator = np.random.default_rng(seed)
        anchors = list(self.kept)
        for kind in sorted({anchor.kind for anchor in anchors}):
            places = [i for i, anchor in enumerate(anchors) if anchor.kind == kind]
            dealt = [anchors[i].counterpart for i in generator.permutation(places)]
            for i, counterpart in zip(places, dealt, strict=True):
                anchors[i] = anchors[i].model_copy(update={"counterpart": counterpart})
        return Dictionary(tuple(anchors))

    def versions(self, count: int) -> list[Dictionary]:
        """The kept anchors as they are, then `redealt`: at most `count`, no two alike (few anchors have few ways)."""
        return list(dict.fromkeys([Dictionary(self.kept), *(self.redealt(seed) for seed in range(1, count))]))

    def save(self, path: Path) -> None:
        """Write YAML, best score first, with a comment on how to edit it."""
        entries = []
        for anchor in sorted(self.anchors, key=lambda a: (-a.score, -a.count, a.term)):
            entry: dict[str, Any] = {name: getattr(anchor, name) for name in _SCALARS}
            entry["score"] = round(anchor.score, 4)
            entries.append({**entry, "contexts": list(anchor.contexts)})
        dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
        body = yaml.dump({"anchors": entries}, Dumper=dumper, allow_unicode=True, sort_keys=False, width=10_000)
        text = _HEADER.format(kinds=", ".join(get_args(Kind))) + body.replace("\n- term:", "\n\n- term:")
        path.write_text(text, encoding="utf-8", newline="\n")

    @classmethod
    def load(cls, path: Path) -> Dictionary:
        """Read a dictionary that `save` or a person wrote.

        Raises:
            ForgetkitError: with file:line, for anything that is not a dictionary without contradictions.
        """
        anchors: dict[str, tuple[Anchor, int]] = {}
        for node in _entries(path):
            anchor, line = _anchor(path, node), node.start_mark.line + 1
            earlier = anchors.get(anchor.term)
            if earlier and earlier[0].keep and anchor.keep and earlier[0].counterpart != anchor.counterpart:
                raise ForgetkitError(
                    f"conflict: {anchor.term!r} becomes {anchor.counterpart!r} here, but "
                    f"{earlier[0].counterpart!r} at line {earlier[1]}",
                    f"{path}:{line}",
                    "remove one of the two entries",
                )
            if not earlier or (anchor.keep and not earlier[0].keep):
                anchors[anchor.term] = (anchor, line)
        return cls(tuple(anchor for anchor, _ in anchors.values()))


def _entries(path: Path) -> list[yaml.Node]:
    remedy = "mend the YAML, or delete the file to build it anew"
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        root = yaml.compose(path.read_text(encoding="utf-8-sig"), Loader=loader)
    except OSError as error:
        raise ForgetkitError(f"cannot be read ({error.strerror})", str(path), "check the path") from error
    except UnicodeDecodeError as error:
        raise ForgetkitError("is not UTF-8 text", str(path), "save it as UTF-8") from error
    except yaml.MarkedYAMLError as error:
        # an unclosed quote is noticed at the end of the file, but the mistake is where it opens
        opened = error.context_mark if isinstance(error, yaml.scanner.ScannerError) else None
        mark = opened or error.problem_mark or error.context_mark
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ForgetkitError(f"not valid YAML: {error.problem or error.context}", where, remedy) from error
    except yaml.YAMLError as error:
        raise ForgetkitError("not valid YAML: a character that YAML does not allow", str(path), remedy) from error
    if root is None:
        return []
    if isinstance(root, yaml.MappingNode):
        for key, _ in root.value:
            if key.value != "anchors":
                hint = suggest(str(key.value), ["anchors"]) or "entries belong under 'anchors:'"
                raise ForgetkitError(f"unknown key {key.value!r}", f"{path}:{key.start_mark.line + 1}", hint)
        root = root.value[0][1] if root.value else None
    if (isinstance(root, yaml.ScalarNode) and not root.value) or root is None:
        return []
    if not isinstance(root, yaml.SequenceNode):
        raise ForgetkitError(
            "is not a list of entries",
            f"{path}:{root.start_mark.line + 1}",
            "see `- term: ...` in a built file",
        )
    return list(root.value)


def _anchor(path: Path, node: yaml.Node) -> Anchor:
    def where(at: yaml.Node) -> str:
        return f"{path}:{at.start_mark.line + 1}"

    if not isinstance(node, yaml.MappingNode):
        raise ForgetkitError("an entry must have `term:` and `counterpart:`", where(node), "write `- term: NAME`")
    values: dict[str, Any] = {}
    nodes: dict[str, yaml.Node] = {}
    for key, value in node.value:
        name = str(key.value)
        if name not in _FIELDS:
            raise ForgetkitError(
                f"unknown key {name!r}", where(key), suggest(name, _FIELDS) or f"known: {', '.join(_FIELDS)}"
            )
        if name in values:
            raise ForgetkitError(f"key {name!r} is given twice", where(key), "remove one of the two")
        nodes[name] = value
        # text is taken as written: a counterpart called No or 1900 is text, not a truth value or a number
        if name == "contexts" and isinstance(value, yaml.SequenceNode):
            values[name] = tuple(item.value for item in value.value if isinstance(item, yaml.ScalarNode))
        elif not isinstance(value, yaml.ScalarNode):
            raise ForgetkitError(f"{name!r} must be a single value", where(value), "write it on one line")
        elif value.value or name in ("term", "counterpart"):
            values[name] = value.value if name != "contexts" else (value.value,)
    for name in ("term", "counterpart"):
        if not str(values.get(name, "")).strip() or nodes[name].tag.endswith(":null"):
            named = f" for {values['term']!r}" if name == "counterpart" and values.get("term") else ""
            remedy = f"add `{name}: ...`" + (
                ", or remove the entry" if name == "term" else ", or set another term's entry"
            )
            raise ForgetkitError(f"no {name}{named}", where(nodes.get(name, node)), remedy)
    try:
        return Anchor.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        given = str(values.get(name))
        hint = suggest(given, get_args(Kind)) if name == "kind" else ""
        raise ForgetkitError(f"{name} {given!r}: {first['msg'].lower()}", where(nodes[name]), hint) from error


def merge_edits(before: Dictionary, edited: Dictionary, now: Dictionary) -> Dictionary:
    """Carry a person's edits over to newly built proposals.

    Args:
        before: what the last build wrote.
        edited: the file as the person left it.
        now: what this build proposes.

    Changed and added entries win over the proposals; removed entries come back as `keep: false`.
    """
    old = {anchor.term: anchor for anchor in before.anchors}
    mine = {anchor.term: anchor for anchor in edited.anchors}
    merged = {anchor.term: anchor for anchor in now.anchors}
    for term, anchor in mine.items():
        previous = old.get(term)
        same = previous is not None and _decisions(previous) == _decisions(anchor)
        if same and anchor.source != "person":
            continue
        kind, counterpart, keep = _decisions(anchor)
        update: Mapping[str, Any] = {
            "kind": kind,
            "counterpart": counterpart,
            "keep": keep,
            "source": "person",
        }
        merged[term] = merged.get(term, anchor).model_copy(update=update)
    for term, anchor in old.items():
        if term not in mine:
            merged[term] = merged.get(term, anchor).model_copy(update={"keep": False, "source": "person"})
    return Dictionary(tuple(merged.values()))


def _decisions(anchor: Anchor) -> tuple[Kind, str, bool]:
    return anchor.kind, anchor.counterpart, anchor.keep


_NEAR_WORDS = 300
_MOST_WORDS = 6


def lint(dictionary: Dictionary, texts: Sequence[str]) -> list[Finding]:
    """Remarks on the kept anchors: errors, which would damage the labels, then what probably was not meant.

    Args:
        dictionary: to examine.
        texts: the target's documents; with none, the remarks that need text are left out.
    """
    kept = dictionary.kept
    matcher = Matcher(dictionary)
    found = [matcher.find(text) for text in texts]
    places: dict[int, list[tuple[int, Match]]] = defaultdict(list)
    for number, matches in enumerate(found):
        for match in matches:
            places[match.anchor].append((number, match))
    findings = [*_lint_shared(kept, texts, found), *_lint_duplicates(kept)]
    small = Counter(word for text in texts for word in re.findall(r"\b[^\W\d_A-Z]+\b", text))
    in_use = _counterpart_counts(kept, texts)
    for index, anchor in enumerate(kept):
        findings += _lint_counterpart(anchor, matcher, in_use.get(index, 0))
        findings += _lint_common(anchor, small, len(places[index]))
        findings += _lint_grammar(anchor, texts, places[index])
        if texts and not places[index]:
            findings.append(Finding("warning", anchor.term, "does not occur on its own in the target"))
    return sorted(findings, key=lambda f: (f.level, f.term, f.message))


def _lint_counterpart(anchor: Anchor, matcher: Matcher, uses: int) -> list[Finding]:
    term, other = anchor.term, anchor.counterpart
    findings: list[Finding] = []
    if term.casefold() == other.casefold():
        return [Finding("error", term, "is mapped to itself")]
    findings += [
        Finding("error", term, f"counterpart {other!r} is or contains the anchor {name!r}")
        for name in sorted({matcher.anchors[match.anchor].term for match in matcher.find(other)})
    ]
    if not other.isprintable():
        findings.append(Finding("error", term, "counterpart holds a line break or a control character"))
    if len(other.split()) > _MOST_WORDS:
        findings.append(Finding("error", term, f"counterpart has more than {_MOST_WORDS} words"))
    if uses:
        findings.append(Finding("warning", term, f"counterpart {other!r} itself occurs {uses} times in the target"))
    return findings


def _lint_common(anchor: Anchor, small: Counter[str], uses: int) -> list[Finding]:
    term = anchor.term
    zipf = float(zipf_frequency(term, "en"))
    if zipf <= 5 or (term != term.lower() and len(term.split()) > 1):
        return []
    # a frequent word may still be a name ("Will", "John"): then it is hardly ever printed in lower case
    if term != term.lower() and 5 * small[term.lower()] < uses:
        return []
    return [Finding("error" if zipf > 5.5 else "warning", term, "is a common word: replacing it would wreck the text")]


def _lint_grammar(anchor: Anchor, texts: Sequence[str], places: list[tuple[int, Match]]) -> list[Finding]:
    term, other = anchor.term, anchor.counterpart
    findings = []
    if vowel_sound(term) != vowel_sound(other):
        article = re.compile(r"\b[Aa]n?\s$")
        uses = sum(bool(article.search(texts[n][max(0, match.start - 4) : match.start])) for n, match in places)
        if uses or not texts:
            findings.append(Finding("warning", term, f"counterpart {other!r} takes the other article (a / an)"))
    if anchor.kind not in ("woman", "man", "person", "place") and looks_plural(term) != looks_plural(other):
        findings.append(Finding("warning", term, f"counterpart {other!r} differs in number (singular / plural)"))
    return findings


def _lint_duplicates(kept: Sequence[Anchor]) -> list[Finding]:
    seen: dict[str, str] = {}
    return [
        Finding("error", anchor.term, "has two entries with different counterparts")
        for anchor in kept
        if seen.setdefault(anchor.term, anchor.counterpart) != anchor.counterpart
    ]


def _lint_shared(kept: Sequence[Anchor], texts: Sequence[str], found: Sequence[Sequence[Match]]) -> list[Finding]:
    shared: dict[str, list[int]] = defaultdict(list)
    for index, anchor in enumerate(kept):
        shared[anchor.counterpart.casefold()].append(index)
    owner = {k: key for key, group in shared.items() if len({kept[k].term for k in group}) > 1 for k in group}
    close: set[str] = set()
    for text, matches in zip(texts, found, strict=True) if owner else ():
        words = [m.start() for m in re.finditer(r"\S+", text)]
        last: dict[str, dict[int, int]] = defaultdict(dict)
        for match in matches:
            key = owner.get(match.anchor)
            if key is None:
                continue
            at = bisect.bisect_right(words, match.start)
            if any(k != match.anchor and at - before <= _NEAR_WORDS for k, before in last[key].items()):
                close.add(key)
            last[key][match.anchor] = at
    findings = []
    for index, key in owner.items():
        others = ", ".join(repr(kept[k].term) for k in shared[key] if k != index)
        near = f", and they occur within {_NEAR_WORDS} words of each other" if key in close else ""
        message = f"shares the counterpart {kept[index].counterpart!r} with {others}{near}"
        findings.append(Finding("error" if near else "warning", kept[index].term, message))
    return findings


def _counterpart_counts(kept: Sequence[Anchor], texts: Sequence[str]) -> dict[int, int]:
    """How often each counterpart is printed in the texts as it is."""
    names = list(dict.fromkeys(anchor.counterpart for anchor in kept))
    reverse = Matcher(Dictionary(tuple(Anchor(term=name, counterpart=name) for name in names)))
    counts: dict[str, int] = defaultdict(int)
    for text in texts:
        for match in reverse.find(text):
            counts[names[match.anchor]] += 1
    return {index: counts[anchor.counterpart] for index, anchor in enumerate(kept) if counts[anchor.counterpart]}
