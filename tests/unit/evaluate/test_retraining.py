"""Distance to retraining: hand-computed ratios, and refusal of anything that was measured elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forgetkit.core.errors import ForgetkitError
from forgetkit.evaluate.losses import BlockDivergence
from forgetkit.evaluate.retraining import collect_seeds, distance, load_seeds


def apart(kl: list[float], agree: list[float], count: list[float]) -> BlockDivergence:
    return BlockDivergence(np.array(kl), np.array(agree), np.array(count))


def evaluation(reference: str, kl: list[float], blocks: list[int]) -> tuple[dict[str, Any], dict[str, Any]]:
    measured = {"models": {"reference": {"fingerprint": reference}}, "texts": {"target": {"sha256": "t"}}}
    own = {"divergence.target": {"divergence": kl, "agreement": [8.0, 8.0], "count": [10.0, 10.0]}}
    return measured, {"models": {"unlearned": own}, "blocks": {"target": blocks}}


def test_distance_is_a_ratio_of_token_means_by_hand() -> None:
    model = apart([4.0, 8.0], [6.0, 15.0], [10.0, 30.0])  # 12 / 40 = .3
    others = [apart([1.0, 3.0], [8.0, 24.0], [10.0, 30.0]), apart([3.0, 5.0], [9.0, 25.0], [10.0, 30.0])]  # 6 / 40
    found = distance(model, others, "divergence", seed=0)
    assert found.value == pytest.approx(2.0)
    assert found.low is not None and found.high is not None and found.low <= 2.0 <= found.high
    assert distance(model, others, "agreement", seed=0).value == pytest.approx((21 / 40) / (33 / 40))


def test_another_seed_is_at_distance_one_from_itself() -> None:
    other = apart([1.0, 3.0, 2.0], [8.0, 24.0, 9.0], [10.0, 30.0, 10.0])
    for what in ("divergence", "agreement"):
        found = distance(other, [other], what, seed=0)
        assert (found.value, found.low, found.high) == pytest.approx((1.0, 1.0, 1.0))


def test_without_other_seeds_it_is_withheld() -> None:
    found = distance(apart([1.0], [1.0], [2.0]), [], "divergence", seed=0)
    assert found.value is None and found.reason


def test_collected_seeds_are_read_back_for_the_same_blocks_of_the_same_text_only(tmp_path: Path) -> None:
    path = tmp_path / "seeds.json"
    both = {"r2": evaluation("R", [1.0, 3.0], [0, 5]), "r3": evaluation("R", [2.0, 2.0], [0, 5])}
    path.write_text(json.dumps(collect_seeds(both)))
    seeds = load_seeds(path)
    assert seeds.reference == "R"
    assert [one.divergence.tolist() for one in seeds.null("t", [0, 5])] == [[1.0, 3.0], [2.0, 2.0]]
    assert seeds.null("t", [0, 6]) == [] and seeds.null("other text", [0, 5]) == []


def test_seeds_of_different_references_are_refused() -> None:
    with pytest.raises(ForgetkitError, match="different references"):
        collect_seeds({"r2": evaluation("R", [1.0, 3.0], [0, 5]), "r3": evaluation("S", [1.0, 3.0], [0, 5])})


@pytest.mark.parametrize("text", ["{", "[]", '{"reference": "R"}', '{"reference": "R", "texts": {"t": {"r": {}}}}'])
def test_a_file_that_is_no_seeds_file_is_one_clear_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "seeds.json"
    path.write_text(text)
    with pytest.raises(ForgetkitError, match=r"seeds\.json"):
        load_seeds(path)
    with pytest.raises(ForgetkitError, match="no such file"):
        load_seeds(tmp_path / "absent.json")
