"""Settings from a preset, a YAML file and ``--set section.key=value``, in this order; the last one wins.

Every mistake is one line that names the file (or ``--set``), the dotted key and what was expected.
"""

from __future__ import annotations

import math
import re
import textwrap
import types
import typing
from collections.abc import Hashable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from forgetkit.core.errors import ForgetkitError, suggest
from forgetkit.settings import Settings

PRESETS: Mapping[str, str | None] = types.MappingProxyType({"default": None, "paper": "paper.yaml"})
"""Preset name -> file in `forgetkit.presets`; None: the settings' own defaults."""

_MAX_BYTES = 1_000_000


class _Loader(yaml.SafeLoader):
    """Safe YAML; ``3e-6`` is a number, a key given twice is an error, and there are no aliases to expand."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.current_event.start_mark if self.current_event else None
            raise yaml.constructor.ConstructorError(None, None, "aliases are not used here", mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} is given twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes whatever text `_Loader` would read as something else."""


for _side in (_Loader, _Dumper):
    _side.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+"), list("-+.0123456789")
    )


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ForgetkitError(f"not readable as YAML: {error.problem}", where + line) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        # ValueError: an implausible date; RecursionError: nesting no settings file has
        raise ForgetkitError("not readable as YAML", where) from error


def load_settings(config: Path | None = None, overrides: Sequence[str] = (), preset: str | None = None) -> Settings:
    """The settings of a run: preset, then the file, then each ``section.key=value``.

    Raises ForgetkitError (one line) for an unknown preset or key, a wrong type or value, or unreadable YAML.
    """
    merged: dict[str, Any] = {}
    origin: dict[str, str] = {}
    name = preset or "default"
    if name not in PRESETS:
        remedy = suggest(name, PRESETS) or f"known presets: {', '.join(sorted(PRESETS))}"
        raise ForgetkitError("unknown preset", name, remedy)
    if (file := PRESETS[name]) is not None:
        text = resources.files("forgetkit").joinpath("presets", file).read_text(encoding="utf-8")
        _merge(merged, _mapping(text, file), file, origin)
    if config is not None:
        _merge(merged, _mapping(_read(config), str(config)), str(config), origin)
    for item in overrides:
        _merge(merged, _override(item), "--set", origin)
    return _validated(merged, origin)


def settings_from(values: Mapping[str, Any]) -> Settings:
    """Settings from nested keys, with the same checks and messages as a file. Raises ForgetkitError."""
    merged: dict[str, Any] = {}
    origin: dict[str, str] = {}
    _merge(merged, dict(values), "settings", origin)
    return _validated(merged, origin)


def _validated(merged: dict[str, Any], origin: Mapping[str, str]) -> Settings:
    _check_values(Settings, merged, (), origin)
    try:
        return Settings.model_validate(merged)
    except ValidationError as error:
        raise _explain(error, origin) from error


def _read(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ForgetkitError(f"cannot be read ({error.strerror})", str(path)) from error
    if len(data) > _MAX_BYTES:
        raise ForgetkitError("is too large for a settings file", str(path))
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ForgetkitError(f"is not UTF-8 (byte {error.start})", str(path)) from error


def _mapping(text: str, where: str) -> dict[str, Any]:
    value = _parse(text, where)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ForgetkitError("expected sections with 'key: value' lines", where)
    return value


def _override(item: str) -> dict[str, Any]:
    """``"a.b=c"`` as ``{"a": {"b": c}}``; text settings take the value as typed, without YAML's guesses."""
    key, sign, raw = item.partition("=")
    key = key.strip()
    if not sign or not key:
        raise ForgetkitError(f"expected section.key=value, got {item!r}", "--set")
    field = _field(key.split("."))
    wants_text = field is not None and not {str, Path}.isdisjoint(_alternatives(field.annotation))
    try:
        value = _parse(raw, f"--set: {key}")
    except ForgetkitError:
        if not wants_text:
            raise
        value = raw
    if wants_text and not isinstance(value, str) and value is not None:
        value = raw
    for part in reversed(key.split(".")):
        value = {part: value}
    return dict(value)


def _merge(into: dict[str, Any], new: Mapping[Any, Any], where: str, origin: dict[str, str], prefix: str = "") -> None:
    """Deep merge; ``origin`` remembers for each dotted key who gave it last."""
    for key, value in new.items():
        dotted = f"{prefix}{key}"
        if not isinstance(key, str):
            raise ForgetkitError(f"{dotted}: a key must be text", where)
        origin[dotted] = where
        if isinstance(value, dict):
            below = into.setdefault(key, {})
            if not isinstance(below, dict):
                below = into[key] = {}
            _merge(below, value, where, origin, f"{dotted}.")
        else:
            into[key] = value


# --- the settings classes, walked ----------------------------------------------------------------------


def _section(annotation: Any) -> type[BaseModel] | None:
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return typing.get_args(annotation)
    return (annotation,)


def _field(parts: Sequence[str]) -> FieldInfo | None:
    model: type[BaseModel] | None = Settings
    field: FieldInfo | None = None
    for part in parts:
        if model is None or part not in model.model_fields:
            return None
        field = model.model_fields[part]
        model = _section(field.annotation)
    return field


def _dotted_names(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield prefix + name
        section = _section(field.annotation)
        if section is not None:
            yield from _dotted_names(section, f"{prefix}{name}.")


def _check_values(
    model: type[BaseModel], values: Mapping[str, Any], path: tuple[str, ...], origin: Mapping[str, str]
) -> None:
    """Refuse what pydantic would let pass: a section left empty, yes/no for a number, infinite numbers."""
    for name, value in values.items():
        field = model.model_fields.get(name)
        if field is None:
            continue  # reported with a suggestion by pydantic's own pass
        here = (*path, name)
        dotted = ".".join(here)
        section = _section(field.annotation)
        if section is not None:
            if not isinstance(value, dict):
                raise ForgetkitError(f"{dotted}: expected a section with settings below it", origin[dotted])
            _check_values(section, value, here, origin)
            continue
        kinds = _alternatives(field.annotation)
        if isinstance(value, bool) and bool not in kinds and not {int, float}.isdisjoint(kinds):
            raise ForgetkitError(f"{dotted}: expected a number, got {_show(value)}", origin[dotted])
        number = value
        if isinstance(value, str) and float in kinds:
            try:
                number = float(value)
            except ValueError:
                continue
        if isinstance(number, float) and not math.isfinite(number):
            raise ForgetkitError(f"{dotted}: expected a finite number, got {_show(value)}", origin[dotted])


def _explain(error: ValidationError, origin: Mapping[str, str]) -> ForgetkitError:
    """The first of pydantic's findings as one line, and how many more there are."""
    problems = error.errors(include_url=False)
    first = problems[0]
    loc = [str(part) for part in first["loc"]]
    dotted = ".".join(loc)
    where = next((origin[k] for k in (".".join(loc[:n]) for n in range(len(loc), 0, -1)) if k in origin), "settings")
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    if first["type"] == "extra_forbidden":
        return ForgetkitError(f"{dotted}: unknown setting{more}", where, _suggest_key(loc))
    field = next((f for n in range(len(loc), 0, -1) if (f := _field(loc[:n])) is not None), None)
    expected = first["msg"].removeprefix("Input should be ").removeprefix("a valid ")
    hint = ""
    if field is not None and typing.get_origin(field.annotation) is Literal:
        choices = [str(choice) for choice in typing.get_args(field.annotation)]
        expected, hint = "one of " + ", ".join(choices), suggest(str(first["input"]), choices)
    return ForgetkitError(f"{dotted}: expected {expected}, got {_show(first['input'])}{more}", where, hint)


def _suggest_key(loc: Sequence[str]) -> str:
    """The nearest setting beside the unknown one; failing that, the settings of that name elsewhere."""
    names = list(_dotted_names(Settings))
    prefix = "".join(f"{part}." for part in loc[:-1])
    beside = {n[len(prefix) :] for n in names if n.startswith(prefix) and "." not in n[len(prefix) :]}
    hint = suggest(loc[-1], sorted(beside))
    if hint:
        return f"did you mean {prefix}{hint.removeprefix('did you mean ')}"
    elsewhere = suggest(loc[-1], sorted({n.rpartition(".")[2] for n in names})).removeprefix("did you mean ")
    found = [n for n in names if elsewhere and n.rpartition(".")[2] == elsewhere]
    return f"did you mean {' or '.join(found[:3])}" if found else suggest(".".join(loc), names)


def _show(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


# --- writing -------------------------------------------------------------------------------------------


def dump_settings(settings: Settings) -> str:
    """All settings as YAML, each meaning as a comment above its key; `load_settings` reads it back."""
    return "\n".join(_lines(settings, 0)) + "\n"


def _lines(section: BaseModel, depth: int) -> Iterator[str]:
    indent = "  " * depth
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            if depth == 0:
                yield ""
            yield from _comment(field.description or type(value).__doc__ or "", indent)
            yield f"{indent}{name}:"
            yield from _lines(value, depth + 1)
            continue
        description = field.description or ""
        if typing.get_origin(field.annotation) is Literal:
            description += f" [{' | '.join(str(choice) for choice in typing.get_args(field.annotation))}]"
        yield from _comment(description, indent)
        yield f"{indent}{name}: {_scalar(value)}"


def _comment(text: str, indent: str) -> Iterator[str]:
    yield from textwrap.wrap(" ".join(text.split()), 100, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")


def _scalar(value: Any) -> str:
    if isinstance(value, tuple):
        value = [str(item) if isinstance(item, Path) else item for item in value]
    if isinstance(value, Path):
        value = str(value)
    readable = not isinstance(value, str) or value.isprintable()  # YAML folds bare line separators
    text: str = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, width=10**9, allow_unicode=readable)
    return text.removesuffix("\n").removesuffix("\n...")
