"""`forgetkit evaluate`: measure any model against any text, without a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from forgetkit.anchors.build import build_dictionary
from forgetkit.anchors.dictionary import Dictionary
from forgetkit.core.models import load_tokenizer
from forgetkit.core.provenance import pin_threads, seed_everything
from forgetkit.corpus.blocks import block_documents
from forgetkit.corpus.readers import read_paths
from forgetkit.evaluate.run import evaluate
from forgetkit.pipeline import evaluation_texts
from forgetkit.settings import Settings


def measure(
    model: str,
    baseline: str | None,
    target: Sequence[Path],
    retain: Sequence[Path],
    settings: Settings,
    out: Path,
) -> dict[str, Any]:
    """Evaluate `model` (role 'unlearned') beside `baseline` and `settings.evaluate.reference`; write `out`.

    All retain text is measured: nothing tells which of it a foreign model was trained on. Anchors come from
    `settings.evaluate.anchors`, or from the target's statistics alone.

    Raises:
        ForgetkitError: a model or text that cannot be read, tokenizers that differ.
    """
    pin_threads(settings.threads)
    seed_everything(settings.seed)
    tokenizer = load_tokenizer(model, settings.model)
    blocks = settings.corpus.block_tokens
    corpus = block_documents(read_paths(target, settings.corpus), tokenizer, blocks)
    if settings.evaluate.anchors:
        dictionary = Dictionary.load(settings.evaluate.anchors)
    else:
        statistics_only = settings.anchors.model_copy(update={"model_signal": False, "rank_counterparts": False})
        dictionary = build_dictionary(corpus, None, tokenizer, statistics_only, work=out / "work", seed=settings.seed)
    texts = evaluation_texts(settings, tokenizer, None)
    if retain:
        texts["retain"] = block_documents(read_paths(retain, settings.corpus), tokenizer, blocks)
    roles: dict[str, str | Path] = {"unlearned": model}
    if baseline:
        roles["baseline"] = baseline
    if settings.evaluate.reference:
        roles["reference"] = settings.evaluate.reference
    return evaluate(
        roles,
        corpus,
        dictionary,
        texts,
        tokenizer,
        settings.evaluate,
        settings.model,
        out,
        settings.seed,
        work=out / "work",
    )
