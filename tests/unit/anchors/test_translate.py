from __future__ import annotations

from forgetkit.anchors.dictionary import Anchor, Dictionary
from forgetkit.anchors.translate import Match, Matcher, translate
from tests.toys import TEXT

TWO = Dictionary((Anchor(term="Oz", counterpart="the hills"), Anchor(term="Tin Woodman", counterpart="Miller")))


def test_segments_tile_both_texts() -> None:
    matches = Matcher(TWO).find(TEXT)
    for start in range(0, len(TEXT), 37):
        for end in (start, start + 1, start + 50, len(TEXT)):
            end = min(end, len(TEXT))
            got = translate(TEXT, matches, start, end)
            rows = got.segments
            assert rows.shape == (len(rows), 5)
            assert (rows[:-1, 1] == rows[1:, 0]).all()
            assert (rows[:-1, 3] == rows[1:, 2]).all()
            assert (rows[:, 1] > rows[:, 0]).all()
            covered = (rows[-1, 1], rows[-1, 3]) if len(rows) else (0, 0)
            assert covered == (end - start, len(got.text))
            assert got.source == TEXT[start:end]
            for s0, s1, t0, t1, anchor in rows.tolist():
                if anchor < 0:
                    assert got.source[s0:s1] == got.text[t0:t1]
                else:
                    assert got.text[t0:t1] == TWO.kept[anchor].counterpart


def test_windows_put_together_are_the_whole() -> None:
    matches = Matcher(TWO).find(TEXT)
    cut = TEXT.index(" said")
    parts = [translate(TEXT, matches, 0, cut).text, translate(TEXT, matches, cut).text]
    assert "".join(parts) == translate(TEXT, matches).text


def test_anchor_cut_by_either_edge_is_clipped_and_written_in_full() -> None:
    text = "a Tin Woodman b"
    matches = Matcher(TWO).find(text)
    left, right = translate(text, matches, 0, 6), translate(text, matches, 6)
    assert (left.text, right.text) == ("a Miller", "Miller b")
    assert left.segments.tolist() == [[0, 2, 0, 2, -1], [2, 6, 2, 8, 1]]
    assert right.segments.tolist() == [[0, 7, 0, 6, 1], [7, 9, 6, 8, -1]]
    assert (left.cut_start, left.cut_end) == (False, True)
    assert (right.cut_start, right.cut_end) == (True, False)
    inner = translate(text, matches, 4, 7)
    assert (inner.text, inner.cut_start, inner.cut_end) == ("Miller", True, True)


def test_anchor_that_only_touches_the_window_is_outside() -> None:
    text = "Oz and Oz"
    got = translate(text, Matcher(TWO).find(text), 2, 7)
    assert (got.text, got.segments[:, 4].tolist()) == (" and ", [-1])


def test_adjacent_anchors() -> None:
    got = translate("abcd", [Match(0, 2, 0, "X"), Match(2, 4, 1, "YYY")])
    assert got.text == "XYYY"
    assert got.segments.tolist() == [[0, 2, 0, 1, 0], [2, 4, 1, 4, 1]]
