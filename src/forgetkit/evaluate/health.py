"""Is the model still a language model? A dead one forgets perfectly: no forgetting score without this check.

Numbers come from held-out text (loss and entropy of the next-token distribution) and from greedy and sampled
continuations of its first words (repetition). They are judged against the baseline measured in the same way.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from forgetkit.core.progress import progress
from forgetkit.corpus.blocks import BlockedCorpus
from forgetkit.evaluate.forward import Generation, generate

PROMPTS = 32
PROMPT_TOKENS = 32
NEW_TOKENS = 64
NGRAM = 4
_ROWS = 16


@dataclass(frozen=True)
class HealthLimits:
    """Thresholds of the verdict. The first six compare with the baseline; the rest hold for any model."""

    loss_increase: float = 0.10
    """Held-out loss may rise by this share of the baseline's."""
    repetition_increase: float = 0.15
    """Share of repeated 4-grams in sampled text may rise by this much, and by two standard errors."""
    greedy_repetition_increase: float = 0.25
    """The same in greedy text, where sound small models loop too: one that never read the testbed's target is .16 above
    the baseline."""
    entropy_low: float = 0.5
    entropy_high: float = 1.5
    """Entropy of the next token on held-out text, as a ratio to the baseline's."""
    empty_increase: float = 0.25
    """Share of sampled continuations shorter than one 4-gram may rise by this much."""
    uniform: float = 0.95
    """Entropy from this share of log(vocabulary) on is guessing."""
    repetition: float = 0.6
    """More repeated 4-grams than this in *sampled* text is a loop."""


@dataclass(frozen=True)
class Fluency:
    """Shape of continuations; repetition: one entry per prompt; distinct_n: pooled."""

    repetition: tuple[float, ...]
    empty: float
    distinct_1: float | None
    distinct_2: float | None
    distinct_3: float | None

    @property
    def mean_repetition(self) -> float:
        """Mean share of repeated 4-grams."""
        return float(np.mean(self.repetition)) if self.repetition else 0.0


@dataclass(frozen=True)
class HealthNumbers:
    """What `judge_health` needs. loss, entropy: nats per token on held-out text, None where there is none.

    greedy, sampled: None where no continuations were made (snapshots along the fine-tune).
    """

    vocabulary: int
    nonfinite_weights: int
    nonfinite_logits: int
    loss: float | None = None
    entropy: float | None = None
    greedy: Fluency | None = None
    sampled: Fluency | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values, non-finite ones as None."""
        out: dict[str, Any] = {
            "vocabulary": self.vocabulary,
            "nonfinite_weights": self.nonfinite_weights,
            "nonfinite_logits": self.nonfinite_logits,
            "loss": _finite(self.loss),
            "entropy": _finite(self.entropy),
        }
        for name, fluency in (("greedy", self.greedy), ("sampled", self.sampled)):
            values = None if fluency is None else asdict(fluency) | {"repetition": fluency.mean_repetition}
            out[name] = values
        return out


@dataclass(frozen=True)
class HealthVerdict:
    """'healthy', or 'unhealthy' with one plain sentence per failed check."""

    status: Literal["healthy", "unhealthy"]
    reasons: tuple[str, ...] = ()

    @property
    def healthy(self) -> bool:
        """Whether forgetting scores may be given."""
        return self.status == "healthy"


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def nonfinite_weights(model: PreTrainedModel) -> int:
    """Number of NaN or infinite values among parameters and buffers."""
    tensors = [*model.parameters(), *model.buffers()]
    return sum(int((~torch.isfinite(t)).sum()) for t in tensors if t.is_floating_point())


def repeated_ngrams(ids: list[int], n: int = NGRAM) -> float:
    """1 - distinct / all n-grams of one continuation; 0 where it is shorter than n."""
    grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def distinct_ngrams(texts: list[list[int]], n: int) -> float | None:
    """Distinct / all n-grams over all continuations together; None where there are none."""
    grams = [tuple(ids[i : i + n]) for ids in texts for i in range(len(ids) - n + 1)]
    return len(set(grams)) / len(grams) if grams else None


def fluency(texts: list[list[int]]) -> Fluency:
    """Repetition and diversity of continuations given as token ids."""
    return Fluency(
        repetition=tuple(repeated_ngrams(ids) for ids in texts),
        empty=float(np.mean([len(ids) < NGRAM for ids in texts])) if texts else 0.0,
        distinct_1=distinct_ngrams(texts, 1),
        distinct_2=distinct_ngrams(texts, 2),
        distinct_3=distinct_ngrams(texts, 3),
    )


def health_prompts(corpus: BlockedCorpus, n: int = PROMPTS, tokens: int = PROMPT_TOKENS) -> Tensor:
    """Prompts Long[B, T (+1 with BOS)]: the first `tokens` tokens of evenly spread long enough blocks.

    Where no block is, the shortest common length that at least one block has is taken; B = 0 for an empty
    text.
    """
    sizes = corpus.bounds[:, 2] - corpus.bounds[:, 1]
    if len(sizes) == 0:
        return torch.empty(0, 0, dtype=torch.long)
    tokens = min(tokens, int(sizes.max()))
    usable = np.flatnonzero(sizes >= tokens)
    count = min(n, len(usable))
    picked = usable[((np.arange(count) + 0.5) * len(usable) / count).astype(np.int64)]
    bos = [] if corpus.bos_id is None else [corpus.bos_id]
    firsts = corpus.bounds[picked, 1].tolist()
    return torch.tensor([bos + corpus.ids[first : first + tokens].tolist() for first in firsts], dtype=torch.long)


def measure_fluency(
    model: PreTrainedModel, prompts: Tensor, tokens: int, *, eos_id: int | None, seed: int
) -> tuple[Fluency, Fluency, bool]:
    """Greedy and sampled (temperature 1) continuations of prompts Long[B, T]; were all logits finite?"""
    greedy: list[list[int]] = []
    sampled: list[list[int]] = []
    finite = True
    with progress("fluency", 2 * len(prompts), "continuations") as bar:
        for start in range(0, len(prompts), _ROWS):
            rows = prompts[start : start + _ROWS]
            for kept, own in ((greedy, None), (sampled, seed + start)):
                made = generate(model, rows, tokens, eos_id=eos_id, seed=own)
                kept += continuations(made)
                finite &= made.finite
                bar.advance(len(rows))
    return fluency(greedy), fluency(sampled), finite


def continuations(made: Generation) -> list[list[int]]:
    """Token ids of every continuation up to its end-of-text token."""
    return [ids[:length].tolist() for ids, length in zip(made.ids, made.lengths, strict=True)]


def judge_health(
    numbers: HealthNumbers, baseline: HealthNumbers | None = None, limits: HealthLimits | None = None
) -> HealthVerdict:
    """The verdict on one model; without a baseline only the absolute checks apply."""
    limits = limits or HealthLimits()
    reasons: list[str] = []
    if numbers.nonfinite_weights:
        reasons.append(f"{numbers.nonfinite_weights} weights are not finite")
    if numbers.nonfinite_logits:
        reasons.append(f"predictions are not finite at {numbers.nonfinite_logits} positions")
    if not reasons:
        reasons += _absolute(numbers, limits)
        if baseline is not None:
            reasons += _relative(numbers, baseline, limits)
    return HealthVerdict("unhealthy" if reasons else "healthy", tuple(reasons))


def _absolute(numbers: HealthNumbers, limits: HealthLimits) -> list[str]:
    reasons = []
    most = math.log(numbers.vocabulary)
    if numbers.entropy is not None and numbers.entropy > limits.uniform * most:
        reasons.append(f"the next-token distribution is nearly uniform ({numbers.entropy:.2f} of {most:.2f} nats)")
    if numbers.loss is not None and numbers.loss > most:
        reasons.append(f"held-out loss {numbers.loss:.2f} is worse than guessing ({most:.2f})")
    if numbers.sampled is not None and numbers.sampled.mean_repetition > limits.repetition:
        reasons.append(f"sampled text repeats {numbers.sampled.mean_repetition:.0%} of its 4-grams")
    return reasons


def _relative(numbers: HealthNumbers, baseline: HealthNumbers, limits: HealthLimits) -> list[str]:
    reasons = []
    if numbers.loss is not None and baseline.loss:
        rise = numbers.loss / baseline.loss - 1
        if not rise <= limits.loss_increase:  # written so that NaN fails
            reasons.append(f"held-out loss rose by {rise:.1%}, more than {limits.loss_increase:.0%}")
    if numbers.entropy is not None and baseline.entropy:
        ratio = numbers.entropy / baseline.entropy
        if not limits.entropy_low <= ratio <= limits.entropy_high:
            wanted = f"outside {limits.entropy_low} to {limits.entropy_high}"
            reasons.append(f"entropy is {ratio:.2f} times the baseline's, {wanted}")
    for name, own, base, limit in (
        ("greedy", numbers.greedy, baseline.greedy, limits.greedy_repetition_increase),
        ("sampled", numbers.sampled, baseline.sampled, limits.repetition_increase),
    ):
        if own is None or base is None:
            continue
        rise = own.mean_repetition - base.mean_repetition
        if rise > limit and rise > 2 * _paired_error(own.repetition, base.repetition):
            reasons.append(f"{name} text repeats {rise:.0%} more of its 4-grams than the baseline's")
        if name == "sampled" and own.empty - base.empty > limits.empty_increase:
            reasons.append(f"{own.empty:.0%} of sampled continuations end at once")
    return reasons


def _paired_error(own: tuple[float, ...], base: tuple[float, ...]) -> float:
    if len(own) != len(base) or len(own) < 2:
        return 0.0
    return float(np.std(np.subtract(own, base), ddof=1) / math.sqrt(len(own)))
