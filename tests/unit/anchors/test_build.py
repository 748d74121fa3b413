"""From text to dictionary, with and without models and retain text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from forgetkit.anchors.build import build_dictionary
from forgetkit.anchors.dictionary import Anchor, Dictionary, lint
from forgetkit.core.errors import ForgetkitError
from forgetkit.corpus.blocks import BlockedCorpus, block_documents
from forgetkit.corpus.readers import Document
from forgetkit.settings import AnchorSettings, LlmSettings
from tests.toys import model, tokenizer
from tests.unit.anchors.test_llm import reply, server

SCENE = (
    "They met Velindra there, and Velindra took the Copper Fisherman home to Zorbeck. "
    "On the gangplank Velindra saw the grey dog; then the Copper Fisherman went to Zorbeck alone."
)
TOKENIZER = tokenizer()


def corpus(text: str) -> BlockedCorpus:
    return block_documents([Document("1", "1.txt", text, "", "utf-8", ())], TOKENIZER, 32)


TARGET = corpus("\n\n".join([SCENE] * 5))


def test_fields_are_filled_and_lint_is_content(tmp_path: Path) -> None:
    made = build_dictionary(TARGET, None, TOKENIZER, AnchorSettings(contexts=2), work=tmp_path, seed=0)
    by_term = {a.term: a for a in made.anchors}
    assert {"Velindra", "Copper Fisherman", "Zorbeck"} <= set(by_term)
    anchor = by_term["Velindra"]
    assert anchor.count == 15
    assert anchor.source == "statistics"
    assert anchor.score >= 6
    assert anchor.keep
    assert len(anchor.contexts) == 2
    assert all("Velindra" in context and "\n" not in context for context in anchor.contexts)
    assert [a.score for a in made.anchors] == sorted((a.score for a in made.anchors), reverse=True)
    assert [f for f in lint(made, [d.text for d in TARGET.documents]) if f.level == "error"] == []


def test_it_survives_saving(tmp_path: Path) -> None:
    made = build_dictionary(TARGET, None, TOKENIZER, AnchorSettings(), work=tmp_path, seed=0)
    made.save(tmp_path / "anchors.yaml")
    loaded = Dictionary.load(tmp_path / "anchors.yaml")
    assert {a.term: a.counterpart for a in loaded.anchors} == {a.term: a.counterpart for a in made.anchors}


def test_a_ready_dictionary_is_taken_as_it_is(tmp_path: Path) -> None:
    ready = Dictionary((Anchor(term="Velindra", counterpart="Martha"),))
    ready.save(tmp_path / "mine.yaml")
    settings = AnchorSettings(dictionary=tmp_path / "mine.yaml")
    assert build_dictionary(TARGET, None, TOKENIZER, settings, work=tmp_path, seed=0).anchors == ready.anchors
    with pytest.raises(ForgetkitError):
        missing = AnchorSettings(dictionary=tmp_path / "none.yaml")
        build_dictionary(TARGET, None, TOKENIZER, missing, work=tmp_path, seed=0)


def test_models_take_part_and_the_result_is_deterministic(tmp_path: Path) -> None:
    baseline, reinforced = model(seed=0), model(seed=1)

    def build(**settings: bool) -> Dictionary:
        chosen = AnchorSettings.model_validate(settings)
        return build_dictionary(
            TARGET, None, TOKENIZER, chosen, baseline=baseline, reinforced=reinforced, work=tmp_path, seed=0
        )

    both = build()
    assert both == build()
    plain = build(model_signal=False, rank_counterparts=False)
    assert plain == build_dictionary(TARGET, None, TOKENIZER, AnchorSettings(), work=tmp_path, seed=0)
    ranked = build(model_signal=False)
    assert [a.score for a in ranked.anchors] == [a.score for a in plain.anchors]
    assert [a.counterpart for a in ranked.anchors] != [a.counterpart for a in plain.anchors]
    signalled = {a.term: a.score for a in build(rank_counterparts=False).anchors}
    assert any(signalled.get(a.term) not in (None, a.score) for a in plain.anchors)


def test_retain_text_counts(tmp_path: Path) -> None:
    retain = corpus("They all met Velindra at home, for Velindra was there. " * 2000)
    made = build_dictionary(TARGET, retain, TOKENIZER, AnchorSettings(), work=tmp_path, seed=0)
    assert "Velindra" not in {a.term for a in made.anchors}
    assert "Zorbeck" in {a.term for a in made.anchors}


def test_terms_of_a_language_model_join(tmp_path: Path) -> None:
    proposed = [
        {"term": "Velindra", "kind": "place", "counterpart": "Ashford"},
        {"term": "gangplank", "kind": "object", "counterpart": "kettle"},
        {"term": "the", "kind": "other", "counterpart": "x"},
    ]
    with server(lambda n, body: reply(proposed)) as (url, _):
        settings = AnchorSettings(llm=LlmSettings(base_url=url))
        made = build_dictionary(TARGET, None, TOKENIZER, settings, work=tmp_path, seed=0)
    found = {a.term: a for a in made.anchors}
    assert (found["gangplank"].source, found["gangplank"].counterpart) == ("llm", "kettle")
    assert (found["Velindra"].source, found["Velindra"].counterpart) == ("statistics", "Ashford")
    assert "the" not in found
    assert json.dumps([a.model_dump() for a in made.anchors], allow_nan=False)


def test_most_terms_and_a_text_without_anchors(tmp_path: Path) -> None:
    most = build_dictionary(TARGET, None, TOKENIZER, AnchorSettings(max_terms=1), work=tmp_path, seed=0)
    assert len(most.anchors) == 1
    empty = corpus("the cat went down to the river and came home in the evening. " * 10)
    assert build_dictionary(empty, None, TOKENIZER, AnchorSettings(), work=tmp_path, seed=0).anchors == ()
