"""From the target text to a proposed dictionary: find expressions, weigh them, give each a counterpart."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forgetkit.anchors import llm
from forgetkit.anchors.counterparts import choose_counterparts
from forgetkit.anchors.dictionary import Anchor, Dictionary
from forgetkit.anchors.extract import Candidate, extract
from forgetkit.settings import AnchorSettings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel

    from forgetkit.corpus.blocks import BlockedCorpus

_LOG = logging.getLogger("forgetkit")
_SIGNAL_BLOCKS = 256  # blocks in which the models are compared: two forward passes each
_AROUND = 60  # characters of context on either side


def build_dictionary(
    target: BlockedCorpus,
    retain: BlockedCorpus | None,
    tokenizer: Any,
    settings: AnchorSettings,
    *,
    baseline: PreTrainedModel | None = None,
    reinforced: PreTrainedModel | None = None,
    work: Path,
    seed: int,
) -> Dictionary:
    """The proposed dictionary, best score first; or the ready one that `settings.dictionary` names.

    With both models (and `settings.model_signal`) reinforcement's gain weighs the candidates and adds terms
    of its own; the baseline (with `settings.rank_counterparts`) chooses among counterparts. `work` keeps the
    replies of a language model, if one is asked. Deterministic for a seed.

    Raises:
        ForgetkitError: from the dictionary file or the language model's endpoint.
    """
    if settings.dictionary is not None:
        return Dictionary.load(settings.dictionary)
    texts = [document.text for document in target.documents]
    signal_on = settings.model_signal and baseline is not None and reinforced is not None
    candidates = extract(
        texts,
        [document.text for document in retain.documents] if retain else (),
        min_count=settings.min_count,
        # the model's signal may lift what statistics alone would not pass
        min_score=settings.min_score / 2 if signal_on else settings.min_score,
        max_terms=2 * settings.max_terms,
    )
    sources = dict.fromkeys((c.term for c in candidates), "statistics")
    if signal_on:
        assert baseline is not None and reinforced is not None
        candidates = _with_signal(candidates, target, settings, baseline, reinforced)
    proposals = llm.propose(texts, settings.llm, work, min_count=settings.min_count) if settings.llm.base_url else []
    have = {c.term.casefold() for c in candidates}
    added = [p.candidate for p in proposals if p.candidate.term.casefold() not in have]
    candidates = sorted([*candidates, *added], key=lambda c: (-c.score, c.term))[: settings.max_terms]
    sources |= {c.term: "model" for c in candidates if c.term not in sources}
    sources |= {c.term: "llm" for c in added}
    _LOG.info("anchors: %d terms, %d of them proposed by a language model alone", len(candidates), len(added))
    chosen = choose_counterparts(
        candidates,
        texts,
        seed=seed,
        rank=_ranker(baseline, tokenizer) if settings.rank_counterparts and baseline is not None else None,
        kinds={p.candidate.term: p.kind for p in proposals if p.kind != "other"},
        suggested={p.candidate.term: p.counterpart for p in proposals},
    )
    return Dictionary(tuple(_anchor(c, chosen, sources, texts, settings.contexts) for c in candidates))


def _ranker(baseline: PreTrainedModel, tokenizer: Any) -> Any:
    from forgetkit.anchors.naturalness import rank_by_naturalness

    return partial(rank_by_naturalness, baseline, tokenizer)


def _with_signal(
    candidates: list[Candidate],
    target: BlockedCorpus,
    settings: AnchorSettings,
    baseline: PreTrainedModel,
    reinforced: PreTrainedModel,
) -> list[Candidate]:
    from forgetkit.anchors import signal

    gains = signal.token_gains(baseline, reinforced, target, most_blocks=_SIGNAL_BLOCKS)
    weighed = signal.combine(candidates, signal.mean_gains(candidates, gains, target))
    kept = [c for c in weighed if c.score >= settings.min_score]
    more = signal.terms_by_gain(target, gains, candidates, min_count=settings.min_count)
    return [*kept, *(c for c in more if c.score >= settings.min_score)]


def _anchor(
    candidate: Candidate,
    chosen: dict[str, tuple[Any, str]],
    sources: dict[str, str],
    texts: Sequence[str],
    contexts: int,
) -> Anchor:
    kind, counterpart = chosen[candidate.term]
    n = len(candidate.spans)
    picked = [candidate.spans[i * n // contexts] for i in range(contexts)] if n > contexts else candidate.spans
    shown = (" ".join(texts[d][max(0, a - _AROUND) : b + _AROUND].split()) for d, a, b in picked)
    return Anchor.model_validate(
        {
            "term": candidate.term,
            "kind": kind,
            "counterpart": counterpart,
            "count": candidate.count,
            "contexts": tuple(shown),
            "score": candidate.score,
            "source": sources[candidate.term],
        }
    )
