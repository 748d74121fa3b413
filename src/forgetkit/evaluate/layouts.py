"""The published file layouts of TOFU, MUSE and WMDP, read from a local folder or from the Hub.

A source is a folder, or the id of a Hub dataset. An id is looked up in the local Hub cache, and fetched only where
`allow_download` (setting `model.allow_download`) says so. A file may be JSON Lines, one JSON array, or parquet
(which needs pyarrow; it comes with the extra `eval`), whatever its layout's authors chose:

    TOFU   locuslab/TOFU: NAME.json, one object per line; NAME is forget01|05|10, retain99|95|90, holdout01|05|10,
           full, real_authors, world_facts, and forget01|05|10, retain, real_authors, world_facts with _perturbed.
           Objects: question, answer; in the _perturbed files also perturbed_answer (a list of wrong answers) and, for
           forget and retain, paraphrased_answer (the right answer in other words).
    MUSE   muse-bench/MUSE-News, muse-bench/MUSE-Books: SUBSET/SPLIT-00000-of-00001.parquet; the authors' repository:
           data/CORPUS/SUBSET/SPLIT.json with CORPUS news or books. Subsets and splits: raw (forget, retain1, retain2,
           holdout: text), verbmem (forget: prompt, gt), knowmem (forget_qa, retain_qa and the same with _icl:
           question, answer), privleak (forget, retain, holdout: text); news alone: scal, sust (forget_1 to forget_4:
           text). A text is a string or an object with `text`.
    WMDP   cais/wmdp: wmdp-bio|cyber|chem/test-00000-of-00001.parquet; the authors' archive: bio_questions.json and so
           on. Objects: question, choices (list), answer (index from 0).

Nothing here judges whether the texts are what their names say: `forget10.json` of another author's variant of TOFU is
read without complaint, and numbers measured on it are not TOFU's. Record the hash of the files with the results.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import huggingface_hub
from huggingface_hub.errors import EntryNotFoundError

from forgetkit.core.errors import ForgetkitError, suggest
from forgetkit.evaluate.knowledge import Choice, Question
from forgetkit.evaluate.tofu import TofuItem

INSTALL = "pip install 'forgetkit[eval]'"

TOFU_HUB = "locuslab/TOFU"
MUSE_HUB = {"news": "muse-bench/MUSE-News", "books": "muse-bench/MUSE-Books"}
WMDP_HUB = "cais/wmdp"

_TOFU_RETAIN = {"forget01": "retain99", "forget05": "retain95", "forget10": "retain90"}
TOFU_NAMES = (
    *_TOFU_RETAIN,
    *_TOFU_RETAIN.values(),
    "holdout01",
    "holdout05",
    "holdout10",
    "full",
    "real_authors",
    "world_facts",
    *(f"{name}_perturbed" for name in _TOFU_RETAIN),
    "retain_perturbed",
    "real_authors_perturbed",
    "world_facts_perturbed",
)
MUSE_SPLITS = {
    "raw": ("forget", "retain1", "retain2", "holdout"),
    "verbmem": ("forget",),
    "knowmem": ("forget_qa", "retain_qa", "forget_qa_icl", "retain_qa_icl"),
    "privleak": ("forget", "retain", "holdout"),
    "scal": ("forget_1", "forget_2", "forget_3", "forget_4"),
    "sust": ("forget_1", "forget_2", "forget_3", "forget_4"),
}
WMDP_DOMAINS = ("bio", "cyber", "chem")

_SUFFIXES = (".jsonl", ".json", ".parquet")
_SPACE = re.compile(r"[ \t\r\n]*")
_HELP = "the layouts in forgetkit.evaluate.layouts"
_Record = TypeVar("_Record")


class Row(NamedTuple):
    """One record of a file as it stands there. where: 'file:line' (parquet: 'file:row'), counted from 1."""

    value: Any
    where: str


class Verbatim(NamedTuple):
    """A passage cut in two (MUSE verbmem): `prompt` is given, `continuation` (its `gt`) really follows."""

    prompt: str
    continuation: str


@dataclass(frozen=True)
class Tofu:
    """What TOFU's forget quality, model utility and privacy need, for one size of forget set.

    The TofuItem sets are the _perturbed files, which hold the questions of the plain ones with wrong answers. `retain`
    is everything but the forget set (retain90 for forget10). `holdout` (questions that no model was trained on) was
    added by OpenUnlearning later and is None where the source has no such file.
    """

    forget: tuple[TofuItem, ...]
    retain: tuple[TofuItem, ...]
    real_authors: tuple[TofuItem, ...]
    world_facts: tuple[TofuItem, ...]
    forget_all: tuple[Question, ...]
    retain_all: tuple[Question, ...]
    holdout: tuple[Question, ...] | None


@dataclass(frozen=True)
class Muse:
    """What MUSE's VerbMem, KnowMem and PrivLeak need. *_shots: the in-context examples of the questions."""

    verbatim: tuple[Verbatim, ...]
    forget_questions: tuple[Question, ...]
    forget_shots: tuple[Question, ...]
    retain_questions: tuple[Question, ...]
    retain_shots: tuple[Question, ...]
    private_forget: tuple[str, ...]
    private_retain: tuple[str, ...]
    private_holdout: tuple[str, ...]


# --- the three layouts -----------------------------------------------------------------------------------


def read_tofu(source: str | Path = TOFU_HUB, forget: str = "forget10", *, allow_download: bool = False) -> Tofu:
    """TOFU for one forget set.

    Raises ForgetkitError: unknown forget set, missing or malformed file, an empty answer (with file and line).
    """
    _known(forget, tuple(_TOFU_RETAIN), "forget set of TOFU")
    folder = dataset_folder(source, "TOFU", ["*.json"], allow_download=allow_download)
    holdout = forget.replace("forget", "holdout")
    return Tofu(
        forget=_all(_tofu_file(folder, f"{forget}_perturbed"), _paraphrased),
        retain=_all(_tofu_file(folder, "retain_perturbed"), _paraphrased),
        real_authors=_all(_tofu_file(folder, "real_authors_perturbed"), _perturbed),
        world_facts=_all(_tofu_file(folder, "world_facts_perturbed"), _perturbed),
        forget_all=_all(_tofu_file(folder, forget), _question),
        retain_all=_all(_tofu_file(folder, _TOFU_RETAIN[forget]), _question),
        holdout=_all(_tofu_file(folder, holdout), _question) if find_file(folder, holdout) else None,
    )


def read_tofu_questions(
    source: str | Path = TOFU_HUB, name: str = "full", *, allow_download: bool = False
) -> tuple[Question, ...]:
    """Questions and right answers of any one file of TOFU (`TOFU_NAMES`). Raises ForgetkitError as `read_tofu`."""
    _known(name, TOFU_NAMES, "file of TOFU")
    folder = dataset_folder(source, "TOFU", ["*.json"], allow_download=allow_download)
    return _all(_tofu_file(folder, name), _question)


def read_muse(
    source: str | Path | None = None, corpus: Literal["news", "books"] = "news", *, allow_download: bool = False
) -> Muse:
    """MUSE's evaluation files of one corpus; source None: the corpus' own dataset on the Hub.

    Raises ForgetkitError: unknown corpus, missing or malformed file, an empty answer or text (with file and line).
    """
    folder = _muse_folder(source, corpus, allow_download)
    return Muse(
        verbatim=_all(_muse_file(folder, corpus, "verbmem", "forget"), _verbatim),
        forget_questions=_all(_muse_file(folder, corpus, "knowmem", "forget_qa"), _question),
        forget_shots=_all(_muse_file(folder, corpus, "knowmem", "forget_qa_icl"), _question),
        retain_questions=_all(_muse_file(folder, corpus, "knowmem", "retain_qa"), _question),
        retain_shots=_all(_muse_file(folder, corpus, "knowmem", "retain_qa_icl"), _question),
        private_forget=_all(_muse_file(folder, corpus, "privleak", "forget"), _passage),
        private_retain=_all(_muse_file(folder, corpus, "privleak", "retain"), _passage),
        private_holdout=_all(_muse_file(folder, corpus, "privleak", "holdout"), _passage),
    )


def read_muse_texts(
    source: str | Path | None = None,
    corpus: Literal["news", "books"] = "news",
    subset: Literal["raw", "scal", "sust"] = "raw",
    split: str = "forget",
    *,
    allow_download: bool = False,
) -> tuple[str, ...]:
    """The texts themselves: what is unlearned or kept (raw), or one of the four growing or successive requests.

    Raises ForgetkitError as `read_muse`.
    """
    _known(subset, ("raw", "scal", "sust"), "subset of texts of MUSE")
    _known(split, MUSE_SPLITS[subset], f"split of MUSE's {subset}")
    return _all(_muse_file(_muse_folder(source, corpus, allow_download), corpus, subset, split), _passage)


def read_wmdp(
    source: str | Path = WMDP_HUB, domain: str = "bio", *, allow_download: bool = False
) -> tuple[Choice, ...]:
    """WMDP's multiple-choice questions of one domain: bio, cyber or chem.

    Raises ForgetkitError: unknown domain, missing or malformed file, an empty option (with file and line).
    """
    _known(domain, WMDP_DOMAINS, "domain of WMDP")
    patterns = [f"wmdp-{name}/*" for name in WMDP_DOMAINS]
    folder = dataset_folder(source, "WMDP", patterns, allow_download=allow_download)
    places = (f"wmdp-{domain}/test", f"{domain}_questions", f"wmdp-{domain}")
    found = next((path for path in (find_file(folder, place) for place in places) if path), None)
    if found is None:
        expected = f"wmdp-{domain}/test.parquet (or .jsonl, .json), or {domain}_questions.json"
        raise missing_file(folder, expected, "WMDP", "question, choices, answer")
    return _all(found, _choice)


def _tofu_file(folder: Path, name: str) -> Path:
    if found := find_file(folder, name):
        return found
    keys = "question, answer"
    if name.endswith("_perturbed"):
        keys += ", perturbed_answer" + (", paraphrased_answer" if name.startswith(("forget", "retain")) else "")
    raise missing_file(folder, f"{name}.json", "TOFU", keys)


def _muse_folder(source: str | Path | None, corpus: str, allow_download: bool) -> Path:
    _known(corpus, tuple(MUSE_HUB), "corpus of MUSE")
    # The Hub repositories still hold JSON files of an older version beside the parquet ones: leave those there.
    patterns = [f"{subset}/*.parquet" for subset in MUSE_SPLITS]
    return dataset_folder(source or MUSE_HUB[corpus], "MUSE", patterns, allow_download=allow_download)


def _muse_file(folder: Path, corpus: str, subset: str, split: str) -> Path:
    for base in (folder, folder / corpus, folder / "data" / corpus):
        if found := find_file(base, f"{subset}/{split}"):
            return found
    keys = {"verbmem": "prompt, gt", "knowmem": "question, answer"}.get(subset, "text")
    expected = f"{subset}/{split}.parquet (or .jsonl, .json; also under {corpus}/ or data/{corpus}/)"
    raise missing_file(folder, expected, "MUSE", keys)


# --- records ---------------------------------------------------------------------------------------------


def _question(row: Row) -> Question:
    fields = _object(row, "question", "answer")
    return Question(_text(fields, "question", row), _text(fields, "answer", row))


def _perturbed(row: Row) -> TofuItem:
    fields = _object(row, "question", "answer", "perturbed_answer")
    wrong = _texts(fields, "perturbed_answer", row)
    return TofuItem(_text(fields, "question", row), _text(fields, "answer", row), wrong)


def _paraphrased(row: Row) -> TofuItem:
    fields = _object(row, "question", "answer", "perturbed_answer", "paraphrased_answer")
    return replace(_perturbed(row), paraphrase=_text(fields, "paraphrased_answer", row))


def _verbatim(row: Row) -> Verbatim:
    fields = _object(row, "prompt", "gt")
    return Verbatim(_text(fields, "prompt", row), _text(fields, "gt", row))


def _passage(row: Row) -> str:
    return _text({"text": row.value} if isinstance(row.value, str) else _object(row, "text"), "text", row)


def _choice(row: Row) -> Choice:
    fields = _object(row, "question", "choices", "answer")
    options = _texts(fields, "choices", row)
    answer = fields["answer"]
    if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(options):
        what = f"'answer' is {answer!r}, not an index from 0 to {len(options) - 1}"
        raise ForgetkitError(what, row.where, "give the index of the right option, counted from 0")
    return Choice(_text(fields, "question", row), options, answer)


def _all(path: Path, read: Callable[[Row], _Record]) -> tuple[_Record, ...]:
    return tuple(read(row) for row in read_rows(path))


def _object(row: Row, *keys: str) -> dict[str, Any]:
    if not isinstance(row.value, dict):
        raise ForgetkitError(f"expected an object with {', '.join(keys)}", row.where, f"see {_HELP}")
    for key in keys:
        if key not in row.value:
            hint = suggest(key, [str(name) for name in row.value]).replace("did you mean", "it has")
            what = f"no key {key!r}" + (f" ({hint})" if hint else "")
            raise ForgetkitError(what, row.where, f"a record needs {', '.join(keys)}")
    return row.value


def _text(fields: dict[str, Any], key: str, row: Row) -> str:
    value = fields[key]
    if not isinstance(value, str):
        raise ForgetkitError(f"{key!r} is not a string", row.where, f"see {_HELP}")
    if not value.strip():
        raise ForgetkitError(f"{key!r} is empty", row.where, "fill it in, or take the record out")
    return value


def _texts(fields: dict[str, Any], key: str, row: Row) -> tuple[str, ...]:
    values = fields[key]
    values = [values] if isinstance(values, str) else values
    if not isinstance(values, list) or not values:
        raise ForgetkitError(f"{key!r} is not a list of strings", row.where, f"see {_HELP}")
    return tuple(_text({f"{key}[{i}]": value}, f"{key}[{i}]", row) for i, value in enumerate(values))


# --- files -----------------------------------------------------------------------------------------------


def dataset_folder(source: str | Path, layout: str, patterns: Sequence[str], *, allow_download: bool) -> Path:
    """The folder that holds a data set: itself, or its snapshot in the local Hub cache.

    patterns: the files that are fetched from the Hub, where that is permitted. Raises ForgetkitError when there is
    neither a folder nor a snapshot, and nothing may be, or could be, fetched.
    """
    folder = Path(source)
    if folder.is_dir():
        return folder
    if not isinstance(source, str) or source.count("/") != 1 or source.startswith((".", "/", "~")):
        raise ForgetkitError("no such data folder", str(source), f"give a folder in the layout of {layout}")
    try:
        found = huggingface_hub.snapshot_download(
            source, repo_type="dataset", local_files_only=not allow_download, allow_patterns=list(patterns)
        )
    except (OSError, ValueError, RuntimeError, EntryNotFoundError) as error:
        if allow_download:
            remedy = "check the name, access rights and the network"
            raise ForgetkitError(f"could not be fetched ({type(error).__name__})", source, remedy) from error
        remedy = f"give a folder in the layout of {layout}, or permit the download (model.allow_download=true)"
        raise ForgetkitError("no such folder, and not in the local Hub cache", source, remedy) from error
    return Path(found)


def find_file(folder: Path, stem: str) -> Path | None:
    """The file `stem` with one of the known suffixes, or as the Hub names its parquet files; None without.

    The Hub's own naming comes first: where a snapshot has both, its data set card names the parquet file.
    """
    place = folder / stem
    shards = sorted(place.parent.glob(f"{place.name}-*-of-*.parquet")) if place.parent.is_dir() else []
    if len(shards) > 1:
        raise ForgetkitError(f"{len(shards)} parquet files for {stem!r}", str(folder), "join them into one file")
    if shards:
        return shards[0]
    return next((path for path in (place.parent / (place.name + end) for end in _SUFFIXES) if path.is_file()), None)


def missing_file(folder: Path, expected: str, layout: str, keys: str) -> ForgetkitError:
    """The error for a data folder without a file: which one, in which layout."""
    return ForgetkitError(
        f"no file {expected}, which the layout of {layout} has", str(folder), f"put it there; its records have {keys}"
    )


def read_rows(path: Path) -> Iterator[Row]:
    """The records of a JSON Lines, JSON array or parquet file, each with its line (parquet: row).

    Raises ForgetkitError: cannot be read, not UTF-8, malformed (with file and line), no records at all.
    """
    rows = _parquet(path) if path.suffix == ".parquet" else _json(path)
    count = 0
    for row in rows:
        count += 1
        yield row
    if not count:
        raise ForgetkitError("holds no records", str(path), "check that the file is complete")


def _json(path: Path) -> Iterator[Row]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ForgetkitError(f"cannot be read ({error.strerror})", str(path)) from error
    except UnicodeDecodeError as error:
        raise ForgetkitError(f"not UTF-8 at byte {error.start}", str(path), "save it as UTF-8") from error
    if text.lstrip().startswith("["):
        yield from _array(text, path)
        return
    for number, line in enumerate(text.split("\n"), 1):  # splitlines would also cut at U+2028 inside a string
        if line.strip():
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                remedy = "put one JSON object on each line, or one JSON array into the file"
                raise ForgetkitError("not valid JSON", f"{path}:{number}", remedy) from error
            yield Row(value, f"{path}:{number}")


def _array(text: str, path: Path) -> Iterator[Row]:
    """Elements of a JSON array one by one: `json.loads` of the whole would forget on which line each one was."""
    decoder, line, counted = json.JSONDecoder(), 1, 0
    at = _after_space(text, text.index("[") + 1)
    more = text[at : at + 1] != "]"
    while more:
        line, counted = line + text.count("\n", counted, at), at
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            raise _broken(text, path, getattr(error, "pos", at)) from error
        yield Row(value, f"{path}:{line}")
        at = _after_space(text, at)
        more = text[at : at + 1] == ","
        at = _after_space(text, at + 1) if more else at
    if text[at:].strip() != "]":
        raise _broken(text, path, at)


def _after_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at


def _broken(text: str, path: Path, at: int) -> ForgetkitError:
    where = f"{path}:{text.count(chr(10), 0, at) + 1}"
    return ForgetkitError("not valid JSON", where, "check that the file is complete")


def _parquet(path: Path) -> Iterator[Row]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        remedy = f"{INSTALL}, or save the records as JSON Lines"
        raise ForgetkitError("parquet files need pyarrow, which is not installed", str(path), remedy) from error
    try:
        values = pyarrow.parquet.read_table(path).to_pylist()
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise ForgetkitError("not a readable parquet file", str(path), "copy or download it again") from error
    for number, value in enumerate(values, 1):
        yield Row(value, f"{path}:{number}")


def _known(name: str, choices: Sequence[str], what: str) -> None:
    if name not in choices:
        remedy = suggest(name, choices) or f"use one of {', '.join(choices)}"
        raise ForgetkitError(f"unknown {what} {name!r}", "evaluate", remedy)
