"""Label quality on tiny models: yardsticks that must hold whatever the numbers are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from forgetkit.anchors.dictionary import Anchor, Dictionary
from forgetkit.bench import labels
from forgetkit.core.errors import ForgetkitError
from forgetkit.corpus.blocks import BlockedCorpus, block_documents
from forgetkit.corpus.readers import Document
from forgetkit.relabel.build import make_labeller
from forgetkit.settings import RelabelSettings
from tests import toys

PLAIN = RelabelSettings(
    alpha=0,
    dictionaries=1,
    temperature=1,
    contrast=0,
    prior=0,
    suppress_text=0,
    suppress_unseen_anchors=0,
    penalise_seen_counterparts=0,
    mask_seen_anchors=False,
    mask_inside_anchors=False,
    inner_suppression=0,
)
NOTHING = Dictionary(())
DOROTHY = Dictionary((Anchor(term="Dorothy", counterpart="Martha", kind="woman"),))


@pytest.fixture(scope="module")
def target() -> BlockedCorpus:
    return block_documents([Document("a", "a.txt", toys.TEXT * 2, "", "utf-8", ())], toys.tokenizer(), 32)


def measured(
    target: BlockedCorpus, dictionary: Dictionary, settings: RelabelSettings, model: int = 0, truth: int = 1
) -> labels.Positions:
    tokenizer = toys.tokenizer()
    blocks = labels.sample(target, 5)
    prepared = labels.prepared_blocks(target, blocks, dictionary, tokenizer, settings)
    labeller = make_labeller(toys.model(seed=model), None, dictionary, tokenizer, settings, target.bos_id, target)
    return labels.measure_labels(prepared, labeller, toys.model(seed=truth), label="labels")


def own(target: BlockedCorpus, model: int, truth: int = 1) -> labels.Positions:
    blocks = labels.sample(target, 5)
    return labels.measure_model(toys.model(seed=model), toys.model(seed=truth), target, blocks, pad_id=0, label="model")


def test_labels_without_dictionary_or_rules_are_the_baseline_itself(target: BlockedCorpus) -> None:
    made, base = measured(target, NOTHING, PLAIN), own(target, 0)
    assert np.isfinite(made.divergence).all()
    assert np.allclose(made.divergence, base.divergence, atol=1e-4)
    assert np.array_equal(made.agreement, base.agreement)


def test_the_reference_is_at_distance_zero_from_itself(target: BlockedCorpus) -> None:
    assert np.abs(own(target, 1).divergence).max() < 1e-5
    assert own(target, 1).agreement.all()
    assert own(target, 0).divergence.mean() > 0.1


def test_divergence_equals_a_slow_loop(target: BlockedCorpus) -> None:
    made, (block, *_) = own(target, 0), labels.sample(target, 5)
    ids = torch.tensor([target[block].ids.tolist()])  # this tokenizer puts no token before a text
    p = torch.softmax(toys.model(seed=1)(input_ids=ids).logits[0].float(), -1)
    q = torch.softmax(toys.model(seed=0)(input_ids=ids).logits[0].float(), -1)
    for position in range(len(target[block].ids) - 1):
        slow = sum(float(a) * float(torch.log(a) - torch.log(b)) for a, b in zip(p[position], q[position], strict=True))
        assert made.divergence[position] == pytest.approx(slow, abs=1e-4)


def test_masked_positions_have_no_value_and_classes_follow_the_anchors(target: BlockedCorpus) -> None:
    settings = PLAIN.model_copy(update={"mask_inside_anchors": True})
    made = measured(target, DOROTHY, settings)
    prepared = labels.prepared_blocks(target, labels.sample(target, 5), DOROTHY, toys.tokenizer(), settings)
    kinds = labels.classify(prepared)
    assert len(kinds) == len(made.divergence)
    inside = kinds == labels.CLASSES.index("inside")
    assert inside.any() and np.isnan(made.divergence[inside]).all()
    assert (kinds == labels.CLASSES.index("first")).any() and (kinds == labels.CLASSES.index("near")).any()


def test_the_gap_is_closed_by_the_truth_and_not_by_the_baseline(target: BlockedCorpus) -> None:
    base, other, truth = own(target, 0), own(target, 2), own(target, 1)
    other = labels.Positions(other.block, other.position, base.divergence / 2, other.agreement)
    kinds = np.full(len(base.divergence), labels.CLASSES.index("elsewhere"))
    assert labels.quality(base, base, other, kinds, 0)["all"]["closed"]["value"] == pytest.approx(0.0)
    assert labels.quality(other, base, other, kinds, 0)["all"]["closed"]["value"] == pytest.approx(1.0)
    assert labels.quality(truth, base, other, kinds, 0)["all"]["closed"]["value"] == pytest.approx(2.0, abs=1e-3)


def test_averaged_labels_are_no_farther_than_the_average_of_labels(target: BlockedCorpus) -> None:
    women = [("Dorothy", "Martha"), ("Scarecrow", "Ploughboy"), ("Toto", "Rex"), ("Lion", "Bear"), ("Oz", "Tom")]
    dictionary = Dictionary(tuple(Anchor(term=t, counterpart=c, kind="woman") for t, c in women))
    alone = [measured(target, one, PLAIN).divergence for one in (dictionary, dictionary.redealt(1))]
    both = measured(target, dictionary, PLAIN.model_copy(update={"dictionaries": 2})).divergence
    assert np.nanmax(np.abs(alone[0] - alone[1])) > 1e-3  # two dictionaries that differ
    assert np.nanmax(both - np.mean(alone, 0)) < 1e-4  # the divergence is convex (Jensen)
    assert np.nanmax(np.abs(both - alone[0])) > 1e-3


def test_stored_positions_are_refused_for_another_text(target: BlockedCorpus, tmp_path: Path) -> None:
    blocks, path = labels.sample(target, 5), tmp_path / "p.npz"
    prepared = labels.prepared_blocks(target, blocks, NOTHING, toys.tokenizer(), PLAIN)
    made = own(target, 0)
    labels.save_positions(path, made, "digest", blocks)
    back = labels.load_positions(path, prepared, "digest", blocks)
    assert np.allclose(back.divergence, made.divergence, rtol=1e-3, atol=1e-3)
    for digest, some in (("another", blocks), ("digest", blocks[:-1])):
        with pytest.raises(ForgetkitError, match="another text"):
            labels.load_positions(path, prepared, digest, some)
    with pytest.raises(ForgetkitError, match="missing"):
        labels.load_positions(tmp_path / "absent.npz", prepared, "digest", blocks)
