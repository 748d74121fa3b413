"""The corpus stage: read, clean, find copies, cut into blocks of tokens.

`build` makes the artifact, `load` reads it. The parts: `readers` and `formats` (files -> texts), `decode`,
`archives`, `clean`, `duplicates`, `tokenise`, `blocks`, and `inspect` (what a person looks at first).
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from forgetkit.core.errors import ForgetkitError
from forgetkit.corpus import duplicates
from forgetkit.corpus.blocks import Block, BlockedCorpus, block_documents
from forgetkit.corpus.readers import Document, read, read_paths
from forgetkit.settings import CorpusSettings

__all__ = [
    "Block",
    "BlockedCorpus",
    "Document",
    "block_documents",
    "build",
    "load",
    "read_paths",
    "summarise",
]

MIN_TOKENS = 8
"""A target without a block of so many tokens has nothing to unlearn from."""

logger = logging.getLogger("forgetkit")


def build(
    target: Iterable[Path | str],
    retain: Iterable[Path | str],
    tokenizer: Any,
    settings: CorpusSettings,
    out: Path,
) -> dict[str, Any]:
    """Write `out`/target, `out`/retain (if there is retain text) and `out`/summary.json; return the summary.

    Summary: for 'target' and 'retain' (or None) documents, characters, tokens, blocks, encodings and a list
    of the documents; 'duplicates' as `duplicates.report` gives them; 'warnings', the most serious first.
    Raises `ForgetkitError` for unreadable input, and for a target without a block of 8 tokens.
    """
    out.mkdir(parents=True, exist_ok=True)
    targets, retains, found, warnings = gather(target, retain, settings)
    parts = {"target": targets, "retain": retains}
    summary: dict[str, Any] = {"block_tokens": settings.block_tokens, "target": None, "retain": None}
    for name, documents in parts.items():
        if not documents:
            continue
        corpus = _blocks(documents, tokenizer, settings.block_tokens, warnings)
        if name == "target" and not any(end - start >= MIN_TOKENS for _, start, end in corpus.bounds.tolist()):
            raise ForgetkitError(
                f"the target has no stretch of {MIN_TOKENS} tokens",
                targets[0].name,
                "give more text to unlearn",
            )
        corpus.save(out / name)
        summary[name] = summarise(corpus.documents, corpus)
    summary |= {"duplicates": found, "warnings": warnings}
    text = json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False)
    (out / "summary.json").write_text(text + "\n", encoding="utf-8")
    return summary


def load(folder: Path) -> tuple[BlockedCorpus, BlockedCorpus | None]:
    """(target, retain or None) as `build` wrote them. Raises `ForgetkitError` for damaged files."""
    retain = folder / "retain"
    return BlockedCorpus.load(folder / "target"), BlockedCorpus.load(retain) if retain.is_dir() else None


def gather(
    target: Iterable[Path | str], retain: Iterable[Path | str], settings: CorpusSettings
) -> tuple[list[Document], list[Document], dict[str, Any], list[str]]:
    """Target and retain documents (exact copies dropped if settings say so), copies found, and warnings."""
    targets = read(target, settings)
    retain = list(retain)
    retains = read(retain, settings) if retain else None
    retain_documents = retains.documents if retains else []
    found = duplicates.report(targets.documents, retain_documents, settings.near_duplicate)
    warnings = _overlap_warnings(found["target_in_retain"])
    for warning in warnings:
        logger.warning(warning)
    for reading in (targets, retains):
        if reading:
            warnings += [*reading.warnings, *(w for document in reading.documents for w in document.warnings)]
    kept = targets.documents
    if settings.drop_duplicates:
        kept, retain_documents = _without_copies(kept), _without_copies(retain_documents)
    return kept, retain_documents, found, warnings


def _without_copies(documents: Sequence[Document]) -> list[Document]:
    copies = duplicates.exact_copies(documents)
    return [document for index, document in enumerate(documents) if index not in copies]


def _overlap_warnings(overlap: dict[str, Any]) -> list[str]:
    """What stands in both the target and the retain texts works against itself; said once per document."""
    loud = "TARGET TEXT IS ALSO RETAIN TEXT:"
    out = [f"{loud} {pair['document']} is the same text as {pair['same_as']}" for pair in overlap["exact"]]
    for pair in overlap["near"]:
        percent = f"{100 * pair['similarity']:.0f} %"
        out += [f"{loud} {pair['document']} is {percent} similar to {pair['near']}"]
    if not out and overlap["paragraph_share"] > 0:
        out.append(f"{100 * overlap['paragraph_share']:.1f} % of the target's paragraphs are in the retain text too")
    return out


def _blocks(documents: Sequence[Document], tokenizer: Any, block_tokens: int, warnings: list[str]) -> BlockedCorpus:
    corpus = block_documents(documents, tokenizer, block_tokens)
    counts = _tokens_per_document(corpus)
    if all(count >= 2 for count in counts):
        return corpus
    short = [document for document, count in zip(documents, counts, strict=True) if count < 2]
    warnings += [f"{document.id}: fewer than two tokens, left out" for document in short]
    kept = [document for document, count in zip(documents, counts, strict=True) if count >= 2]
    return block_documents(kept, tokenizer, block_tokens)


def _tokens_per_document(corpus: BlockedCorpus) -> list[int]:
    counts = Counter[int]()
    for document, start, end in corpus.bounds.tolist():
        counts[document] += end - start
    return [counts[index] for index in range(len(corpus.documents))]


def summarise(documents: Sequence[Document], corpus: BlockedCorpus | None = None) -> dict[str, Any]:
    """Counts over documents, ready for JSON; of tokens and blocks too where there is a `corpus` of them."""
    tokens = _tokens_per_document(corpus) if corpus is not None else [None] * len(documents)
    return {
        "documents": len(documents),
        "characters": sum(len(document.text) for document in documents),
        "words": sum(len(document.text.split()) for document in documents),
        "tokens": None if corpus is None else corpus.n_tokens,
        "blocks": None if corpus is None else len(corpus),
        "encodings": dict(sorted(Counter(document.encoding for document in documents).items())),
        "list": [
            {"id": d.id, "name": d.name, "characters": len(d.text), "tokens": count, "sha256": d.sha256}
            for d, count in zip(documents, tokens, strict=True)
        ],
    }
