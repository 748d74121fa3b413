"""Everything the page shows, read from a run's folder. An absent part is named as not measured, never
guessed.

All text that enters here is cleaned (`preview.clean`): target, model and file names are untrusted. With
``redact`` nothing that quotes or names the target leaves this module.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from forgetkit.core.errors import ForgetkitError
from forgetkit.report import families, results
from forgetkit.report.families import Family, UtilitySteps
from forgetkit.report.preview import PreviewBlock, clean, read_blocks
from forgetkit.report.results import Completion, Probe, Recall, Token
from forgetkit.report.verdict import Evidence, judge
from forgetkit.settings import ReportSettings

__all__ = ["Anchor", "Collected", "Completion", "Probe", "Recall", "Token", "collect"]

PREVIEW_BLOCKS = 3
PREVIEW_ROWS = 160
"""Tokens shown per block of the labels preview."""
CONTEXT_CHARACTERS = 200
LEFT_OUT = "(left out)"
_STAGES = ("1-corpus", "2-reinforced", "3-anchors", "4-labels", "5-unlearned", "6-evaluation", "7-audit")


@dataclass(frozen=True)
class Anchor:
    """One entry of the dictionary, as shown."""

    term: str
    counterpart: str
    kind: str
    count: int
    context: str = ""


@dataclass(frozen=True)
class Collected:
    """The page's facts; immutable, plain, and already clean."""

    title: str
    redacted: bool
    evidence: Evidence
    health: dict[str, dict[str, float | None]] = field(default_factory=dict)
    probes: tuple[Probe, ...] = ()
    recall: tuple[Recall, ...] = ()
    completions: tuple[Completion, ...] = ()
    preview: tuple[PreviewBlock, ...] = ()
    anchors: tuple[Anchor, ...] = ()
    documents: tuple[dict[str, str], ...] = ()
    stages: tuple[dict[str, str], ...] = ()
    cost: str = ""
    record: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = ()
    places: str = ""
    not_measured: tuple[str, ...] = ()
    evaluation_only: bool = False
    families: tuple[Family, ...] = ()
    measured_families: tuple[str, ...] = ()
    statistics: str = ""
    utility: UtilitySteps | None = None


def collect(run: Path, settings: ReportSettings) -> Collected:
    """Read `run`, the folder of a run or of an evaluation alone.

    Raises ForgetkitError if it is no folder, or if a file that is there cannot be parsed.
    """
    if not run.is_dir():
        raise ForgetkitError("no such run folder", str(run), "give the folder of a finished run")
    hide = settings.redact
    summary = results.mapping(_json(run / "1-corpus" / "summary.json"))
    alone = (run / "results.json").is_file()
    home = run if alone else run / "6-evaluation"
    measured = results.mapping(_json(home / "results.json"))
    details = results.mapping(_json(home / "details.json"))
    target = results.mapping(summary.get("target"))
    documents = [results.mapping(d) for d in results.items(target.get("list"))]
    whole = _settings(measured) if alone else _yaml(run / "settings.yaml")
    method = results.mapping(results.mapping(whole).get("finetune")).get("method")
    log = results.mapping(_last_log(run / "5-unlearned" / "log.jsonl"))
    last_step = results.integer(log.get("step"))
    evidence = results.evidence(
        measured,
        documents=results.integer(target.get("documents")),
        tokens=results.integer(target.get("tokens")),
        method=clean(str(method)) if isinstance(method, str) else "",
        audited=(run / "7-audit" / "MANIFEST.json").is_file(),
        last_step=last_step,
    )
    return Collected(
        title=clean(settings.title),
        redacted=hide,
        evidence=evidence,
        health=results.health(measured),
        probes=() if hide else results.probes(details),
        recall=() if hide else results.recall(details),
        completions=() if hide else results.completions(measured),
        preview=() if hide else _preview(run / "4-labels" / "preview.json"),
        anchors=_anchors(run / "anchors.yaml" if alone else run / "3-anchors" / "anchors.yaml", hide),
        documents=tuple(_document(d, i, hide) for i, d in enumerate(documents)),
        stages=tuple(_stages(run)),
        cost=_measuring(measured) if alone else _cost(run),
        record=_record(run, whole, measured, log, hide),
        places=results.places(measured),
        not_measured=results.not_measured(measured),
        evaluation_only=alone,
        families=families.families(measured, judge(evidence).scores),
        measured_families=families.measured(measured),
        statistics=families.statistics(measured),
        utility=families.utility_steps(measured, last_step),
    )


def _settings(measured: Mapping[str, Any]) -> dict[str, Any]:
    """Those that an evaluation alone knows."""
    return {"seed": measured.get("seed"), "evaluate": measured.get("settings"), "model": measured.get("model_settings")}


def _json(path: Path) -> object:
    """The parsed file; None if it is absent."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, OSError) as error:
        raise ForgetkitError(
            f"cannot be read as JSON ({type(error).__name__})", str(path), "run the stage again"
        ) from error


def _yaml(path: Path) -> object:
    try:
        text = path.read_text(encoding="utf-8")
        return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except FileNotFoundError:
        return None
    except (yaml.YAMLError, ValueError, OSError) as error:
        raise ForgetkitError(f"cannot be read as YAML ({type(error).__name__})", str(path), "mend the file") from error


def _document(item: Mapping[str, Any], index: int, hide: bool) -> dict[str, str]:
    tokens = results.integer(item.get("tokens"))
    name = f"document {index + 1}" if hide else _basename(str(item.get("name") or item.get("id") or index + 1))
    return {
        "name": name,
        "tokens": "" if tokens is None else f"{tokens:,}",
        "sha256": LEFT_OUT if hide else clean(str(item.get("sha256") or ""))[:16],
    }


def _basename(text: str) -> str:
    """A path's last part: where things lie on somebody's machine is nobody's business."""
    return clean(text).replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]


def _preview(path: Path) -> tuple[PreviewBlock, ...]:
    return tuple(
        PreviewBlock(_basename(b.document), b.block, b.rows[:PREVIEW_ROWS])
        for b in read_blocks(_json(path))[:PREVIEW_BLOCKS]
    )


def _anchors(path: Path, hide: bool) -> tuple[Anchor, ...]:
    data = _yaml(path)
    entries = results.items(results.mapping(data).get("anchors")) if isinstance(data, Mapping) else results.items(data)
    out = []
    for entry in map(results.mapping, entries):
        if not isinstance(entry.get("term"), str) or entry.get("keep") is False:
            continue
        contexts = [c for c in results.items(entry.get("contexts")) if isinstance(c, str)]
        out.append(
            Anchor(
                term="" if hide else clean(entry["term"]),
                counterpart="" if hide else clean(str(entry.get("counterpart") or "")),
                kind=clean(str(entry.get("kind") or "other")),
                count=results.integer(entry.get("count")) or 0,
                context="" if hide or not contexts else clean(contexts[0])[:CONTEXT_CHARACTERS],
            )
        )
    return tuple(out)


def _manifest(run: Path, stage: str) -> Mapping[str, Any]:
    return results.mapping(_json(run / stage / "MANIFEST.json"))


def _stages(run: Path) -> Iterator[dict[str, str]]:
    for stage in _STAGES:
        manifest = _manifest(run, stage)
        if not manifest:
            continue
        seconds = manifest.get("seconds", results.mapping(manifest.get("extra")).get("seconds"))
        known = results.real(seconds) is not None
        yield {
            "name": stage,
            "seconds": f"{seconds:,.1f}" if known else "",
            "fingerprint": clean(str(manifest.get("fingerprint") or ""))[:16],
        }


def _cost(run: Path) -> str:
    """One sentence: how long all stages took, on what; empty if no stage tells."""
    found = [_manifest(run, stage) for stage in _STAGES]
    seconds = [s for m in found if (s := results.real(m.get("seconds"))) is not None]
    if not seconds:
        return ""
    devices = sorted({clean(str(m["device"])) for m in found if m.get("device")})
    threads = sorted({t for m in found if (t := results.integer(m.get("threads"))) is not None})
    on = f" on {', '.join(devices)}" if devices else ""
    used = f", {threads[-1]} thread{'' if threads[-1] == 1 else 's'}" if threads else ""
    return f"All stages together took {_time(sum(seconds))}{on}{used}."


def _measuring(measured: Mapping[str, Any]) -> str:
    """The same of an evaluation alone."""
    models = map(results.mapping, results.mapping(measured.get("models")).values())
    seconds = [s for model in models if (s := results.real(model.get("seconds"))) is not None]
    return f"The measurements took {_time(sum(seconds))} when they were made." if seconds else ""


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _record(
    run: Path, settings: object, measured: Mapping[str, Any], log: Mapping[str, Any], hide: bool
) -> tuple[tuple[str, tuple[tuple[str, str], ...]], ...]:
    """Sections (name, key-value pairs) of what was done: models, settings, versions."""
    versions = {
        name: version for stage in _STAGES for name, version in _flat(_manifest(run, stage).get("versions"), hide)
    } | dict(_flat(measured.get("versions"), hide))
    return (
        ("Models", tuple(_flat(results.models(measured), hide))),
        ("Last step of the fine-tune", tuple(_flat(log, hide))),
        ("Settings", tuple(_flat(settings, hide))),
        ("Versions", tuple(sorted(versions.items()))),
    )


def _last_log(path: Path) -> object:
    """The last whole line of the training log; None if there is none (a torn last line is left out)."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return None
    for line in reversed(lines):
        try:
            return json.loads(line)
        except ValueError:
            continue
    return None


def _flat(value: object, hide: bool, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested mappings as dotted keys with values as text; paths lose their folders, or all of them under
    `hide`."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, hide, f"{prefix}.{clean(str(key))}" if prefix else clean(str(key)))
    elif value is not None and prefix:
        text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else _text(value)
        if isinstance(value, str | list | tuple) and ("/" in text or "\\" in text):
            text = LEFT_OUT if hide else ", ".join(_basename(part) for part in text.split(", "))
        yield prefix, clean(text)[:300]


def _text(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
