"""`forgetkit evaluate`: measure any model against any text, without a run, and make its page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from forgetkit.anchors.build import build_dictionary
from forgetkit.anchors.dictionary import Dictionary
from forgetkit.core.errors import ForgetkitError
from forgetkit.core.models import load_tokenizer
from forgetkit.core.provenance import pin_threads, seed_everything
from forgetkit.corpus.blocks import block_documents
from forgetkit.corpus.readers import read_paths
from forgetkit.evaluate.data import data_texts, load_data
from forgetkit.evaluate.probes import load_probes
from forgetkit.evaluate.run import evaluate
from forgetkit.pipeline import evaluation_texts, holdout_text
from forgetkit.report import build
from forgetkit.settings import Settings


def measure(
    model: str,
    baseline: str | None,
    target: Sequence[Path],
    retain: Sequence[Path],
    settings: Settings,
    out: Path,
) -> dict[str, Any]:
    """Evaluate `model` (role 'unlearned') beside `baseline` and `settings.evaluate.reference`; write `out` and a page.

    Without a target, the data folder's is taken (MUSE's raw texts, else TOFU's forget set), and its retain and holdout
    text where none is given. All retain text is measured: nothing tells which of it a foreign model was trained on.
    Anchors come from `settings.evaluate.anchors`, or from the target's statistics alone.

    Raises:
        ForgetkitError: a model, text, probe or data file that cannot be read, no target, tokenizers that differ.
    """
    data = load_data(settings.evaluate, settings.model)
    given = data_texts(settings.evaluate, settings.model)
    if not target and not given.target:
        raise ForgetkitError(
            "no target text", "evaluate", "give --target, or a --data-dir that holds MUSE's raw texts or TOFU"
        )
    if settings.evaluate.probes is not None:
        load_probes(settings.evaluate.probes)
    pin_threads(settings.threads)
    seed_everything(settings.seed)
    tokenizer = load_tokenizer(model, settings.model)
    blocks = settings.corpus.block_tokens
    documents = read_paths(target, settings.corpus) if target else given.target
    corpus = block_documents(documents, tokenizer, blocks)
    if settings.evaluate.anchors:
        dictionary = Dictionary.load(settings.evaluate.anchors)
    else:
        statistics_only = settings.anchors.model_copy(update={"model_signal": False, "rank_counterparts": False})
        dictionary = build_dictionary(corpus, None, tokenizer, statistics_only, work=out / "work", seed=settings.seed)
    texts = evaluation_texts(settings, tokenizer, None)
    if retain or (given.retain and not target):
        kept = read_paths(retain, settings.corpus) if retain else given.retain
        texts["retain"] = block_documents(kept, tokenizer, blocks)
    holdout = holdout_text(settings, tokenizer)
    if holdout is None and given.holdout and not target:
        holdout = block_documents(given.holdout, tokenizer, blocks)
    roles: dict[str, str | Path] = {"unlearned": model}
    if baseline:
        roles["baseline"] = baseline
    if settings.evaluate.reference:
        roles["reference"] = settings.evaluate.reference
    results = evaluate(
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
        holdout=holdout,
        target_from="" if target else given.layout,
        data=data,
    )
    dictionary.save(out / "anchors.yaml")
    build(out, settings.report, out)
    return results
