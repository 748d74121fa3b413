"""Run the measures on one model, loading it only when something is not in the cache yet."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from transformers import PreTrainedModel

from forgetkit.core.models import load_model, local_folder, model_fingerprint
from forgetkit.evaluate.cache import Part, Store
from forgetkit.evaluate.completions import measure_completions
from forgetkit.evaluate.forward import vocabulary_size
from forgetkit.evaluate.health import NEW_TOKENS, measure_fluency, nonfinite_weights
from forgetkit.evaluate.losses import measure_divergence, measure_losses
from forgetkit.evaluate.plan import Plan
from forgetkit.evaluate.recall import measure_recall
from forgetkit.settings import ModelSettings

VERSION = 1  # of the measures: part of every cache key, to be raised when a measure changes


class LazyModel:
    """A model source with its fingerprint; loaded at first use, dropped by `close`."""

    def __init__(self, source: str | Path, settings: ModelSettings) -> None:
        self.source = source
        self.settings = settings
        self.fingerprint = model_fingerprint(source)
        self._model: PreTrainedModel | None = None

    @property
    def model(self) -> PreTrainedModel:
        """The model in eval mode."""
        if self._model is None:
            self._model = load_model(self.source, self.settings)
        return self._model

    def nonfinite_on_disk(self) -> int:
        """NaN and infinite values in the weight files; `load_model` refuses such, here it is a finding."""
        count = 0
        for path in sorted(local_folder(self.source, self.settings).glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - not a dict
                    tensor = file.get_tensor(name)
                    count += int((~torch.isfinite(tensor)).sum()) if tensor.is_floating_point() else 0
        return count

    def close(self) -> None:
        """Free the weights."""
        self._model = None
        gc.collect()


class Measurer:
    """The measures of `plan`, each looked up in `store` first."""

    def __init__(self, plan: Plan, store: Store) -> None:
        self.plan = plan
        self.store = store

    def _part(self, name: str, source: LazyModel, inputs: dict[str, Any], make: Callable[[], Part]) -> Part:
        key = {
            "version": VERSION,
            "measure": name,
            "model": source.fingerprint,
            "dtype": source.settings.dtype,
            "device": source.settings.device,
            **inputs,
        }
        found = self.store.get(key)
        if found is not None:
            return found
        began = time.perf_counter()
        made = make()
        made.info["seconds"] = round(time.perf_counter() - began, 3)
        self.store.put(key, made)
        return made

    def main(self, source: LazyModel) -> dict[str, Part]:
        """Every measure of one model; with non-finite weights nothing else is measured."""
        parts = {"weights": self.weights(source)}
        if parts["weights"].info["nonfinite"]:
            return parts
        parts |= {f"loss.{name}": self.loss(source, name) for name in self.plan.texts}
        parts |= {"recall": self.recall(source), "fluency": self.fluency(source)}
        if self.plan.prompts:
            parts["completions"] = self.completions(source)
        return parts

    def snapshot(self, source: LazyModel) -> dict[str, Part]:
        """The measures of a point on the curve: recall, and loss on the target and on the health text."""
        names = dict.fromkeys(("target", self.plan.health_text))
        parts = {"weights": self.weights(source)}
        if parts["weights"].info["nonfinite"]:
            return parts
        parts["recall"] = self.recall(source)
        return parts | {f"loss.{name}": self.loss(source, name) for name in names if name in self.plan.texts}

    def weights(self, source: LazyModel) -> Part:
        """Non-finite weights, vocabulary, parameters."""

        def make() -> Part:
            if broken := source.nonfinite_on_disk():
                return Part({}, {"nonfinite": broken, "vocabulary": 0, "parameters": None})
            model = source.model
            info = {
                "nonfinite": nonfinite_weights(model),
                "vocabulary": vocabulary_size(model),
                "parameters": sum(p.numel() for p in model.parameters()),
            }
            return Part({}, info)

        return self._part("weights", source, {}, make)

    def loss(self, source: LazyModel, name: str) -> Part:
        """Loss and entropy per sampled block of the text `name`."""
        corpus, blocks = self.plan.texts[name], self.plan.blocks[name]

        def make() -> Part:
            scores = measure_losses(source.model, corpus, blocks, label=f"loss on {name}")
            arrays = {"loss": scores.loss, "entropy": scores.entropy, "count": scores.count}
            return Part(arrays, {"nonfinite": scores.nonfinite})

        return self._part("loss", source, {"text": self.plan.digests[name], "blocks": blocks}, make)

    def recall(self, source: LazyModel) -> Part:
        """Scores of every cue-free place."""
        plan, context = self.plan, self.plan.settings.recall_context

        def make() -> Part:
            return Part(asdict(measure_recall(source.model, plan.target, plan.places, context)), {})

        spans = [[p.first, p.last] for p in plan.places]
        return self._part(
            "recall", source, {"text": plan.digests["target"], "places": spans, "context": context}, make
        )  # fmt: skip

    def fluency(self, source: LazyModel) -> Part:
        """Greedy and sampled continuations of the health prompts."""
        plan = self.plan

        def make() -> Part:
            greedy, sampled, finite = measure_fluency(
                source.model, plan.health_prompts, NEW_TOKENS, eos_id=plan.eos_id, seed=plan.seed
            )
            arrays = {"greedy": np.array(greedy.repetition), "sampled": np.array(sampled.repetition)}
            rest = {
                name: {key: value for key, value in asdict(one).items() if key != "repetition"}
                for name, one in (("greedy", greedy), ("sampled", sampled))
            }
            return Part(arrays, rest | {"finite": finite})

        inputs = {
            "prompts": plan.health_prompts.tolist(),
            "tokens": NEW_TOKENS,
            "eos": plan.eos_id,
            "seed": plan.seed,
        }
        return self._part("fluency", source, inputs, make)

    def completions(self, source: LazyModel) -> Part:
        """Greedy continuations of the target's prompts."""
        plan, tokens = self.plan, self.plan.settings.completion_tokens

        def make() -> Part:
            return Part(asdict(measure_completions(source.model, plan.target, plan.prompts, tokens, plan.eos_id)), {})

        spans = [[p.first, p.last] for p in plan.prompts]
        inputs = {"text": plan.digests["target"], "prompts": spans, "tokens": tokens, "eos": plan.eos_id}
        return self._part("completions", source, inputs, make)

    def divergence(self, reference: LazyModel, source: LazyModel, name: str) -> Part:
        """KL(reference || model) and top-1 agreement on the text `name`; holds two models in memory."""
        corpus, blocks = self.plan.texts[name], self.plan.blocks[name]

        def make() -> Part:
            label = f"KL on {name}"
            return Part(asdict(measure_divergence(reference.model, source.model, corpus, blocks, label)), {})

        inputs = {"text": self.plan.digests[name], "blocks": blocks, "reference": reference.fingerprint}
        return self._part("divergence", source, inputs, make)
