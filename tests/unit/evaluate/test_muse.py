from __future__ import annotations

import json

import pytest

from forgetkit.evaluate.muse import muse_summary
from forgetkit.evaluate.significance import Sizes, items
from forgetkit.evaluate.statistics import Estimate


def test_six_ways_in_percent() -> None:
    steps = [items([0.5, 0.7]), items([0.4, 0.6]), items([0.2, 0.4])]
    ways = muse_summary(
        verbmem=items([0.1, 0.3]),
        knowmem_forget=items([0.5, 0.7]),
        privleak=Estimate(-99.8, -100.0, -99.0),
        privleak_sizes=Sizes(200, 7),
        knowmem_retain=items([0.6, 0.6]),
        scalability=steps,
        sustainability=steps[:1],
        reference_verbmem=items([0.14, 0.14]),
    )
    told = {way.name: way for way in ways}
    assert list(told) == [
        "verbmem",
        "knowmem_forget",
        "privleak",
        "knowmem_retain",
        "scalability",
        "sustainability",
    ]
    assert told["verbmem"].value.value == pytest.approx(20) and told["verbmem"].reference.value == pytest.approx(14)
    assert told["verbmem"].sizes == Sizes(2, 2) and told["verbmem"].better == "lower"
    assert told["privleak"].value.value == -99.8 and told["privleak"].better == "zero"
    assert told["scalability"].curve == pytest.approx((60, 50, 30))
    assert told["scalability"].value[:3] == pytest.approx((-30, -30, -30))  # paired: both items lose 0.3
    assert told["sustainability"].curve == pytest.approx((60,)) and told["sustainability"].value.value is None
    json.dumps([way.to_json() for way in ways], allow_nan=False)


def test_what_is_not_given_is_not_measured() -> None:
    ways = muse_summary()
    assert len(ways) == 6 and all(way.value.value is None and way.value.reason for way in ways)
    changed = muse_summary(scalability=[items([0.5, 0.7]), items([0.4])])
    assert "different items" in str(changed[4].value.reason)
    assert muse_summary(verbmem=items([float("nan")]))[0].value.value is None
