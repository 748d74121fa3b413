"""The data folder of an evaluation: which published layouts it holds, and the texts that they give.

One folder may hold several: the utility tasks, TOFU, MUSE and WMDP, each directly in it or in a folder of its own
name (`utility`, `tofu`, `muse`, `wmdp`). The layouts themselves are in `utility_tasks` and `layouts`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from forgetkit.core.artifacts import hash_file, hash_json
from forgetkit.core.errors import ForgetkitError, suggest
from forgetkit.corpus.readers import Document
from forgetkit.evaluate import layouts
from forgetkit.evaluate.knowledge import Choice, Question
from forgetkit.evaluate.utility import require_lm_eval
from forgetkit.evaluate.utility_tasks import SPECS, TASKS, check_tasks, read_task, task_files
from forgetkit.settings import EvaluateSettings, ModelSettings

FAMILIES: dict[str, tuple[str, ...]] = {
    "default": (),
    "paper": ("familiarity", "utility"),
    "memorization": ("memorization",),
    "privacy": ("privacy",),
    "full": ("familiarity", "memorization", "knowledge", "privacy", "utility", "tofu", "muse", "wmdp"),
}
"""What each suite adds to the measures of every evaluation."""
LAYOUTS = ("utility", "tofu", "muse", "wmdp")
_FIRST = {
    "utility": ("arc_challenge/test.jsonl", "the utility tasks", "question, choices, answerKey"),
    "tofu": ("forget10_perturbed.json", "TOFU", "question, answer, paraphrased_answer, perturbed_answer"),
    "muse": ("verbmem/forget.json", "MUSE", "prompt, gt"),
    "wmdp": ("wmdp-bio/test.parquet", "WMDP", "question, choices, answer"),
}
_HUB = {layouts.TOFU_HUB: "tofu", layouts.WMDP_HUB: "wmdp", **dict.fromkeys(layouts.MUSE_HUB.values(), "muse")}
_PATTERNS = {
    "tofu": ["*.json"],
    "muse": [f"{subset}/*.parquet" for subset in layouts.MUSE_SPLITS],
    "wmdp": [f"wmdp-{domain}/*" for domain in layouts.WMDP_DOMAINS],
}


@dataclass(frozen=True)
class Data:
    """What a data folder gives to a suite; what is None or empty is not there.

    found: the layouts. tasks: the utility tasks to measure; utility: folder of their files (None: lm-eval fetches its
    own); lm_eval: its version. digests: sha256 over the files of each layout that is read.
    """

    found: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    utility: Path | None = None
    lm_eval: str = ""
    tofu: layouts.Tofu | None = None
    muse: layouts.Muse | None = None
    wmdp: dict[str, tuple[Choice, ...]] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)


def check_suite(name: str) -> str:
    """The suite's name; raises ForgetkitError with a suggestion for an unknown one."""
    if name not in FAMILIES:
        raise ForgetkitError(
            f"unknown suite {name!r}", "--suite", suggest(name, FAMILIES) or f"use one of {', '.join(FAMILIES)}"
        )
    return name


def load_data(settings: EvaluateSettings, model_settings: ModelSettings) -> Data:
    """Everything that the suite reads from the data folder, checked before anything is measured.

    Raises ForgetkitError: unknown suite or task, no such folder, a missing or malformed file (which, and of which
    layout), an empty answer, lm-eval or pyarrow missing where they are needed.
    """
    families = FAMILIES[check_suite(settings.suite)]
    tasks = check_tasks(settings.utility_tasks) if settings.utility_tasks else TASKS
    if not families:
        return Data()
    folders = find_layouts(settings, model_settings)
    made: dict[str, Any] = {}
    read: dict[str, Iterable[Path]] = {}
    if "utility" in families:
        asked = settings.suite == "paper" or bool(settings.utility_tasks)
        if "utility" in folders or (settings.data_dir is not None and asked):
            base = folders.get("utility", Path(settings.data_dir or ""))
            files = task_files(base, tasks)
            for name, path in files.items():
                read_task(name, path)
            made |= {"tasks": tasks, "utility": base, "lm_eval": require_lm_eval()}
            read["utility"] = files.values()
        elif settings.data_dir is None and model_settings.allow_download:
            made |= {"tasks": tasks, "lm_eval": require_lm_eval()}
    if settings.suite != "paper" and "tofu" in folders:
        tofu = folders["tofu"]
        made["tofu"] = layouts.read_tofu(tofu, settings.tofu_forget)
        read["tofu"] = [found for name in layouts.TOFU_NAMES if (found := layouts.find_file(tofu, name))]
    if settings.suite != "paper" and "muse" in folders:
        made["muse"] = layouts.read_muse(folders["muse"], settings.muse_corpus)
        read["muse"] = _muse_files(folders["muse"], settings.muse_corpus)
    if "wmdp" in families and "wmdp" in folders:
        domains = _wmdp_domains(folders["wmdp"])
        made["wmdp"] = {domain: layouts.read_wmdp(folders["wmdp"], domain) for domain in domains}
        read["wmdp"] = domains.values()
    digests = {name: hash_json([[p.name, hash_file(p)] for p in paths]) for name, paths in read.items()}
    return Data(tuple(folders), digests=digests, **made)


def find_layouts(settings: EvaluateSettings, model_settings: ModelSettings) -> dict[str, Path]:
    """Layout -> its folder, for what the data folder holds; nothing without a data folder.

    Raises ForgetkitError: neither a folder nor a known data set, or a folder that holds none of the layouts.
    """
    if settings.data_dir is None:
        return {}
    if settings.data_dir in _HUB and not Path(settings.data_dir).is_dir():
        layout = _HUB[settings.data_dir]
        allowed = model_settings.allow_download
        folder = layouts.dataset_folder(settings.data_dir, layout, _PATTERNS[layout], allow_download=allowed)
        return {layout: folder}
    given = Path(settings.data_dir)
    if not given.is_dir():
        remedy = f"give a folder, or one of {', '.join(_HUB)}"
        raise ForgetkitError("no such data folder", settings.data_dir, remedy)
    found = {}
    for layout in LAYOUTS:
        for base in (given, given / layout):
            if base.is_dir() and _holds(layout, base, settings):
                found[layout] = base
                break
    if not found and settings.suite == "paper":
        raise layouts.missing_file(given, *_FIRST["utility"])
    if not found:
        several = ", ".join(f"{file} ({layout})" for file, layout, _ in _FIRST.values())
        raise ForgetkitError("holds no file of a known layout", settings.data_dir, f"expected one of {several}")
    return found


def _holds(layout: str, base: Path, settings: EvaluateSettings) -> bool:
    if layout == "utility":
        return any((base / name).is_dir() for name in SPECS)
    if layout == "tofu":
        return any(layouts.find_file(base, name) for name in layouts.TOFU_NAMES if name.startswith("forget"))
    if layout == "muse":
        return bool(_muse_files(base, settings.muse_corpus))
    return bool(_wmdp_domains(base))


def _muse_files(base: Path, corpus: str) -> list[Path]:
    places = (base, base / corpus, base / "data" / corpus)
    names = [f"{subset}/{split}" for subset, splits in layouts.MUSE_SPLITS.items() for split in splits]
    found = [next((path for place in places if (path := layouts.find_file(place, name))), None) for name in names]
    return [path for path in found if path is not None]


def _wmdp_domains(base: Path) -> dict[str, Path]:
    found = {}
    for domain in layouts.WMDP_DOMAINS:
        for stem in (f"wmdp-{domain}/test", f"{domain}_questions", f"wmdp-{domain}"):
            if domain not in found and (path := layouts.find_file(base, stem)):
                found[domain] = path
    return found


def data_digest(settings: EvaluateSettings, model_settings: ModelSettings) -> str:
    """Hash of all files that the suite reads; '' without a data folder."""
    if settings.data_dir is None:
        return ""
    return hash_json(load_data(settings, model_settings).digests)


# --- texts ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DataTexts:
    """Documents that the data folder gives: the target, text whose knowledge must stay, text that nobody read.

    layout: 'muse' or 'tofu'; '' where it gives none.
    """

    layout: str = ""
    target: tuple[Document, ...] = ()
    retain: tuple[Document, ...] = ()
    holdout: tuple[Document, ...] = ()


def data_texts(settings: EvaluateSettings, model_settings: ModelSettings) -> DataTexts:
    """MUSE's raw texts, else TOFU's questions with their answers, one document each; nothing without a data folder.

    Raises ForgetkitError as `find_layouts` and the readers of the layouts do.
    """
    folders = find_layouts(settings, model_settings)
    if "muse" in folders:
        base, corpus = folders["muse"], settings.muse_corpus
        there = {path.parent.name + "/" + path.name.split(".")[0].split("-")[0] for path in _muse_files(base, corpus)}

        def raw(split: Literal["forget", "retain1", "holdout"]) -> tuple[Document, ...]:
            if f"raw/{split}" not in there:
                return ()
            return _documents(f"muse-{split}", layouts.read_muse_texts(base, corpus, "raw", split))

        if target := raw("forget"):
            return DataTexts("muse", target, raw("retain1"), raw("holdout"))
    if "tofu" in folders:
        base, forget = folders["tofu"], settings.tofu_forget
        names = {
            "retain": f"retain{100 - int(forget.removeprefix('forget'))}",
            "holdout": forget.replace("forget", "holdout"),
        }

        def questions(name: str) -> tuple[Document, ...]:
            found = layouts.read_tofu_questions(base, name)
            return _documents(f"tofu-{name}", [question_text(settings.tofu_template, one) for one in found])

        kept = {role: questions(name) if layouts.find_file(base, name) else () for role, name in names.items()}
        return DataTexts("tofu", questions(forget), **kept)
    return DataTexts()


def question_text(template: str, one: Question) -> str:
    """A question with its answer, as a model was trained on it."""
    return f"{template.replace('{question}', one.question)} {one.answer}"


def _documents(name: str, texts: Sequence[str]) -> tuple[Document, ...]:
    return tuple(
        Document(f"{name}-{i}", f"{name}-{i}", text, hashlib.sha256(text.encode()).hexdigest(), "utf-8", ())
        for i, text in enumerate(texts)
    )
