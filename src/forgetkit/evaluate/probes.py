"""Hand-made probes of a target: cloze items, completion prompts and probability prompts, read and checked.

A folder holds `cloze.jsonl`, `completions.jsonl`, `probability.jsonl` (any subset), one JSON object per line, and
`lexicon.json`, the expressions by which every completion is graded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from forgetkit.core.errors import ForgetkitError

CLOZE, COMPLETIONS, PROBABILITY, LEXICON = "cloze.jsonl", "completions.jsonl", "probability.jsonl", "lexicon.json"
MIN_DISTRACTORS = 9
Split = Literal["dev", "test"]
Grade = Literal["3", "2", "1"]
Terms = dict[Grade, tuple[str, ...]]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Source(_Strict):
    """The passage that a probe is about: file name of the document, and a quotation from it."""

    file: str
    quote: str


class _Probe(_Strict):
    id: str
    source: Source
    prompt: str
    split: Split

    @model_validator(mode="after")
    def _check_prompt(self) -> _Probe:
        _not_blank("id", self.id)
        _not_blank("prompt", self.prompt)
        if self.prompt[-1].isspace():
            raise ValueError("the prompt ends with white space")
        return self


class Cloze(_Probe):
    """A prompt, its one true continuation and false ones of the same type.

    known: whether a model that read the target gets it right (others are not measured); reference_right: whether
    one that did not read it does, too.
    """

    kind: Literal["verbatim", "fact"]
    answer: str
    distractors: tuple[str, ...]
    about_anchor: bool
    known: bool = True
    reference_right: bool | None = None

    @property
    def options(self) -> tuple[str, ...]:
        """The answer, then the distractors."""
        return (self.answer, *self.distractors)

    @model_validator(mode="after")
    def _check_options(self) -> Cloze:
        for option in self.options:
            _word("answer" if option is self.answer else "distractor", option)
        if len(self.distractors) < MIN_DISTRACTORS:
            raise ValueError(f"{len(self.distractors)} distractors, at least {MIN_DISTRACTORS} are needed")
        folded = [option.casefold() for option in self.options]
        if folded[0] in folded[1:]:
            raise ValueError("the answer is among the distractors")
        if len(set(folded)) < len(folded):
            raise ValueError("a distractor is given twice")
        if re.search(rf"(?<!\w){re.escape(folded[0])}(?!\w)", self.prompt.casefold()):
            raise ValueError("the prompt contains the answer")
        return self


class CompletionProbe(_Probe):
    """A prompt whose continuation could reveal the target, with the expressions that would, by grade.

    subtlety: 1 (the prompt gives much away) to 3 (a faint hint).
    """

    kind: Literal["completion"]
    references: Terms
    subtlety: Literal[1, 2, 3]

    @model_validator(mode="after")
    def _check_references(self) -> CompletionProbe:
        for terms in self.references.values():
            for term in terms:
                _not_blank("reference", term)
        return self


class ProbabilityProbe(_Probe):
    """A prompt, and the words that only a model familiar with the target would go on with."""

    kind: Literal["probability"]
    familiar: tuple[str, ...]

    @model_validator(mode="after")
    def _check_familiar(self) -> ProbabilityProbe:
        if not self.familiar:
            raise ValueError("no familiar word")
        for word in self.familiar:
            _word("familiar word", word)
        if len(set(self.familiar)) < len(self.familiar):
            raise ValueError("a familiar word is given twice")
        return self


class Graded(_Strict):
    """A completion graded by hand, for the calibration of a judge."""

    id: str
    probe: str
    model: str
    completion: str
    grade: Literal[0, 1, 2, 3]


def _not_blank(what: str, text: str) -> None:
    if not text.strip():
        raise ValueError(f"the {what} is empty")


def _word(what: str, text: str) -> None:
    _not_blank(what, text)
    if text != text.strip():
        raise ValueError(f"the {what} {text!r} begins or ends with white space")


@dataclass(frozen=True)
class Probes:
    """All probes that are measured. unknown: cloze items left out because no model is known to get them right."""

    cloze: tuple[Cloze, ...] = ()
    completions: tuple[CompletionProbe, ...] = ()
    probabilities: tuple[ProbabilityProbe, ...] = ()
    lexicon: Terms = field(default_factory=dict)
    unknown: int = 0


def probe_files(folder: Path) -> list[Path]:
    """The files that `load_probes` reads. Raises `ForgetkitError` where there is no probe file at all."""
    found = [path for name in (CLOZE, COMPLETIONS, PROBABILITY, LEXICON) if (path := folder / name).is_file()]
    if all(path.name == LEXICON for path in found):
        names = f"{CLOZE}, {COMPLETIONS} or {PROBABILITY}"
        raise ForgetkitError("no probes here", str(folder), f"expected {names}; see evaluate.probes")
    return found


def load_probes(folder: Path, files: Collection[str] | None = None, split: str | None = None) -> Probes:
    """The probes of `folder`, in the order of its files.

    files: names of the documents at hand; probes about others are left out. None: all.
    split: 'dev' or 'test'; None: both.

    Raises:
        ForgetkitError: no probe file; a malformed probe or a second one of the same id, with file and line.
    """
    present = {path.name: path for path in probe_files(folder)}
    seen: dict[str, str] = {}

    def load(name: str, kind: type[_P]) -> tuple[_P, ...]:
        probes = []
        for where, probe in _read_lines(present[name], kind) if name in present else ():
            if probe.id in seen:
                raise ForgetkitError(f"the id {probe.id!r} is also at {seen[probe.id]}", where)
            seen[probe.id] = where
            if (files is None or probe.source.file in files) and split in (None, probe.split):
                probes.append(probe)
        return tuple(probes)

    cloze = load(CLOZE, Cloze)
    known = tuple(item for item in cloze if item.known)
    return Probes(
        cloze=known,
        completions=load(COMPLETIONS, CompletionProbe),
        probabilities=load(PROBABILITY, ProbabilityProbe),
        lexicon=_read_lexicon(present[LEXICON]) if LEXICON in present else {},
        unknown=len(cloze) - len(known),
    )


def load_graded(path: Path) -> list[Graded]:
    """Completions graded by hand. Raises `ForgetkitError` with file and line."""
    return [graded for _, graded in _read_lines(path, Graded)]


_P = TypeVar("_P", bound=_Probe)
_M = TypeVar("_M", bound=BaseModel)


class _Terms(_Strict):
    terms: Terms


def _read_lines(path: Path, kind: type[_M]) -> Iterator[tuple[str, _M]]:
    """(path:line, object) of every line that is not blank."""
    for number, raw in enumerate(_read(path).split(b"\n"), 1):
        if raw.strip():
            where = f"{path}:{number}"
            yield where, _validated(kind, _json(raw, where), where)


def _read_lexicon(path: Path) -> Terms:
    terms = _validated(_Terms, {"terms": _json(_read(path), str(path))}, str(path)).terms
    if any(not term.strip() for group in terms.values() for term in group):
        raise ForgetkitError("an empty term", str(path))
    return terms


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ForgetkitError(f"cannot be read ({error.strerror})", str(path)) from error


def _json(raw: bytes, where: str) -> Any:
    try:
        return json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ForgetkitError("not UTF-8", where) from error
    except (ValueError, RecursionError) as error:
        raise ForgetkitError("not readable as JSON", where) from error


def _validated(kind: type[_M], value: Any, where: str) -> _M:
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"] if part != "terms")
        what = first["msg"].removeprefix("Value error, ")
        raise ForgetkitError(f"{place}: {what}" if place else what, where) from error
