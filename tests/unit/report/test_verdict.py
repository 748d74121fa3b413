"""The words never go past the measurements."""

from __future__ import annotations

from dataclasses import replace

import pytest

from forgetkit.evaluate.compare import percent
from forgetkit.report.verdict import Distance, Evidence, Measure, judge, number

RECALL = Measure("recall.probability", "anchor recall", "forget", 0.06, 0.003, 0.001)
HELDOUT = Measure("loss.heldout", "loss on held-out text", "keep", 4.0, 4.02, 3.9)
GOOD = Evidence((RECALL, HELDOUT), healthy=True, documents=3, tokens=168_000, method="whp")


def with_recall(unlearned: float, **changes: object) -> Evidence:
    return replace(GOOD, measures=(replace(RECALL, unlearned=unlearned, **changes), HELDOUT))  # type: ignore[arg-type]


def test_way_is_the_share_from_baseline_to_reference() -> None:
    assert RECALL.way == pytest.approx((0.06 - 0.003) / (0.06 - 0.001))
    assert replace(RECALL, unlearned=0.06).way == 0
    assert replace(RECALL, unlearned=0.001).way == 1
    assert replace(RECALL, unlearned=0.0).way > 1  # type: ignore[operator]


def test_a_measure_that_cannot_tell_baseline_from_reference_has_no_way() -> None:
    assert replace(RECALL, noise=0.03).way is None  # |O - R| = .059 < 2 * .03
    assert replace(RECALL, noise=0.029).way is not None
    assert replace(RECALL, undefined="withheld").way is None


def test_cost_is_positive_for_harm_whatever_the_direction() -> None:
    assert HELDOUT.cost == pytest.approx(0.005)
    accuracy = Measure("agreement", "agreement", "keep", 0.8, 0.76, worse=-1, difference=(-0.08, 0.0))
    assert accuracy.cost == pytest.approx(0.05)
    assert accuracy.cost_interval == pytest.approx((0.0, 0.1))


@pytest.mark.parametrize(
    ("unlearned", "level"),
    [(0.003, "close to never read"), (0.02, "partial"), (0.05, "not shown"), (0.07, "not shown")],
)
def test_levels_by_way(unlearned: float, level: str) -> None:
    assert judge(with_recall(unlearned)).level == level


def test_close_needs_every_measure_low_cost_and_no_overshoot() -> None:
    loss = Measure("loss.target", "loss on the target", "forget", 2.9, 3.4, 4.0)
    assert judge(replace(GOOD, measures=(RECALL, loss, HELDOUT))).level == "partial"
    assert judge(replace(GOOD, measures=(RECALL, replace(HELDOUT, unlearned=4.2)))).level == "partial"
    assert judge(replace(GOOD, measures=(RECALL,))).level == "partial"  # cost unknown
    assert judge(with_recall(0.003, reference=0.01)).level == "partial"  # went past: way 1.14


def test_unhealthy_is_invalid_and_no_forgetting_number_is_said() -> None:
    verdict = judge(replace(GOOD, healthy=False, health_reasons=("sampled text repeats 90% of its 4-grams",)))
    said = " ".join((verdict.headline, *verdict.sentences))
    assert verdict.level == "INVALID" and not verdict.scores
    assert "repeats 90%" in said and "0.0030" not in said and "of the way" not in said


def test_unknown_health_withholds_forgetting_too() -> None:
    verdict = judge(replace(GOOD, healthy=None))
    assert verdict.level == "not shown" and not verdict.scores
    assert "of the way" not in " ".join(verdict.sentences)


def test_without_reference_nothing_is_claimed_about_never_having_read() -> None:
    verdict = judge(with_recall(0.003, reference=None))
    assert verdict.level == "no reference"
    said = " ".join((verdict.headline, *verdict.sentences))
    assert "of the way" not in said and "close to" not in said and "how low is low enough" in said


def test_withheld_ways_are_not_told_as_no_forgetting() -> None:
    verdict = judge(with_recall(0.003, undefined="withheld: reference not healthy"))
    assert verdict.level == "not shown" and "still close to" not in verdict.headline
    assert "reference not healthy" in " ".join(verdict.sentences)


def test_nothing_measured() -> None:
    verdict = judge(Evidence(healthy=True))
    assert verdict.level == "not shown"
    assert any("not measured" in s for s in verdict.sentences)


@pytest.mark.parametrize("healthy", [True, False, None])
@pytest.mark.parametrize("unlearned", [0.0, 0.001, 0.003, 0.02, 0.06, 0.2])
@pytest.mark.parametrize("reference", [0.001, None])
def test_claim_language(healthy: bool | None, unlearned: float, reference: float | None) -> None:
    verdict = judge(replace(with_recall(unlearned, reference=reference), healthy=healthy))
    said = " ".join((verdict.headline, *verdict.sentences)).lower()
    assert not any(word in said for word in ("erased", "deleted", "removed", "completely", "guarantee"))
    assert verdict.level == "INVALID" or "approximate" in said


def test_rounding_never_flatters() -> None:
    assert percent(0.999) == "99%" and percent(1.0) == "100%" and percent(0.9) == "90%"
    assert number(None) == number(float("nan")) == "not measured"
    assert number(0.00061) == "0.00061" and number(3.9812) == "3.981" and number(168123) == "168,123"


def test_residual_is_what_is_left_of_the_way() -> None:
    measure = replace(RECALL, interval=(0.91, 0.99))
    assert measure.residual == pytest.approx((0.003 - 0.001) / (0.06 - 0.001))
    assert measure.residual_interval == pytest.approx((0.01, 0.09))
    assert replace(RECALL, undefined="withheld").residual is None and RECALL.residual_interval is None


MANY = tuple(
    Measure(f"m{i}", f"measure {i}", "forget", 1.0, left, 0.0) for i, left in enumerate((0.05, 0.08, 0.4, 0.02, 0.07))
)


def test_of_many_measures_the_first_and_the_one_furthest_behind_are_told() -> None:
    said = judge(replace(GOOD, measures=(*MANY, HELDOUT))).sentences
    assert "Of 5 measures of forgetting, 4 went at least 90% of the way" in said[1]
    assert "furthest behind is measure 2, with 60%" in said[1]
    assert [s.split(" went")[0] for s in said if s.startswith("Measure")] == ["Measure 0", "Measure 2"]


def test_of_many_measures_those_past_and_those_that_cannot_tell_are_told_too() -> None:
    past = replace(MANY[3], unlearned=-0.3)
    silent = replace(MANY[4], undefined="too few probes")
    said = judge(replace(GOOD, measures=(*MANY[:3], past, silent, HELDOUT))).sentences
    assert "Of 4 measures" in said[1] and "Measure 4 cannot tell (the table says why)" in said[1]
    assert any(s.startswith("Measure 3 went from 1 to -0.300, past the 0") for s in said)


def test_many_measures_without_any_way() -> None:
    none = tuple(replace(m, reference=None) for m in MANY)
    verdict = judge(replace(GOOD, measures=(*none, HELDOUT)))
    assert verdict.level == "no reference" and "5 ways; each is in the table" in verdict.sentences[1]


def test_distance_to_retraining_is_said_of_the_target_only_and_never_of_a_sick_model() -> None:
    far = Distance("target", "divergence", 2.04, (1.9, 2.2))
    evidence = replace(GOOD, distances=(Distance("heldout", "divergence", 1.1), far))
    said = " ".join(judge(evidence).sentences)
    assert "2.0 times as far from a retrained model's" in said and "(95% interval 1.9 to 2.2)" in said
    assert "1.1" not in said
    assert "times as far" not in " ".join(judge(replace(evidence, healthy=False)).sentences)
    withheld = replace(evidence, distances=(replace(far, value=None, reason="no other seed"),))
    assert "times as far" not in " ".join(judge(withheld).sentences)
