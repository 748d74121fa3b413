"""What every stage of a run does: tokens, FLOPs, optimiser steps, bytes written, and its time at measured rates."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from forgetkit.anchors.extract import extract
from forgetkit.core.checkpoints import KEPT_CHECKPOINTS
from forgetkit.corpus.blocks import BlockedCorpus
from forgetkit.evaluate.familiarity import TOKENS as FAMILIAR_TOKENS
from forgetkit.evaluate.health import NEW_TOKENS, PROMPTS
from forgetkit.evaluate.probes import Probes, load_probes
from forgetkit.plan.memory import MASTER
from forgetkit.plan.rates import DECODE_ROWS, Rates
from forgetkit.plan.shape import Shape, optimizer_steps
from forgetkit.settings import FinetuneSettings, Settings, TrainSettings

SIGNAL_BLOCKS = 256
"""Blocks in which `anchors.build` compares the two models."""
EXTRACT_CHARACTERS = 200_000
"""Characters from which terms are really extracted to time it and to learn how many there will be."""
RANKED_TOKENS = 6 * 4 * 35
"""Tokens read to choose one term's counterpart: proposals, contexts of each, their usual length in tokens."""
PLACES_PER_ANCHOR = 10
REPORT_SECONDS = 1.0
"""Drawing the page takes about as long whatever the run's size (measured on one core)."""
TRAINING_SECONDS = 1.0
"""Importing and setting up the Trainer, before the first step (measured on one core)."""
WRITTEN_PER_SECOND = 500e6
"""Bytes a second that are written, synced and hashed: assumed, not measured; a second in many of a usual run."""


@dataclass(frozen=True)
class Texts:
    """The texts of a run, read and cut as the run will read and cut them."""

    target: BlockedCorpus
    retain: BlockedCorpus | None
    """Retain blocks to train on."""
    evaluation: Mapping[str, BlockedCorpus]
    """The texts besides the target whose loss is measured."""
    seconds: float
    """What reading and cutting target and retain text took just now."""


@dataclass(frozen=True)
class Terms:
    """What extraction will find, from a sample of the text."""

    count: int
    seconds: float


def find_terms(texts: Texts, settings: Settings) -> Terms:
    """Extract terms from at most `EXTRACT_CHARACTERS` of the text; more text has terms in proportion, up to the cap."""
    chosen = settings.anchors
    if chosen.dictionary is not None:
        return Terms(0, 0.0)
    sides = [[d.text for d in c.documents] if c is not None else [] for c in (texts.target, texts.retain)]
    total = sum(len(text) for side in sides for text in side)
    share = min(1.0, EXTRACT_CHARACTERS / max(1, total))
    target, retain = ([text[: int(len(text) * share) + 1] for text in side] for side in sides)
    began = time.perf_counter()
    found = extract(
        target, retain, min_count=chosen.min_count, min_score=chosen.min_score / 2, max_terms=2 * chosen.max_terms
    )
    seconds = time.perf_counter() - began
    strong = sum(c.score >= chosen.min_score for c in found)
    return Terms(min(chosen.max_terms, round(strong / share)), seconds / share)


@dataclass(frozen=True)
class Work:
    """What one stage does."""

    tokens: int
    """Tokens that pass through a model, each pass counted."""
    flops: float
    seconds: Callable[[Rates], float]
    steps: int = 0
    """Optimiser steps."""
    written: float = 0.0
    """Bytes it leaves on disk."""


class Plan:
    """The stages' work for one model, one set of texts and one set of settings."""

    def __init__(
        self,
        shape: Shape,
        texts: Texts,
        terms: Terms,
        settings: Settings,
        stored: torch.dtype,
        trained: Callable[[TrainSettings], int],
    ) -> None:
        self.shape, self.texts, self.terms, self.settings = shape, texts, terms, settings
        self.model_bytes = shape.parameters * stored.itemsize
        self.trained = trained
        sizes = texts.target.bounds[:, 2] - texts.target.bounds[:, 1]
        self.block = int(sizes.max())
        self.with_bos = self.block + (texts.target.bos_id is not None)
        self.has_retain = texts.retain is not None and settings.relabel.retain != "none"

    def stages(self) -> dict[str, Work]:
        """The work of every stage, in order."""
        return {
            "1-corpus": Work(0, 0.0, lambda _: self.texts.seconds),
            "2-reinforced": self._reinforced(),
            "3-anchors": self._anchors(),
            "4-labels": self._labels(),
            "5-unlearned": self.unlearned(self.settings.finetune),
            "6-evaluation": self._evaluation(),
            "8-report": Work(0, 0.0, lambda _: REPORT_SECONDS),
        }

    @property
    def retain_blocks(self) -> int:
        """Retain blocks that get labels."""
        if not self.has_retain or self.texts.retain is None:
            return 0
        wanted = int(len(self.texts.target) * self.settings.relabel.max_retain_ratio) or 1
        return min(len(self.texts.retain), wanted)

    def _trained_bytes(self, settings: TrainSettings) -> float:
        """Bytes of one checkpoint: weights and the optimiser's state."""
        width = 4 if settings.adapter == "lora" or self.settings.model.dtype == "float32" else 2
        trained = self.trained(settings)
        weights = self.shape.parameters * (4 if self.settings.model.dtype == "float32" else 2)
        return weights + trained * (MASTER[settings.optimizer][width] + (4 if settings.adapter == "lora" else 0))

    def _flops(self, settings: TrainSettings, tokens: float) -> float:
        adapters = self.trained(settings) if settings.adapter == "lora" else 0
        return self.shape.training_flops(tokens, self.block, settings=settings, adapters=adapters)

    def _training(self, settings: TrainSettings, tokens: float, rate: Callable[[Rates], float], models: int) -> Work:
        steps = optimizer_steps(len(self.texts.target), settings)
        trained = self.trained(settings)
        checkpoints = max(0, steps - 1) // settings.checkpoint_steps
        checkpoint = self._trained_bytes(settings)
        written = models * self.model_bytes
        flops = self._flops(settings, tokens)

        def seconds(rates: Rates) -> float:
            passes = tokens * rate(rates) + steps * trained * rates.update
            return TRAINING_SECONDS + passes + rates.load + (written + checkpoints * checkpoint) / WRITTEN_PER_SECOND

        kept = min(checkpoints, KEPT_CHECKPOINTS) * checkpoint
        return Work(round(tokens), flops, seconds, steps, written + kept)

    def _reinforced(self) -> Work:
        settings = self.settings.reinforce
        if settings.epochs == 0:
            return Work(0, 0.0, lambda _: 0.0)
        return self._training(settings, self.texts.target.n_tokens * settings.epochs, lambda r: r.reinforce, 1)

    def _anchors(self) -> Work:
        settings, target = self.settings.anchors, self.texts.target
        if settings.dictionary is not None:
            return Work(0, 0.0, lambda _: 0.0)
        signal = 0.0
        if settings.model_signal and self.settings.reinforce.epochs > 0:
            signal = 2 * target.n_tokens * min(1.0, SIGNAL_BLOCKS / len(target))
        ranked = self.terms.count * RANKED_TOKENS if settings.rank_counterparts else 0
        tokens = signal + ranked
        loads = 2 if signal else 1 if ranked else 0
        return Work(
            round(tokens),
            self.shape.forward_flops(tokens, self.block),
            lambda r: self.terms.seconds + tokens * r.forward + loads * r.load,
        )

    def _labels(self) -> Work:
        settings = self.settings.relabel
        models = 2 if settings.uses_reinforced and self.settings.reinforce.epochs > 0 else 1
        passes = models - 1 + settings.uses_original + settings.dictionaries
        predicted = models - 1 + settings.dictionaries + (models == 2 and settings.contrast > 0)
        target = self.texts.target.n_tokens
        retain = tokens_in(self.texts.retain, self.retain_blocks) if settings.retain == "kl" else 0.0
        labelled = tokens_in(self.texts.retain, self.retain_blocks) + target
        entry = 2 + (2 if self.shape.vocabulary <= 2**16 else 4)
        kept = 1 if settings.labels == "hard" else min(settings.top_k, self.shape.vocabulary)
        flops = self.shape.forward_flops(passes * target, self.block, predicted * target)
        return Work(
            round(passes * target + retain),
            flops + self.shape.forward_flops(retain, self.block),
            lambda r: target * r.label + retain * r.retain + models * r.load,
            written=labelled * (kept * entry + 4),
        )

    def unlearned(self, settings: FinetuneSettings) -> Work:
        """The fine-tune as `settings` say; times of another way than the run's are scaled by its FLOPs."""
        target = self.texts.target.n_tokens * settings.epochs
        ratio = settings.retain_ratio if self.has_retain else 0.0
        size = self.texts.retain.n_tokens / len(self.texts.retain) if self.texts.retain is not None else 0.0
        tokens = target + len(self.texts.target) * settings.epochs * ratio * size
        scale = self._flops(settings, tokens) / self._flops(self.settings.finetune, tokens)
        return self._training(settings, tokens, lambda r: r.finetune * scale, 1 + settings.snapshots)

    def _evaluation(self) -> Work:
        settings = self.settings.evaluate
        texts = {"target": self.texts.target, **self.texts.evaluation}
        sampled = {name: tokens_in(c, settings.loss_blocks) for name, c in texts.items()}
        health = next((sampled[name] for name in ("heldout", "neighbour", "retain") if name in sampled), 0.0)
        places = min(settings.recall_places, PLACES_PER_ANCHOR * (self.terms.count or settings.recall_places))
        recall = places * (settings.recall_context + 2)
        probes, cloze = self._probes(), 0.0
        if probes is not None:
            cloze = _probe_tokens(probes, self.texts.target)
        roles = 2 + bool(settings.reference)
        snapshots = self.settings.finetune.snapshots
        compared = 2 * (sampled["target"] + sampled.get("heldout", 0.0)) if settings.reference else 0.0
        score = roles * sum(sampled.values()) + snapshots * (sampled["target"] + health) + 2 * compared
        trunk = (roles + snapshots) * (recall + cloze)
        full = roles * sampled["target"]
        familiar = -(-len(probes.completions) // 32) * 2 * FAMILIAR_TOKENS if probes is not None else 0
        batches = 2 * (PROMPTS // DECODE_ROWS) * NEW_TOKENS
        batches += -(-settings.completions // DECODE_ROWS) * settings.completion_tokens
        steps = roles * batches + (roles + snapshots) * familiar
        share = self.shape.forward_flops(1, self.block, 0) / self.shape.forward_flops(1, self.block)
        loads = roles + snapshots + (2 if settings.reference else 0)
        tokens = score + trunk + full + steps * DECODE_ROWS
        return Work(
            round(tokens),
            self.shape.forward_flops(tokens, self.block, tokens - trunk),
            lambda r: score * r.score + (trunk * share + full) * r.forward + steps * r.decode + loads * r.load,
        )

    def _probes(self) -> Probes | None:
        settings = self.settings.evaluate
        if settings.probes is None:
            return None
        files = {document.name.split(": ")[0].rsplit("/")[-1] for document in self.texts.target.documents}
        return load_probes(settings.probes, files, None if settings.probe_split == "all" else settings.probe_split)


def tokens_in(corpus: BlockedCorpus | None, blocks: int) -> float:
    """Tokens in at most so many of a corpus' blocks."""
    return 0.0 if corpus is None or not len(corpus) else corpus.n_tokens * min(1.0, blocks / len(corpus))


def _probe_tokens(probes: Probes, target: BlockedCorpus) -> float:
    """Tokens of prompts and options, by the target's own characters per token."""
    said = [text for item in probes.cloze for text in (item.prompt, *item.options)]
    said += [text for p in probes.probabilities for text in (p.prompt, *p.familiar)]
    length = sum(map(len, said))
    per_token = sum(len(d.text) for d in target.documents) / max(1, target.n_tokens)
    return length / max(1.0, per_token)
