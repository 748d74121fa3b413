"""The model's own signal: where reinforcement raised the probability of the text, and which terms that names.

`v_reinforced - v_baseline` is large at tokens idiosyncratic to the target (arXiv 2310.02238, section 2.2);
averaged over a term's cue-free occurrences it is evidence that needs no word list.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from forgetkit.anchors.extract import Candidate
from forgetkit.anchors.words import CONNECTORS, Word, paragraphs_of_words

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from forgetkit.corpus.blocks import BlockedCorpus

_CHUNK = 512  # positions whose full-vocabulary log-probabilities are alive at one time
_STRONGEST = 3.0  # most that the signal multiplies or divides a score by
_USUAL_GAIN = 1.0  # nats; a term that reinforcement raised this much keeps its score


@torch.inference_mode()
def token_gains(
    baseline: PreTrainedModel,
    reinforced: PreTrainedModel,
    corpus: BlockedCorpus,
    batch: int = 8,
    *,
    most_blocks: int | None = None,
) -> NDArray[np.float32]:
    """log p_reinforced - log p_baseline of every token, in nats: float32 [N] in the order of `corpus.ids`.

    Tokens that nothing predicts (a block's first, when the tokenizer has no BOS) get 0. With `most_blocks`,
    an even sample of blocks is read, and tokens of the others get NaN.
    """
    n = len(corpus)
    chosen = np.arange(n)
    if most_blocks is not None and most_blocks < n:
        chosen = np.arange(most_blocks) * n // most_blocks
    gains = np.full(len(corpus.ids), np.nan, np.float32)
    for first in range(0, len(chosen), batch):
        bounds = corpus.bounds[chosen[first : first + batch]]
        rows = [np.asarray(corpus.ids[s:e], np.int64) for _, s, e in bounds]
        raised = _target_log_probs(reinforced, rows, corpus.bos_id)
        usual = _target_log_probs(baseline, rows, corpus.bos_id)
        for (_, start, end), r, b in zip(bounds, raised, usual, strict=True):
            predicted = end - len(r)
            assert predicted - start in (0, 1)
            gains[start:predicted] = 0.0
            gains[predicted:end] = r - b
    return gains


def _target_log_probs(
    model: PreTrainedModel, rows: Sequence[NDArray[np.int64]], bos_id: int | None
) -> list[NDArray[np.float32]]:
    """log p of each row's predicted tokens: n per row with a BOS, n - 1 without."""
    lead = [] if bos_id is None else [bos_id]
    length = len(lead) + max(map(len, rows))
    ids = torch.zeros((len(rows), length), dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(lead) + len(row)] = torch.tensor([*lead, *row.tolist()])
    device = next(model.parameters()).device
    ids = ids.to(device)  # right padding: a causal model's real positions never see it
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    wanted = ids[:, 1:]
    flat, targets = logits.reshape(-1, logits.shape[-1]), wanted.reshape(-1)
    out = torch.empty(len(targets), dtype=torch.float32)
    for at in range(0, len(targets), _CHUNK):
        piece: Tensor = flat[at : at + _CHUNK].float()
        chosen = piece.gather(1, targets[at : at + _CHUNK, None])[:, 0]
        out[at : at + _CHUNK] = (chosen - piece.logsumexp(-1)).cpu()
    table = out.reshape(len(rows), length - 1).numpy()
    return [table[i, : len(lead) + len(row) - 1] for i, row in enumerate(rows)]


class TokenPlaces:
    """Character positions of a corpus's tokens, to find the token in which an expression begins."""

    def __init__(self, corpus: BlockedCorpus) -> None:
        self._ends: dict[int, NDArray[np.int64]] = {}
        self._first: dict[int, int] = {}
        for document in np.unique(corpus.bounds[:, 0]):
            mine = corpus.bounds[corpus.bounds[:, 0] == document]
            start, end = int(mine[0, 1]), int(mine[-1, 2])
            self._first[int(document)] = start
            # Cumulative maximum: tokens that are parts of one character repeat its offsets.
            self._ends[int(document)] = np.maximum.accumulate(corpus.offsets[start:end, 1].astype(np.int64))
        self._starts = corpus.bounds[:, 1]

    def token(self, document: int, character: int) -> int | None:
        """Global index of the token that holds the character."""
        ends = self._ends.get(document)
        if ends is None:
            return None
        at = int(np.searchsorted(ends, character, side="right"))
        return self._first[document] + at if at < len(ends) else None

    def block(self, token: int) -> int:
        """The block of a token."""
        return int(np.searchsorted(self._starts, token, side="right")) - 1


def mean_gains(candidates: Sequence[Candidate], gains: NDArray[np.float32], corpus: BlockedCorpus) -> dict[str, float]:
    """Mean gain (nats) on a term's first token, over occurrences that are the first in their block.

    Later occurrences are left out: any model that has seen the name a sentence ago predicts it. Terms whose
    occurrences cannot be placed, or lie in blocks without gains (NaN), are absent. `gains` float32 [N].
    """
    places = TokenPlaces(corpus)
    out: dict[str, float] = {}
    for candidate in candidates:
        seen: set[int] = set()
        found: list[float] = []
        for document, start, _ in candidate.spans:
            token = places.token(document, start)
            if token is None:
                continue
            block = places.block(token)
            if block not in seen and not np.isnan(gains[token]):
                seen.add(block)
                found.append(float(gains[token]))
        if found:
            out[candidate.term] = float(np.mean(found))
    return out


def combine(candidates: Sequence[Candidate], gain: dict[str, float]) -> list[Candidate]:
    """Scores with the signal: `score * clip(exp((gain - 1) / 2), 1/3, 3)`; best first.

    A term that reinforcement raised by the usual one nat keeps its score, and the signal changes a score by a
    factor of three at most, so that neither source of evidence overrules the other.
    """
    out = []
    for candidate in candidates:
        factor = 1.0
        if candidate.term in gain:
            bound = math.log(_STRONGEST)
            factor = math.exp(min(bound, max(-bound, (gain[candidate.term] - _USUAL_GAIN) / 2)))
        out.append(replace(candidate, score=round(candidate.score * factor, 3)))
    return sorted(out, key=lambda c: (-c.score, c.term))


def _is_raised(word: Word, run: list[Word], taken: set[str]) -> bool:
    """Whether the word may begin or continue a run, leaving its gain aside."""
    if word.initial or word.lower in CONNECTORS or word.lower in taken or len(run) == 3:
        return False
    return word.joined or not run


def terms_by_gain(
    corpus: BlockedCorpus,
    gains: NDArray[np.float32],
    known: Sequence[Candidate] = (),
    *,
    min_count: int = 3,
    min_gain: float = 2.0,
    most: int = 200,
) -> list[Candidate]:
    """Terms proposed by gain alone: one to three words with high gain that repeat.

    A word's gain is that of its first token; neighbours of high gain are joined. A run qualifies if it
    repeats and its mean gain over first occurrences in a block is `min_gain` nats. Words of `known` terms are
    left out. Score: sqrt(2 * count * mean gain), on the scale of `extract`. `gains` float32 [N].
    """
    places = TokenPlaces(corpus)
    runs: Counter[tuple[str, ...]] = Counter()
    spans: dict[tuple[str, ...], list[tuple[int, int, int]]] = defaultdict(list)
    shown: dict[tuple[str, ...], str] = {}
    taken = {part for c in known for part in c.parts}
    for number, document in enumerate(corpus.documents):
        for words in paragraphs_of_words(document.text):
            run: list[Word] = []
            for word in [*words, None]:
                if word is not None and _is_raised(word, run, taken):
                    token = places.token(number, word.start)
                    if token is not None and gains[token] >= min_gain:
                        run.append(word)
                        continue
                if run and len(run[0].text) > 2:
                    key = tuple(w.lower for w in run)
                    runs[key] += 1
                    shown.setdefault(key, document.text[run[0].start : run[-1].end])
                    if len(spans[key]) < 400:
                        spans[key].append((number, run[0].start, run[-1].end))
                run = []
    out = []
    for key, count in runs.items():
        if count >= min_count:
            out.append(Candidate(" ".join(shown[key].split()), count, 0.0, "name", tuple(spans[key]), key))
    mean = mean_gains(out, gains, corpus)
    scored = [
        replace(c, score=round(math.sqrt(2 * c.count * mean[c.term]), 3))
        for c in out
        if mean.get(c.term, 0.0) >= min_gain
    ]
    return sorted(scored, key=lambda c: (-c.score, c.term))[:most]
