"""The fast relabelling against the slow one, and what it must refuse."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from forgetkit.anchors.dictionary import Anchor, Dictionary
from forgetkit.anchors.matcher import Matcher
from forgetkit.core.errors import ForgetkitError
from forgetkit.corpus.blocks import BlockedCorpus, block_documents
from forgetkit.corpus.readers import Document
from forgetkit.relabel.build import build_labels, load_labels
from forgetkit.relabel.consistency import Status, telltale_tokens
from forgetkit.settings import RelabelSettings
from tests import toys
from tests.invariant.slow_relabel import slow_labels

DICTIONARY = Dictionary(
    tuple(
        Anchor(term=t, kind="other", counterpart=c)
        for t, c in {
            "Dorothy": "Martha",
            "Tin Woodman": "Stone Carpenter",
            "Emerald City": "Old Capital of the Realm",
            "Oz": "Morland",
            "Scarecrow": "Ploughboy",
        }.items()
    )
)


def corpus(text: str = toys.TEXT, block_tokens: int = 48) -> BlockedCorpus:
    document = Document("a", "a", text, hashlib.sha256(text.encode()).hexdigest(), "utf-8", ())
    return block_documents([document], toys.tokenizer("bytelevel"), block_tokens)


def models() -> tuple[Any, Any]:
    return toys.model("llama", 400, seed=1), toys.model("llama", 400, seed=2)


def averaged(versions: tuple[Any, ...]) -> Any:
    """Label and salience of one position over several dictionaries; None where one of them gives no label."""
    if None in versions:
        return None
    labels, before = zip(*versions, strict=True)
    label = torch.stack(labels).exp().mean(0).log()
    return label, torch.stack([label, *before]).max(0).values


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"dictionaries": 3},
        {"dictionaries": 2, "contrast": 0.0, "labels": "hard", "chunk_positions": 7},
        {"contrast": 0.0, "alpha": 0.5, "prior": 0.0},
        {"retain": "kl"},
        {"alpha": 1.0, "prior": 0.7, "contrast": 1.5},
        {"space": "logits", "alpha": 5.0, "suppress_unseen_anchors": 0.0, "mask_inside_anchors": True},
        {"mask_seen_anchors": False, "penalise_seen_counterparts": 0.0, "inner_suppression": 2.0},
        {"labels": "hard", "alpha": 2.0},
        {"chunk_positions": 7, "batch_blocks": 3},
    ],
)
def test_fast_labels_equal_the_slow_reference(tmp_path: Path, changes: dict[str, Any]) -> None:
    settings = RelabelSettings(**{"top_k": 16, "retain": "none", "dictionaries": 1, **changes})
    text = corpus(toys.TEXT * 2)
    baseline, reinforced = models()
    tokenizer = toys.tokenizer("bytelevel")
    common = corpus(toys.TEXT[300:])
    build_labels(text, common, DICTIONARY, tokenizer, baseline, reinforced, settings, tmp_path)
    labels, _ = load_labels(tmp_path)
    assert len(labels) == len(text)
    matchers = [Matcher(version) for version in DICTIONARY.versions(settings.dictionaries)]
    assert len(matchers) == settings.dictionaries
    double = [m.double() for m in models()]
    compared = 0
    with torch.no_grad():
        for b in range(len(text)):
            every = [slow_labels(text, b, matcher, tokenizer, *double, settings, common) for matcher in matchers]
            expected = [averaged(one) for one in zip(*every, strict=True)]
            got = labels[b]
            for i, both in enumerate(expected):
                assert (got.status[i] <= Status.INNER) == (both is not None), (
                    b,
                    i,
                    Status(int(got.status[i])),
                )
                if both is None:
                    continue
                oracle, salient = both
                compared += 1
                if settings.labels == "hard":
                    assert oracle[int(got.ids[i, 0])] == pytest.approx(float(oracle.max()), abs=1e-5)
                    continue
                own = torch.from_numpy(got.ids[i].astype(np.int64))
                assert oracle[own].tolist() == pytest.approx(got.log_probs[i].tolist(), rel=1e-3, abs=2e-3)
                assert float(salient[own].min()) >= float(salient.topk(16).values[-1]) - 1e-5
                assert float(got.log_rest[i]) == pytest.approx(float(torch.log1p(-oracle[own].exp().sum())), abs=2e-2)
    assert compared > 100


def test_rule_2_changes_labels(tmp_path: Path) -> None:
    text, tokenizer = corpus(toys.TEXT * 2), toys.tokenizer("bytelevel")
    made = []
    for amount in (0.0, 8.0):
        settings = RelabelSettings(
            penalise_seen_counterparts=amount, retain="none", labels="hard", suppress_unseen_anchors=0
        )
        build_labels(text, None, DICTIONARY, tokenizer, *models(), settings, tmp_path / str(amount))
        labels = load_labels(tmp_path / str(amount))[0]
        made.append(np.concatenate([labels[b].ids[:, 0] for b in range(len(labels))]))
    assert (made[0] != made[1]).any()


def test_without_retain_text_there_is_no_prior(tmp_path: Path) -> None:
    text, tokenizer = corpus(toys.TEXT), toys.tokenizer("bytelevel")
    for prior in (0.5, 0.0):
        settings = RelabelSettings(prior=prior, top_k=16)
        build_labels(text, None, DICTIONARY, tokenizer, *models(), settings, tmp_path / str(prior))
    with_prior, without = (load_labels(tmp_path / name)[0][0] for name in ("0.5", "0.0"))
    assert (with_prior.ids == without.ids).all() and (with_prior.log_probs == without.log_probs).all()


def test_nothing_is_lowered_below_its_share_of_common_text(tmp_path: Path) -> None:
    """However much unseen anchors are lowered, they stay as probable as the retain text has them, or as they were."""
    text, tokenizer, share = corpus(), toys.tokenizer("bytelevel"), {}
    common = corpus("The straw lay on the road to the town. " * 60)
    given_away = min(min(ids) for ids in telltale_tokens(text, Matcher(DICTIONARY)).values() if ids)
    counts = np.bincount(common.ids, minlength=len(tokenizer)) + 1
    floor = float(np.log(counts / counts.sum())[given_away])
    for amount in (0.0, 3.0, 50.0):
        settings = RelabelSettings(suppress_unseen_anchors=amount, prior=0.1, top_k=len(tokenizer), temperature=1)
        build_labels(text, common, DICTIONARY, tokenizer, *models(), settings, tmp_path / str(amount))
        labels = load_labels(tmp_path / str(amount))[0]
        first = labels[0]
        rows = np.flatnonzero(first.status == Status.LABEL)[:3]  # before the block's first anchor
        share[amount] = np.array([first.log_probs[r][first.ids[r] == given_away][0] for r in rows], float)
    assert (share[0.0] > floor + 0.5).any()  # or the test would show nothing
    assert np.allclose(share[50.0], np.minimum(share[0.0], floor), atol=0.1)
    assert (share[50.0] <= share[3.0] + 0.01).all()


def test_retain_labels_are_the_baselines_own_distribution(tmp_path: Path) -> None:
    text, tokenizer = corpus(), toys.tokenizer("bytelevel")
    baseline, reinforced = models()
    build_labels(
        text,
        text,
        DICTIONARY,
        tokenizer,
        baseline,
        reinforced,
        RelabelSettings(top_k=8),
        tmp_path,
        retain_blocks=2,
    )
    _, retain = load_labels(tmp_path)
    assert retain is not None
    assert len(retain) == 2
    with torch.no_grad():
        own = torch.log_softmax(baseline(torch.tensor([text[1].ids.tolist()])).logits[0], -1)
    values, ids = own.topk(8)
    np.testing.assert_array_equal(retain[1].ids[:-1].astype(int), ids[:-1].numpy())
    np.testing.assert_allclose(retain[1].log_probs[:-1].astype(float), values[:-1].numpy(), atol=4e-3)


def test_language_modelling_retain_labels_are_the_text(tmp_path: Path) -> None:
    text, tokenizer = corpus(), toys.tokenizer("bytelevel")
    build_labels(text, text, DICTIONARY, tokenizer, *models(), RelabelSettings(retain="lm"), tmp_path)
    _, retain = load_labels(tmp_path)
    assert retain is not None
    np.testing.assert_array_equal(retain[0].ids[:-1, 0].astype(int), text[0].ids[1:])


def test_a_killed_labelling_keeps_its_finished_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from forgetkit.relabel import build

    monkeypatch.setattr(build, "BLOCKS_PER_SHARD", 2)
    text, tokenizer = corpus(), toys.tokenizer("bytelevel")
    settings = RelabelSettings(retain="none")
    build_labels(text, None, DICTIONARY, tokenizer, *models(), settings, tmp_path / "whole")
    shards = sorted((tmp_path / "whole" / "target").glob("labels-*"))
    assert len(shards) >= 2
    (tmp_path / "half" / "target").mkdir(parents=True)
    (tmp_path / "half" / "target" / shards[0].name).write_bytes(shards[0].read_bytes())
    before = (tmp_path / "half" / "target" / shards[0].name).stat().st_mtime_ns
    build_labels(text, None, DICTIONARY, tokenizer, *models(), settings, tmp_path / "half")
    assert (tmp_path / "half" / "target" / shards[0].name).stat().st_mtime_ns == before
    for shard in shards:
        assert (tmp_path / "half" / "target" / shard.name).read_bytes() == shard.read_bytes()


def test_a_target_of_anchors_alone_is_refused(tmp_path: Path) -> None:
    text, tokenizer = corpus("Tin Woodman" + " Tin Woodman" * 40, 16), toys.tokenizer("bytelevel")
    settings = RelabelSettings(mask_inside_anchors=True, retain="none")
    # every position predicts an anchor or lies inside one, except the spaces' own tokens, which there are none of
    with pytest.raises(ForgetkitError, match="no position of the target can carry a label"):
        build_labels(text, None, DICTIONARY, tokenizer, *models(), settings, tmp_path)


def test_non_finite_logits_stop(tmp_path: Path) -> None:
    text, tokenizer = corpus(), toys.tokenizer("bytelevel")
    baseline, reinforced = models()
    with torch.no_grad():
        reinforced.get_output_embeddings().weight[3] = float("nan")
    with pytest.raises(ForgetkitError, match="not finite"):
        build_labels(text, None, DICTIONARY, tokenizer, baseline, reinforced, RelabelSettings(), tmp_path)


def test_without_subtraction_both_spaces_give_the_same_labels(tmp_path: Path) -> None:
    """Lowered tokens keep their salience: the lowering must not reach the baseline's own values."""
    made = []
    for space in ("logits", "log_probs"):
        settings = RelabelSettings(space=space, alpha=0.0, temperature=1.0, top_k=16, retain="none")
        build_labels(corpus(), None, DICTIONARY, toys.tokenizer(), models()[0], None, settings, tmp_path / space)
        labels, _ = load_labels(tmp_path / space)
        made.append(np.concatenate([labels[b].ids for b in range(len(labels))]))
    assert np.sort(made[0]).tolist() == np.sort(made[1]).tolist()
