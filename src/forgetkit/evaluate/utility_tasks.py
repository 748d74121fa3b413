"""The utility tasks and their local data files: what lm-eval needs of them, and what it would not complain about.

Data without network: `data_dir` holds one file per task and split, as JSON Lines, one JSON array, or parquet, with
the fields of the data set on the Hub (others are ignored):

    DIR/arc_challenge/test.jsonl    allenai/ai2_arc ARC-Challenge   question, choices {text, label}, answerKey
    DIR/arc_easy/test.jsonl         allenai/ai2_arc ARC-Easy        the same
    DIR/boolq/validation.jsonl      aps/super_glue boolq            passage, question, label 0|1
    DIR/hellaswag/validation.jsonl  Rowan/hellaswag                 activity_label, ctx_a, ctx_b, endings, label
    DIR/openbookqa/test.jsonl       allenai/openbookqa main         question_stem, choices {text, label}, answerKey
    DIR/piqa/validation.jsonl       baber/piqa                      goal, sol1, sol2, label 0|1
    DIR/winogrande/validation.jsonl allenai/winogrande winogrande_xl  sentence with _, option1, option2, answer "1"|"2"

(`test.json`, `test.parquet` and the Hub's own `test-00000-of-00001.parquet` are read too.) The prompts, the scoring
and the split are those of lm-eval's own task files, which are included, not copied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from forgetkit.core.errors import ForgetkitError, suggest
from forgetkit.evaluate.layouts import Row, find_file, missing_file, read_rows


class TaskSpec(NamedTuple):
    """yaml: the task's file in lm_eval/tasks; split: the one that lm-eval scores; check: of one local record."""

    yaml: str
    split: str
    fields: tuple[str, ...]
    check: Callable[[dict[str, Any]], str]


def _lettered(question: str) -> Callable[[dict[str, Any]], str]:
    def check(record: dict[str, Any]) -> str:
        choices = record["choices"]
        if not isinstance(choices, dict) or not {"text", "label"} <= set(choices):
            return "'choices' must be an object with the lists 'text' and 'label' (the form of the Hub data set)"
        texts, labels = choices["text"], choices["label"]
        if not _filled(texts) or not _filled(labels) or len(texts) != len(labels):
            return "'choices' needs as many texts as labels, all of them strings and none empty"
        if not isinstance(record["answerKey"], str) or record["answerKey"].strip() not in labels:
            return f"'answerKey' {record['answerKey']!r} is not among the labels"
        return _empty(record, question)

    return check


def _numbered(texts: tuple[str, ...], options: int, endings: str = "") -> Callable[[dict[str, Any]], str]:
    def check(record: dict[str, Any]) -> str:
        ends = record[endings] if endings else []
        if endings and not _filled(ends):
            return f"{endings!r} must be a list of non-empty strings"
        limit = options or len(ends)
        if str(record["label"]) not in {str(i) for i in range(limit)} or isinstance(record["label"], bool):
            return f"'label' is {record['label']!r}, not 0 to {limit - 1} (an unlabelled split?)"
        return _empty(record, *texts) if not endings else _no_strings(record, *texts)

    return check


def _blank(record: dict[str, Any]) -> str:
    if record["answer"] not in ("1", "2"):
        return f'\'answer\' is {record["answer"]!r}, not the string "1" or "2"'
    if "_" not in str(record["sentence"]):
        return "'sentence' has no _ to fill"
    return _empty(record, "sentence", "option1", "option2")


def _filled(texts: object) -> bool:
    return isinstance(texts, list) and bool(texts) and all(isinstance(text, str) and text.strip() for text in texts)


def _empty(record: dict[str, Any], *keys: str) -> str:
    return next((f"{key!r} is empty or no string" for key in keys if not _filled([record[key]])), "")


def _no_strings(record: dict[str, Any], *keys: str) -> str:
    return next((f"{key!r} is no string" for key in keys if not isinstance(record[key], str)), "")


SPECS: dict[str, TaskSpec] = {
    "arc_challenge": TaskSpec(
        "arc/arc_challenge.yaml", "test", ("question", "choices", "answerKey"), _lettered("question")
    ),
    "arc_easy": TaskSpec("arc/arc_easy.yaml", "test", ("question", "choices", "answerKey"), _lettered("question")),
    "boolq": TaskSpec(
        "super_glue/boolq/default.yaml",
        "validation",
        ("passage", "question", "label"),
        _numbered(("passage", "question"), 2),
    ),
    "hellaswag": TaskSpec(
        "hellaswag/hellaswag.yaml",
        "validation",
        ("activity_label", "ctx_a", "ctx_b", "endings", "label"),
        _numbered(("activity_label", "ctx_a", "ctx_b"), 0, "endings"),  # ctx_b is often empty, and may be
    ),
    "openbookqa": TaskSpec(
        "openbookqa/openbookqa.yaml", "test", ("question_stem", "choices", "answerKey"), _lettered("question_stem")
    ),
    "piqa": TaskSpec(
        "piqa/piqa.yaml", "validation", ("goal", "sol1", "sol2", "label"), _numbered(("goal", "sol1", "sol2"), 2)
    ),
    "winogrande": TaskSpec(
        "winogrande/default.yaml", "validation", ("sentence", "option1", "option2", "answer"), _blank
    ),
}
TASKS = tuple(SPECS)


def check_tasks(names: Iterable[str]) -> tuple[str, ...]:
    """The task names, each once, in the order of `TASKS`; raises ForgetkitError for an unknown one."""
    wanted = set()
    for name in names:
        if name not in SPECS:
            remedy = suggest(name, TASKS) or f"use one of {', '.join(TASKS)}"
            raise ForgetkitError(f"unknown utility task {name!r}", "utility", remedy)
        wanted.add(name)
    return tuple(name for name in TASKS if name in wanted)


def task_files(data_dir: Path, tasks: Iterable[str] = TASKS) -> dict[str, Path]:
    """The local file of every task; raises ForgetkitError with the first one that is missing, and its layout."""
    if not data_dir.is_dir():
        raise ForgetkitError("no such data folder", str(data_dir), "give the folder that holds TASK/SPLIT.jsonl")
    found = {}
    for name in check_tasks(tasks):
        task = SPECS[name]
        stem = f"{name}/{task.split}"
        path = find_file(data_dir, stem)
        if path is None:
            expected = f"{stem}.jsonl (or .json, .parquet)"
            raise missing_file(data_dir, expected, "the utility tasks", ", ".join(task.fields))
        found[name] = path
    return found


def read_task(name: str, path: Path) -> list[dict[str, Any]]:
    """The records of a task's local file, reduced to the fields that lm-eval needs.

    Raises ForgetkitError (file and line) for what lm-eval would score as wrong without a word, or divide by: a gold
    answer outside the options, an empty option, a missing field.
    """
    task = SPECS[name]
    return [_record(task, name, row) for row in read_rows(path)]


def _record(task: TaskSpec, name: str, row: Row) -> dict[str, Any]:
    remedy = f"records of {name} have {', '.join(task.fields)}; see forgetkit.evaluate.utility_tasks"
    if not isinstance(row.value, dict):
        raise ForgetkitError("not an object", row.where, remedy)
    missing = [field for field in task.fields if field not in row.value]
    if missing:
        raise ForgetkitError(f"no field {missing[0]!r}", row.where, remedy)
    if fault := task.check(row.value):
        raise ForgetkitError(fault, row.where, remedy)
    record = {field: row.value[field] for field in task.fields}
    if "label" in record:
        record["label"] = int(record["label"])  # as a string, lm-eval would look it up among the options' texts
    if "answerKey" in record:
        record["answerKey"] = record["answerKey"].strip()
    return record
