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

from forgetkit.core.artifacts import hash_json
from forgetkit.core.models import load_model, local_folder, model_fingerprint
from forgetkit.evaluate.cache import Part, Store
from forgetkit.evaluate.cloze import measure_cloze
from forgetkit.evaluate.completions import measure_completions
from forgetkit.evaluate.extraction import measure_extraction
from forgetkit.evaluate.familiarity import TOKENS, completion_score, measure_continuations, measure_probability
from forgetkit.evaluate.forward import vocabulary_size
from forgetkit.evaluate.health import NEW_TOKENS, measure_fluency, nonfinite_weights
from forgetkit.evaluate.judge import make_judge
from forgetkit.evaluate.losses import measure_divergence, measure_losses
from forgetkit.evaluate.plan import Plan
from forgetkit.evaluate.recall import measure_recall
from forgetkit.settings import ModelSettings

VERSION = 2  # of the measures: part of every cache key, to be raised when a measure changes


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
        parts |= {"extraction": self.extraction(source), **self.probes(source)}
        if self.plan.prompts:
            parts["completions"] = self.completions(source)
        return parts

    def snapshot(self, source: LazyModel) -> dict[str, Part]:
        """The measures of a point on the curve: recall, probes, loss on the target and on the health text."""
        names = dict.fromkeys(("target", self.plan.health_text))
        parts = {"weights": self.weights(source)}
        if parts["weights"].info["nonfinite"]:
            return parts
        parts |= {"recall": self.recall(source), **self.probes(source)}
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

    def extraction(self, source: LazyModel) -> Part:
        """Extraction strength of the sampled blocks of the target."""
        plan, blocks = self.plan, self.plan.blocks["target"]

        def make() -> Part:
            return Part(asdict(measure_extraction(source.model, plan.target, blocks)), {})

        return self._part("extraction", source, {"text": plan.digests["target"], "blocks": blocks}, make)

    def probes(self, source: LazyModel) -> dict[str, Part]:
        """Cloze items and both familiarities, those of them that there are probes for."""
        probes = self.plan.probes
        parts: dict[str, Part] = {}
        if probes.cloze:
            parts["cloze"] = self.cloze(source)
        if probes.completions:
            parts["familiarity.completion"] = self.familiar_completions(source)
        if probes.probabilities:
            parts["familiarity.probability"] = self.familiar_words(source)
        return parts

    def cloze(self, source: LazyModel) -> Part:
        """Scores of every cloze item."""
        plan, items, bos = self.plan, self.plan.probes.cloze, self.plan.target.bos_id

        def make() -> Part:
            return Part(asdict(measure_cloze(source.model, plan.tokenizer, items, bos)), {})

        return self._part(
            "cloze", source, {"options": hash_json([[i.prompt, i.options] for i in items]), "bos": bos}, make
        )

    def familiar_words(self, source: LazyModel) -> Part:
        """Probability of the familiar words of every probability prompt."""
        plan, probes, bos = self.plan, self.plan.probes.probabilities, self.plan.target.bos_id

        def make() -> Part:
            return Part({"probability": measure_probability(source.model, plan.tokenizer, probes, bos)}, {})

        words = hash_json([[p.prompt, p.familiar] for p in probes])
        return self._part("familiarity.probability", source, {"words": words, "bos": bos}, make)

    def familiar_completions(self, source: LazyModel) -> Part:
        """Continuations of the completion prompts, graded. New grades do not need new continuations."""
        plan, probes, bos = self.plan, self.plan.probes.completions, self.plan.target.bos_id
        judge = make_judge(plan.settings)

        def go_on() -> Part:
            prompts = [probe.prompt for probe in probes]
            made = measure_continuations(source.model, plan.tokenizer, prompts, bos, plan.eos_id)
            return Part({"finite": np.array(made.finite)}, {"texts": made.texts})

        inputs = {"prompts": [p.prompt for p in probes], "tokens": TOKENS, "bos": bos, "eos": plan.eos_id}
        made = self._part("continuations", source, inputs, go_on)

        def make() -> Part:
            grades = judge.grades(probes, made.info["texts"], plan.probes.lexicon)
            score = completion_score(grades, made.arrays["finite"].tolist())
            return Part({"grade": np.array(grades, dtype=np.int64), "score": score}, {"texts": made.info["texts"]})

        inputs |= {"judge": judge.identity, "terms": hash_json([[p.references for p in probes], plan.probes.lexicon])}
        graded = self._part("familiarity.completion", source, inputs, make)
        seconds = made.info["seconds"] + graded.info["seconds"]
        return Part(graded.arrays, graded.info | {"seconds": round(seconds, 3)})

    def divergence(self, reference: LazyModel, source: LazyModel, name: str) -> Part:
        """KL(reference || model) and top-1 agreement on the text `name`; holds two models in memory."""
        corpus, blocks = self.plan.texts[name], self.plan.blocks[name]

        def make() -> Part:
            label = f"KL on {name}"
            return Part(asdict(measure_divergence(reference.model, source.model, corpus, blocks, label)), {})

        inputs = {"text": self.plan.digests[name], "blocks": blocks, "reference": reference.fingerprint}
        return self._part("divergence", source, inputs, make)
