"""What a person should see before anything runs: the texts as read, and as the model will get them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from forgetkit.corpus import gather, summarise
from forgetkit.corpus.blocks import block_documents
from forgetkit.corpus.clean import printable
from forgetkit.settings import CorpusSettings

SHOWN = 3
"""Blocks shown."""
_LISTED = 40


def inspect(
    paths: Iterable[Path | str],
    settings: CorpusSettings,
    tokenizer: Any | None = None,
    retain: Iterable[Path | str] = (),
) -> dict[str, Any]:
    """Read `paths` as `build` would and tell what is there, ready for JSON; nothing is written.

    Keys: 'target', 'retain' (see `summarise`), 'duplicates', 'warnings', 'block_tokens', and 'first', the
    first three blocks: decoded from their ids with a tokenizer, else as many words as a block has tokens.
    Raises `ForgetkitError` for unreadable input.
    """
    targets, retains, found, warnings = gather(paths, retain, settings)
    if tokenizer is None:
        target = summarise(targets)
        words = (word for document in targets for word in document.text.split(" "))
        first = [" ".join(itertools.islice(words, settings.block_tokens)) for _ in range(SHOWN)]
        first = [block for block in first if block]
    else:
        corpus = block_documents(targets, tokenizer, settings.block_tokens)
        target = summarise(targets, corpus)
        first = [tokenizer.decode(corpus[index].ids.tolist()) for index in range(min(SHOWN, len(corpus)))]
    retained = None
    if retains:
        retained = summarise(retains, block_documents(retains, tokenizer, settings.block_tokens) if tokenizer else None)
    return {
        "block_tokens": settings.block_tokens,
        "target": target,
        "retain": retained,
        "duplicates": found,
        "warnings": warnings,
        "first": first,
    }


def render(report: dict[str, Any]) -> str:
    """The report of `inspect` as text for a terminal; nothing in it can steer the terminal."""
    lines: list[str] = []
    for name in ("target", "retain"):
        if part := report[name]:
            lines += _part(name, part)
    lines += _duplicates(report["duplicates"])
    lines += [f"warning: {_line(warning)}" for warning in report["warnings"]]
    kind = "words" if report["target"]["tokens"] is None else "tokens"
    for number, block in enumerate(report["first"], 1):
        lines += [
            "",
            f"--- block {number} of up to {report['block_tokens']} {kind}, as the model will see it ---",
        ]
        lines.append(printable(block))
    return "\n".join(lines) + "\n"


def _part(name: str, part: dict[str, Any]) -> list[str]:
    size = (
        f"{part['words']:,} words"
        if part["tokens"] is None
        else f"{part['tokens']:,} tokens, {part['blocks']:,} blocks"
    )
    encodings = ", ".join(f"{encoding} ({count})" for encoding, count in part["encodings"].items())
    lines = [f"{name}: {part['documents']:,} documents, {part['characters']:,} characters, {size}; {_line(encodings)}"]
    for document in part["list"][:_LISTED]:
        tokens = "" if document["tokens"] is None else f"{document['tokens']:>12,} tokens"
        lines.append(f"  {document['characters']:>12,} characters{tokens}  {_line(document['name'])}")
    if len(part["list"]) > _LISTED:
        lines.append(f"  ... and {len(part['list']) - _LISTED:,} more")
    return lines


def _duplicates(found: dict[str, Any]) -> list[str]:
    lines = []
    for name in ("target", "retain"):
        for pair in found[name]["exact"]:
            lines += [f"exact copy in {name}: {_line(pair['document'])} = {_line(pair['same_as'])}"]
        for pair in found[name]["near"]:
            likeness = f"{_line(pair['document'])} ~ {_line(pair['near'])} ({pair['similarity']:.2f})"
            lines += [f"near copy in {name}: {likeness}"]
    return lines or ["no copies within the texts"]


def _line(text: str) -> str:
    return " ".join(printable(text).split())
