"""Side-by-side greedy continuations of the target, with the probability of every token."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from forgetkit.core.progress import progress
from forgetkit.corpus.blocks import BlockedCorpus
from forgetkit.evaluate.forward import generate, vocabulary_size
from forgetkit.evaluate.recall import Place, document_spans

MIN_PROMPT = 8
_SENTENCE = re.compile(r"[.!?][\"'”’)]*\s+(?=[\"'“‘(]*\w)")
_ROWS = 16
TOP = 5
"""Most probable tokens kept per position."""
SHOWN = 0.02
"""Least probability of an alternative that is told in results.json: the rest would only swell the file."""


@dataclass(frozen=True)
class Prompt:
    """Tokens [first, last) of the corpus (global indices); the model continues at `last`.

    kind: 'anchor' (ends right before an anchor that the prompt does not contain) or 'sentence' (ends where a
    sentence begins). anchor: index into `dictionary.kept`, -1 for sentences.
    """

    document: int
    first: int
    last: int
    kind: Literal["anchor", "sentence"]
    anchor: int = -1


def choose_prompts(
    corpus: BlockedCorpus, places: list[Place], n: int, context: int, tokens: int, seed: int
) -> list[Prompt]:
    """`n` prompts in text order: two thirds before anchors, each anchor once, the rest at sentence starts.

    places: cue-free places in text order (`recall.eligible_places`); an anchor's first one is its prompt.
    Sentence starts are those with an anchor among the next `tokens` tokens, where a model that knows the text
    could reveal it; if there are none, sentence starts spread over the text. Missing ones of one kind are
    filled from the other.
    """
    generator = np.random.default_rng(seed)
    first_places: dict[int, Place] = {}
    for place in places:
        first_places.setdefault(place.anchor, place)
    spans = document_spans(corpus)
    anchors = [
        Prompt(p.document, max(spans[p.document][0], p.first - context), p.first, "anchor", p.anchor)
        for p in first_places.values()
    ]
    sentences = _sentence_prompts(corpus, places, context, tokens)
    taken_anchors = [anchors[i] for i in generator.permutation(len(anchors)).tolist()]
    taken_sentences = [sentences[i] for i in generator.permutation(len(sentences)).tolist()]
    wanted = max(n - len(taken_sentences), min(len(taken_anchors), -(-2 * n // 3)))
    chosen = taken_anchors[:wanted]
    chosen += taken_sentences[: n - len(chosen)]
    return sorted(chosen, key=lambda p: (p.last, p.kind))


def _sentence_prompts(corpus: BlockedCorpus, places: list[Place], context: int, tokens: int) -> list[Prompt]:
    near = np.array(sorted(p.first for p in places), dtype=np.int64)
    revealing: list[Prompt] = []
    others: list[Prompt] = []
    for document, (low, high) in sorted(document_spans(corpus).items()):
        starts = corpus.offsets[low:high, 0]
        text = corpus.documents[document].text
        for match in _SENTENCE.finditer(text, int(starts[0]), int(corpus.offsets[high - 1, 1])):
            at = int(np.searchsorted(corpus.offsets[low:high, 1], match.end(), side="right"))
            if at < min(MIN_PROMPT, context) or at >= high - low or text[int(starts[at]) : match.end()].strip():
                continue
            prompt = Prompt(document, low + max(0, at - context), low + at, "sentence")
            following = np.searchsorted(near, [prompt.last, prompt.last + tokens])
            (revealing if following[1] > following[0] else others).append(prompt)
    return revealing or others


@dataclass(frozen=True)
class Completions:
    """Greedy continuations [n, tokens]: ids, probability of each chosen token, length before its end.

    top_ids, top_probability [n, tokens, TOP]: the most probable tokens, in order.
    """

    ids: np.ndarray
    probability: np.ndarray
    lengths: np.ndarray
    top_ids: np.ndarray
    top_probability: np.ndarray


def measure_completions(
    model: PreTrainedModel, corpus: BlockedCorpus, prompts: list[Prompt], tokens: int, eos_id: int | None
) -> Completions:
    """Continue every prompt; prompts of one batch have equal length, so nothing is padded."""
    ids = np.zeros((len(prompts), tokens), dtype=np.int64)
    probability = np.zeros((len(prompts), tokens))
    top = min(TOP, vocabulary_size(model))
    top_ids, top_probability = (np.zeros((len(prompts), tokens, top), dtype) for dtype in (np.int64, np.float64))
    lengths = np.zeros(len(prompts), dtype=np.int64)
    bos = [] if corpus.bos_id is None else [corpus.bos_id]
    by_size: dict[int, list[int]] = {}
    for i, prompt in enumerate(prompts):
        by_size.setdefault(prompt.last - prompt.first, []).append(i)
    batches = [rows[k : k + _ROWS] for _, rows in sorted(by_size.items()) for k in range(0, len(rows), _ROWS)]
    with progress("completions", len(prompts), "prompts") as bar:
        for batch in batches:
            rows = [bos + corpus.ids[prompts[i].first : prompts[i].last].tolist() for i in batch]
            made = generate(model, torch.tensor(rows, dtype=torch.long), tokens, eos_id=eos_id, top=top)
            ids[batch], probability[batch], lengths[batch] = made.ids, made.probability, made.lengths
            top_ids[batch], top_probability[batch] = made.top_ids, made.top_probability
            bar.advance(len(batch))
    return Completions(ids, probability, lengths, top_ids, top_probability)


def prompt_text(corpus: BlockedCorpus, prompt: Prompt, tokens: int) -> tuple[str, str]:
    """The prompt's characters, and the `tokens` tokens that really follow (fewer at a document's end)."""
    text = corpus.documents[prompt.document].text
    _, high = document_spans(corpus)[prompt.document]
    begin, end = int(corpus.offsets[prompt.first, 0]), int(corpus.offsets[prompt.last - 1, 1])
    return text[begin:end], text[end : int(corpus.offsets[min(prompt.last + tokens, high) - 1, 1])]


def completion_json(
    tokenizer: PreTrainedTokenizerBase, corpus: BlockedCorpus, prompt: Prompt, made: Completions, i: int
) -> dict[str, Any]:
    """One model's continuation: text, token strings, probabilities (None where not finite), alternatives.

    alternatives: per token the other most probable ones as text -> probability, in order, from `SHOWN` up.
    """
    ids = made.ids[i, : made.lengths[i]].tolist()
    before = corpus.ids[prompt.first : prompt.last].tolist()
    head, whole = _decode(tokenizer, before), _decode(tokenizer, before + ids)
    kept = made.probability[i, : made.lengths[i]].tolist()
    return {
        "text": whole[len(head) :] if whole.startswith(head) else _decode(tokenizer, ids),
        "tokens": [_decode(tokenizer, [token]) for token in ids],
        "probabilities": [round(p, 4) if np.isfinite(p) else None for p in kept],
        "alternatives": [_alternatives(tokenizer, made, i, at) for at in range(len(ids))],
    }


def _alternatives(tokenizer: PreTrainedTokenizerBase, made: Completions, i: int, at: int) -> dict[str, float]:
    """What else the model had in mind; of tokens that read alike (parts of a character) the more probable one."""
    told: dict[str, float] = {}
    for token, p in zip(made.top_ids[i, at].tolist(), made.top_probability[i, at].tolist(), strict=True):
        if token != made.ids[i, at] and p >= SHOWN:
            told.setdefault(_decode(tokenizer, [token]), round(p, 3))
    return told


def _decode(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
