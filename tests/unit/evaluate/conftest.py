"""A tiny model that has really learned a text, and corpora cut with its tokenizer."""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from forgetkit.anchors.dictionary import Anchor, Dictionary
from forgetkit.corpus.blocks import BlockedCorpus, block_documents
from forgetkit.corpus.readers import Document
from tests import toys

PLAIN = (
    "Once upon a time there was an old woman who lived by the sea with her three sons and a small grey cat. "
    "In the morning the sun rose over the hills, and the children went down to the river to play. "
)
STORY = toys.TEXT + PLAIN * 2 + toys.TEXT + PLAIN * 2


def corpus(*texts: str, block_tokens: int = 32, shape: str = "bytelevel") -> BlockedCorpus:
    documents = [
        Document(str(i), f"document-{i}.txt", text, hashlib.sha256(text.encode()).hexdigest(), "utf-8", ())
        for i, text in enumerate(texts)
    ]
    return block_documents(documents, toys.tokenizer(shape), block_tokens)


def dictionary(*terms: str) -> Dictionary:
    return Dictionary(
        anchors=tuple(Anchor(term=term, kind="person", counterpart=f"Name{i}") for i, term in enumerate(terms))
    )


OTHERS = ("Anna", "Bertha", "Clara", "Dora Smith", "Emma", "Frieda", "Greta", "Hanna", "Irma")


def cloze_line(number: int = 0, **changes: Any) -> dict[str, Any]:
    source = {"file": "document-0.txt", "quote": f"quotation {number}"}
    return {
        "id": f"c{number}",
        "kind": "verbatim",
        "source": source,
        "prompt": "They met the princess-like lady",
        "answer": "Glinda",
        "distractors": list(OTHERS),
        "about_anchor": True,
        "split": "dev",
    } | changes


def completion_line(number: int = 0, **changes: Any) -> dict[str, Any]:
    return {
        "id": f"f{number}",
        "kind": "completion",
        "source": {"file": "document-0.txt", "quote": "x"},
        "prompt": "Dorothy lived in the midst of the great",
        "references": {"3": ["Uncle Henry"], "2": ["Kansas"], "1": ["farmer"]},
        "subtlety": 1,
        "split": "dev",
    } | changes


def probability_line(number: int = 0, **changes: Any) -> dict[str, Any]:
    return {
        "id": f"p{number}",
        "kind": "probability",
        "source": {"file": "document-0.txt", "quote": "x"},
        "prompt": "They walked to the Emerald",
        "familiar": ["City"],
        "split": "test",
    } | changes


def write_probes(
    folder: Path,
    cloze: list[dict[str, Any]] | None = None,
    completions: list[dict[str, Any]] | None = None,
    probability: list[dict[str, Any]] | None = None,
    lexicon: dict[str, list[str]] | None = None,
) -> Path:
    """A folder of probe files; None: no such file."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in (("cloze", cloze), ("completions", completions), ("probability", probability)):
        if lines is not None:
            text = "".join(json.dumps(line) + "\n" for line in lines)
            (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    if lexicon is not None:
        (folder / "lexicon.json").write_text(json.dumps(lexicon), encoding="utf-8")
    return folder


def train(model: PreTrainedModel, text: str, steps: int) -> PreTrainedModel:
    ids = torch.tensor(toys.tokenizer()(text, add_special_tokens=False)["input_ids"])
    generator = torch.Generator().manual_seed(0)
    optimiser = torch.optim.AdamW(model.parameters(), lr=4e-3)
    model.train()
    for _ in range(steps):
        starts = torch.randint(0, len(ids) - 48, (8,), generator=generator).tolist()
        batch = torch.stack([ids[s : s + 48] for s in starts])
        loss = model(input_ids=batch, labels=batch).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.eval()


@pytest.fixture(scope="session")
def trained() -> PreTrainedModel:
    model = toys.model("llama", vocab_size=len(toys.tokenizer()))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.div_(3.0)  # ordinary initial scale: learns faster
    return train(model, STORY, 60)


@pytest.fixture(scope="session")
def folders(trained: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Baseline (knows STORY), unlearned (then PLAIN), reference (PLAIN alone), dead (NaN), mute (uniform)."""
    reference = toys.model("llama", vocab_size=len(toys.tokenizer()))
    with torch.no_grad():
        for parameter in reference.parameters():
            if parameter.ndim >= 2:
                parameter.div_(3.0)
    train(reference, PLAIN * 3, 60)
    unlearned = train(copy.deepcopy(trained), PLAIN * 3, 8)
    dead, mute = copy.deepcopy(trained), copy.deepcopy(trained)
    with torch.no_grad():
        dead.model.norm.weight.fill_(float("nan"))
        mute.model.norm.weight.zero_()
    root = tmp_path_factory.mktemp("models")
    made = {}
    kinds = {"baseline": trained, "unlearned": unlearned, "reference": reference, "dead": dead, "mute": mute}
    for name, model in kinds.items():
        made[name] = root / name
        model.save_pretrained(made[name])
        toys.tokenizer().save_pretrained(made[name])
    return made
