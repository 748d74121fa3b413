"""Component 2d: each rule on a block written by hand, each switched on and off."""

from __future__ import annotations

from typing import Any

import numpy as np

from forgetkit.anchors.translate import Alignment
from forgetkit.relabel.consistency import LabelPlan, Role, Status, plan_block
from forgetkit.settings import RelabelSettings

# Original:   the Tin Wood man saw Tin Wood man .      (anchor 0 at tokens 1-3 and 5-7)
# Translated: the Clay er saw Clay er .                (counterpart 0 begins at tokens 1 and 4)
BEGINS = np.array([-1, 0, -1, -1, -1, 0, -1, -1, -1], np.int32)
INSIDE = np.array([0, 0, 1, 1, 0, 0, 1, 1, 0], bool)
MAPPED = np.array([0, -1, -1, 2, 3, -1, -1, 5, 6], np.int32)
TARGET_BEGINS = np.array([-1, 0, -1, -1, 0, -1, -1], np.int32)
TARGET_IDS = np.array([10, 50, 51, 11, 50, 51, 12], np.int32)
TELLTALE = {0: frozenset({7}), 1: frozenset({8, 7})}


def plan(**changes: Any) -> LabelPlan:
    paper: dict[str, Any] = {
        "mask_seen_anchors": True,
        "penalise_seen_counterparts": 3.0,
        "mask_inside_anchors": True,
        "suppress_unseen_anchors": 0.0,
    }
    alignment = Alignment(MAPPED, BEGINS, INSIDE, TARGET_BEGINS)
    return plan_block(alignment, TARGET_IDS, RelabelSettings(**{**paper, **changes}), TELLTALE)


def names(result: LabelPlan) -> list[str]:
    return [Status(int(s)).name for s in result.status]


def test_all_rules_of_the_paper() -> None:
    result = plan()
    assert names(result) == [
        "LABEL",  # "the" predicts the first occurrence: this is where recall is unlearned
        "INSIDE_ANCHOR",
        "INSIDE_ANCHOR",
        "LABEL",  # the anchor's end maps to the counterpart's end
        "SEEN_ANCHOR",  # "saw" predicts the second occurrence
        "SEEN_ANCHOR",
        "SEEN_ANCHOR",
        "LABEL",
        "NO_NEXT",
    ]
    assert result.source.tolist() == [0, -1, -1, 2, -1, -1, -1, 5, -1]
    assert result.role.tolist() == [
        Role.ANCHOR_BEGINS,
        Role.ANCHOR_CONTINUES,
        Role.ANCHOR_CONTINUES,
        Role.OTHER,
        Role.ANCHOR_BEGINS,
        Role.ANCHOR_CONTINUES,
        Role.ANCHOR_CONTINUES,
        Role.OTHER,
        Role.OTHER,
    ]


def test_rule_1_off_labels_repeated_anchors() -> None:
    assert names(plan(mask_seen_anchors=False))[4] == "LABEL"
    assert names(plan(mask_seen_anchors=False))[5] == "INSIDE_ANCHOR"


def test_rule_2_lowers_the_counterpart_from_the_first_occurrence_on() -> None:
    result = plan()
    rows = zip(result.lowered_ids, result.lowered_from, result.lowered_until, result.lowered_by, strict=True)
    assert [tuple(map(float, row)) for row in rows] == [(50, 1, 9, 3.0)]
    assert plan(penalise_seen_counterparts=0.0).lowered_ids.tolist() == []


def test_rule_3_off_labels_the_inside_of_unseen_anchors_only() -> None:
    result = plan(mask_inside_anchors=False)
    assert names(result)[1:3] == ["INNER", "INNER"]
    assert names(result)[5:7] == ["SEEN_ANCHOR", "SEEN_ANCHOR"]
    assert result.source[1:3].tolist() == [-1, -1]


def test_unseen_anchors_are_suppressed_until_they_occur() -> None:
    result = plan(penalise_seen_counterparts=0.0, suppress_unseen_anchors=4.0)
    rows = zip(result.lowered_ids, result.lowered_from, result.lowered_until, result.lowered_by, strict=True)
    # 7 begins anchor 0, which occurs at token 1; 8 begins anchor 1, which never does
    assert [tuple(map(float, row)) for row in rows] == [(7, 0, 1, 4.0), (8, 0, 9, 4.0)]


def test_two_anchors_keep_their_own_occurrences() -> None:
    begins = np.array([-1, 0, 1, 0, 1], np.int32)
    inside = np.zeros(5, bool)
    mapped = np.arange(5, dtype=np.int32)
    alignment = Alignment(mapped, begins, inside, begins.copy())
    result = plan_block(alignment, np.array([1, 2, 3, 2, 3], np.int32), RelabelSettings(suppress_unseen_anchors=0.0))
    assert names(result) == ["LABEL", "LABEL", "SEEN_ANCHOR", "SEEN_ANCHOR", "NO_NEXT"]
