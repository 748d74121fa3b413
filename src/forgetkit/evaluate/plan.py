"""What will be measured where: chosen once, from texts and settings alone, and the same for every model."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from forgetkit.anchors.dictionary import Dictionary
from forgetkit.corpus.blocks import BlockedCorpus
from forgetkit.evaluate.cloze import chance
from forgetkit.evaluate.completions import Prompt, choose_prompts
from forgetkit.evaluate.health import health_prompts
from forgetkit.evaluate.losses import sample_blocks
from forgetkit.evaluate.probes import Probes, load_probes
from forgetkit.evaluate.recall import Place, PlaceCounts, eligible_places, sample_places
from forgetkit.settings import EvaluateSettings

TEXT_ORDER = ("target", "retain", "neighbour", "heldout")
HEALTH_ORDER = ("heldout", "neighbour", "retain")


@dataclass(frozen=True)
class Plan:
    """Places, blocks, prompts and probes. texts holds 'target' too, in the order of `TEXT_ORDER`.

    health_text: the text on which health is measured; 'target' where there is no other, and then loss and
    entropy say nothing about health (they are meant to change there).
    """

    texts: dict[str, BlockedCorpus]
    digests: dict[str, str]
    blocks: dict[str, list[int]]
    places: list[Place]
    place_counts: PlaceCounts
    prompts: list[Prompt]
    health_text: str
    health_prompts: Tensor
    eos_id: int | None
    probes: Probes
    tokenizer: Any
    settings: EvaluateSettings
    seed: int

    @property
    def target(self) -> BlockedCorpus:
        """The text to be forgotten."""
        return self.texts["target"]


def make_plan(
    target: BlockedCorpus,
    dictionary: Dictionary,
    texts: Mapping[str, BlockedCorpus],
    tokenizer: PreTrainedTokenizerBase,
    settings: EvaluateSettings,
    seed: int,
) -> Plan:
    """Choose everything that is measured; deterministic in its arguments.

    Raises:
        ForgetkitError: a probe file that cannot be read.
    """
    everything = {name: ({"target": target} | dict(texts)).get(name) for name in TEXT_ORDER}
    kept = {name: corpus for name, corpus in everything.items() if corpus is not None and corpus.n_tokens > 0}
    eligible, counts = eligible_places(target, dictionary, settings.recall_context)
    places = sample_places(eligible, settings.recall_places, seed)
    prompts = choose_prompts(
        target, eligible, settings.completions, settings.recall_context, settings.completion_tokens, seed
    )
    health_text = next((name for name in HEALTH_ORDER if name in kept), "target")
    return Plan(
        texts=kept,
        digests={name: digest(corpus) for name, corpus in kept.items()},
        blocks={name: sample_blocks(corpus, settings.loss_blocks) for name, corpus in kept.items()},
        places=places,
        place_counts=counts,
        prompts=prompts,
        health_text=health_text,
        health_prompts=health_prompts(kept.get(health_text, target)),
        eos_id=tokenizer.eos_token_id if isinstance(tokenizer.eos_token_id, int) else None,
        probes=_probes(target, settings),
        tokenizer=tokenizer,
        settings=settings,
        seed=seed,
    )


def _probes(target: BlockedCorpus, settings: EvaluateSettings) -> Probes:
    """The probes of the chosen split about the target's documents."""
    if settings.probes is None:
        return Probes()
    # A document's name is its file's, perhaps below a folder and with a title after it (corpus.readers).
    files = {document.name.split(": ")[0].rsplit("/")[-1] for document in target.documents}
    return load_probes(settings.probes, files, None if settings.probe_split == "all" else settings.probe_split)


def digest(corpus: BlockedCorpus) -> str:
    """sha256 over the token ids, the block bounds and the BOS token: all that a model gets to see."""
    state = hashlib.sha256(f"{corpus.bos_id}|{len(corpus.ids)}|".encode())
    state.update(np.ascontiguousarray(corpus.ids, dtype=np.int32).tobytes())
    state.update(np.ascontiguousarray(corpus.bounds, dtype=np.int64).tobytes())
    return state.hexdigest()


def describe(plan: Plan, dictionary: Dictionary) -> dict[str, Any]:
    """The plan as results.json tells it: sizes and counts, no text."""
    return {
        "texts": {
            name: {
                "documents": len(corpus.documents),
                "tokens": int(corpus.n_tokens),
                "blocks": len(corpus),
                "blocks_measured": len(plan.blocks[name]),
                "sha256": plan.digests[name],
            }
            for name, corpus in plan.texts.items()
        },
        "places": {
            "n": len(plan.places),
            "anchors": len({p.anchor for p in plan.places}),
            "anchors_in_dictionary": len(dictionary.kept),
            "context_tokens": plan.settings.recall_context,
            **asdict(plan.place_counts),
        },
        "probes": {
            "split": plan.settings.probe_split,
            "judge": plan.settings.judge,
            "cloze": {
                "n": len(plan.probes.cloze),
                "unknown": plan.probes.unknown,
                "chance": chance(plan.probes.cloze),
            },
            "completion": {"n": len(plan.probes.completions)},
            "probability": {"n": len(plan.probes.probabilities)},
        }
        if plan.settings.probes
        else None,
    }
