"""The page: honest, inert, self-contained, the same every time."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selectolax.lexbor import LexborHTMLParser as HTMLParser
from selectolax.lexbor import LexborNode as Node

from forgetkit.core.errors import ForgetkitError
from forgetkit.report import build
from forgetkit.settings import ReportSettings
from tests.unit.report import example

EVIL = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '" onmouseover="alert(1)',
    "'><svg/onload=alert(1)>",
    "</style><script src=//evil.example/x.js></script>",
    "<iframe src=https://evil.example>",
    "javascript:alert(1)",
    "{{ 7*7 }}{% for x in y %}",
    "<a href='https://evil.example'>x</a>",
    "</title><base href=//evil.example>",
    "\x1b[2J\x1b]0;t\x07",
    "\u202etxt\u2066",
    "<!-- -->",
    "&lt;script&gt;",
    "<meta http-equiv=refresh content=0;url=//e>",
)


def make(tmp_path: Path, measured: dict[str, Any] | None = None, **settings: Any) -> tuple[str, dict[str, Any]]:
    run = example.make_run(tmp_path / "run", measured)
    page = build(run, ReportSettings(**settings), run / "8-report")
    assert page == run / "8-report" / "index.html"
    return page.read_text(encoding="utf-8"), json.loads((run / "8-report" / "report.json").read_text(encoding="utf-8"))


def text(page: str) -> str:
    body = HTMLParser(page).body
    assert body is not None
    return re.sub(r"\s+", " ", body.text(separator=" "))


def section(page: str, name: str) -> str:
    node = HTMLParser(page).css_first(f"#{name}")
    return "" if node is None else re.sub(r"\s+", " ", node.text(separator=" "))


def test_page_says_the_verdict_first_then_the_numbers(tmp_path: Path) -> None:
    page, facts = make(tmp_path)
    assert facts["level"] == "partial" and facts["measures"][0]["way"] == pytest.approx(0.9138, abs=1e-3)
    words = text(page)
    order = [
        "Approximate and partial",
        "91% of the way",
        "The numbers",
        "Along the fine-tune",
        "The paper's own table",
        "What the model was taught instead",
        "Side by side",
        "Anchors",
        "What was not tested",
        "What was done",
    ]
    assert [o for o in order if o not in words] == []
    assert words.index("91% of the way") < words.index("The numbers")
    headings = [h.text() for h in HTMLParser(page).css("h2, h3")]
    assert [h for h in order if h in headings] == [h for h in headings if h in order]
    assert "0.0602" in section(page, "numbers") and "+0.3%" in section(page, "numbers")


def test_curves_end_at_the_last_step_of_the_fine_tune(tmp_path: Path) -> None:
    page, facts = make(tmp_path)
    assert facts["measures"][0]["steps"][-1] == [415, 0.0061]
    assert " 415 " in section(page, "steps") and "0.290" in section(page, "steps")
    assert len(HTMLParser(page).css("#steps svg")) == 5  # four curves and the paper's
    assert len(HTMLParser(page).css("#numbers svg")) == 1


def test_preview_completions_worst_and_anchors_are_there(tmp_path: Path) -> None:
    page, _ = make(tmp_path)
    assert "Alice" in section(page, "labels")
    assert "Tin Woodman" in section(page, "completions") and "King to help" in section(page, "completions")
    assert len(HTMLParser(page).css("#completions span[class^=p][title]")) > 100
    tree = HTMLParser(page)
    rows = [r.text(separator="|") for r in tree.css("#anchors table")[0].css("tbody tr")]
    assert len(rows) == 50 and "Dorothy" in rows[0] and "900" in rows[0]
    assert len(tree.css("#anchors details tbody tr")) == 13 and "Unwanted" not in section(page, "anchors")
    worst = [r.css_first("th").text() for r in tree.css("#worst tbody tr")]  # type: ignore[union-attr]
    assert len(worst) == 10 and worst[0] == "Winkie J"


def test_invalid_run_shows_no_forgetting_score_anywhere(tmp_path: Path) -> None:
    measured = example.results()
    measured["models"]["unlearned"]["health"] |= {
        "status": "unhealthy",
        "reasons": ["7 weights are not finite"],
    }
    page, facts = make(tmp_path, measured)
    assert facts["level"] == "INVALID" and all(m["group"] == "keep" for m in facts["measures"])
    words = text(page)
    assert "INVALID" in words and "7 weights are not finite" in words
    for score in ("0.0061", "0.0043", "3.412", "91%", "90% ", "44%"):
        assert score not in words, score
    assert not HTMLParser(page).css("#worst") and not re.search(r"\b0\.0061\b", json.dumps(facts))
    assert "+0.3%" in words  # the damage is still told


def test_without_health_no_score_either(tmp_path: Path) -> None:
    measured = example.results()
    del measured["models"]["unlearned"]["health"]
    page, facts = make(tmp_path, measured)
    assert facts["level"] == "not shown" and "91%" not in text(page) and "0.0061" not in text(page)


def test_without_reference(tmp_path: Path) -> None:
    page, facts = make(tmp_path, example.results(reference=False))
    assert facts["level"] == "no reference"
    assert "never read" not in section(page, "numbers") and "way there" not in section(page, "numbers")
    assert any("no such model was given" in s for s in facts["not_tested"])


def test_an_empty_run_is_told_as_not_measured(tmp_path: Path) -> None:
    page = build(tmp_path, ReportSettings(), tmp_path / "out").read_text(encoding="utf-8")
    assert "not shown" in text(page) and "Not measured" in text(page)


def test_damaged_input_is_one_line_with_the_file(tmp_path: Path) -> None:
    run = example.make_run(tmp_path / "run")
    (run / "6-evaluation" / "results.json").write_text('{"models": ', encoding="utf-8")
    with pytest.raises(ForgetkitError, match=r"results\.json"):
        build(run, ReportSettings(), tmp_path / "out")
    with pytest.raises(ForgetkitError, match="no such run"):
        build(tmp_path / "nowhere", ReportSettings(), tmp_path / "out")


def test_same_input_same_bytes(tmp_path: Path) -> None:
    first, second = make(tmp_path / "a"), make(tmp_path / "b")
    assert first == second


def poison(value: Any, counter: Iterator[int]) -> Any:
    """Every string of a file's contents replaced by a payload, except the ones that give it its shape."""
    keep = {"forget", "keep", "healthy", *(m[0] for m in example.METRICS)}
    if isinstance(value, dict):
        return {k: poison(v, counter) for k, v in value.items()}
    if isinstance(value, list):
        return [poison(v, counter) for v in value]
    if isinstance(value, str) and value not in keep:
        return EVIL[next(counter) % len(EVIL)] + value
    return value


def all_nodes(page: str) -> list[Node]:
    root = HTMLParser(page).root
    assert root is not None
    return list(root.traverse())


def check_inert(page: str) -> None:
    """No script, no handler, no address outside the page, no control or bidi character."""
    for node in all_nodes(page):
        assert node.tag not in (
            "script",
            "iframe",
            "img",
            "link",
            "base",
            "object",
            "embed",
            "form",
            "foreignobject",
            "image",
        )
        for name, value in node.attributes.items():
            assert not name.lower().startswith("on"), (node.tag, name)
            if name in ("href", "src", "xlink:href", "action", "data", "poster", "srcset", "formaction"):
                assert (value or "").startswith("#"), (node.tag, name, value)
            if name == "style":
                assert "url(" not in (value or "").replace("url(#", "")
    assert len(HTMLParser(page).css("meta[http-equiv]")) == 1
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u200e\u200f]", page)
    styles = [node.text() for node in HTMLParser(page).css("style")]
    assert not any("@import" in s or "url(" in s.replace("url(#", "") for s in styles)


@pytest.mark.parametrize("offset", range(len(EVIL)))
def test_hostile_text_everywhere_is_inert(tmp_path: Path, offset: int) -> None:
    counter = iter(range(offset, 10**6))
    run = example.make_run(tmp_path / "run", poison(example.results(), counter))
    for name in (
        "1-corpus/summary.json",
        "4-labels/preview.json",
        "6-evaluation/details.json",
        "4-labels/MANIFEST.json",
    ):
        path = run / name
        path.write_text(json.dumps(poison(json.loads(path.read_text(encoding="utf-8")), counter)), encoding="utf-8")
    evil = poison(example.anchors(), counter)
    (run / "3-anchors" / "anchors.yaml").write_text(json.dumps({"anchors": evil}), encoding="utf-8")
    page = build(run, ReportSettings(title=EVIL[offset] + "title"), run / "r").read_text(encoding="utf-8")
    check_inert(page)
    assert "<!-- -->" not in page and "49" not in (HTMLParser(page).css_first("title").text() or "")  # type: ignore[union-attr]
    if "\x1b" not in EVIL[offset] and "\u202e" not in EVIL[offset]:
        assert EVIL[offset][-4:] in text(page)  # shown, as text


def test_page_is_self_contained(tmp_path: Path) -> None:
    page, _ = make(tmp_path)
    check_inert(page)
    policy = HTMLParser(page).css_first("meta[http-equiv=Content-Security-Policy]")
    assert policy is not None and (policy.attributes["content"] or "").startswith(
        "default-src 'none'; style-src 'unsafe-inline'"
    )
    assert "http://" not in page and "https://" not in page
    ids = [node.attributes["id"] for node in HTMLParser(page).css("[id]")]
    assert len(ids) == len(set(ids))
    targets = re.findall(r'href="#([^"]+)"', page) + re.findall(r"url\(#([^)]+)\)", page)
    assert targets and set(targets) <= set(ids)
    assert "prefers-color-scheme: dark" in page and "@media print" in page


def test_pictures_take_their_colours_from_the_page(tmp_path: Path) -> None:
    page, _ = make(tmp_path)
    for node in HTMLParser(page).css("svg"):
        assert "currentColor" in (node.html or "") and "var(--accent)" in (node.html or "")
        assert not re.search(r"#0102|#000000|#ffffff", node.html or "")


def test_redacted_report_has_no_passage_completion_or_term(tmp_path: Path) -> None:
    page, facts = make(tmp_path, redact=True)
    whole = page + json.dumps(facts, ensure_ascii=False)
    sources = [example.PASSAGE, example.PROMPT, *example.SAID.values(), "Oz how to get back to Kansas again"]
    for source in sources:
        words = re.findall(r"[\w’']+", source)
        for i in range(len(words) - 2):
            assert not re.search(r"\W+".join(map(re.escape, words[i : i + 3])), whole), words[i : i + 3]
    for term in (
        "Dorothy",
        "Kansas",
        "Emerald",
        "Winkie",
        "Glinda",
        "01-wizard",
        "/home/me",
        "x.txt",
        "abab",
    ):
        assert term not in whole, term
    assert "91% of the way" in whole and "redacted" in page and "63 anchors" in text(page)


def test_unredacted_report_json_holds_no_passages_either(tmp_path: Path) -> None:
    _, facts = make(tmp_path)
    words = json.dumps(facts, ensure_ascii=False)
    assert "Tin Woodman" not in words and "lived in the midst" not in words and "Emerald" not in words
    assert "/home/me" not in words
