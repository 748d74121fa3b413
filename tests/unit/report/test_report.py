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
    assert facts["level"] == "partial" and facts["measures"][0]["key"] == "familiarity.completion"
    assert facts["measures"][0]["way"] == pytest.approx(0.8935, abs=1e-3)
    words = text(page)
    order = [
        "Approximate and partial",
        "89% of the way",
        "The numbers",
        "Distance to retraining",
        "Along the fine-tune",
        "Where it still knows most",
        "Side by side",
        "What the model was taught instead",
        "Anchors",
        "What was not tested",
        "What was done",
    ]
    assert [o for o in order if o not in words] == []
    assert words.index("89% of the way") < words.index("The numbers")
    headings = [h.text() for h in HTMLParser(page).css("h2, h3")]
    assert [h for h in order if h in headings] == [h for h in headings if h in order]
    assert "0.0602" in section(page, "numbers") and "+0.3%" in section(page, "numbers")


def test_curves_end_at_the_last_step_of_the_fine_tune(tmp_path: Path) -> None:
    page, facts = make(tmp_path)
    assert facts["measures"][0]["steps"][-1] == [415, 0.0442]
    assert " 415 " in section(page, "steps") and "0.290" in section(page, "steps")
    assert len(HTMLParser(page).css("#steps svg")) == 8  # seven curves and the paper's
    assert len(HTMLParser(page).css("#numbers svg")) == 1


def test_familiarity_over_the_steps_stands_beside_the_papers_which_is_marked_as_theirs(tmp_path: Path) -> None:
    page, _ = make(tmp_path)
    ours, theirs = (cells(table) for table in HTMLParser(page).css("#steps .beside table"))
    names = ["familiarity (completion)", "familiarity (probability)", "cloze accuracy", "loss on held-out text"]
    assert ours[0] == ["step", *names]
    assert ours[1] == ["0", "0.312", "0.221", "0.713", "3.968"]
    assert ours[-1] == ["415", "0.0442", "0.0217", "0.331", "3.981"]
    assert theirs[1:] == [
        ["0", "0.290", "0.244"],
        ["20", "0.040", "0.062"],
        ["40", "0.020", "0.022"],
        ["60", "0.017", "0.012"],
        ["80", "0.007", "0.011"],
        ["100", "0.007", "0.008"],
        ["120", "0.007", "0.006"],
    ]
    assert "theirs, not ours" in section(page, "steps") and "Llama-2-7b-chat" in section(page, "steps")
    drawn = [t.text() for t in HTMLParser(page).css(".beside ~ *, #steps > figure text")]
    assert {"this run: completion", "this run: probability", "paper: completion"} <= set(drawn)


def test_an_older_run_without_probes_shows_recall_in_their_place(tmp_path: Path) -> None:
    page, facts = make(tmp_path, example.results(probes=False))
    assert facts["measures"][0]["key"] == "recall.probability" and "91% of the way" in text(page)
    assert "did not measure familiarity" in section(page, "steps") and facts["distance_to_retraining"] == []
    assert "Distance to retraining" not in text(page)
    ours = cells(HTMLParser(page).css("#steps .beside table")[0])
    assert ours[0] == ["step", "anchor recall (probability)", "loss on held-out text"]


def test_residual_is_shown_with_its_interval_and_withheld_with_its_reason(tmp_path: Path) -> None:
    page, facts = make(tmp_path)
    found = {m["key"]: m for m in facts["measures"]}
    assert found["cloze.accuracy"]["residual"] == pytest.approx((0.331 - 0.2431) / (0.713 - 0.2431))
    (row,) = [r for r in HTMLParser(page).css("#numbers tr") if r.text().startswith("cloze accuracy n")]
    told = [c.text(strip=True) for c in row.css("td")]
    assert told == ["0.713", "0.331", "0.243", "81%", "0.19", "0.17 to 0.22"]
    assert "chance\u00a00.0913" in row.text() and "beats nine or more false ones" in row.text()
    assert found["extraction.strength"]["residual"] is None
    (row,) = [r for r in HTMLParser(page).css("#numbers tr") if r.text().startswith("extraction")]
    assert f"Cannot tell: {example.WITHHELD}." in row.text() and "cannot tell" in row.text()
    assert "0 is as if never read, 1 is untouched" in section(page, "numbers")


def test_distance_to_retraining_is_shown_said_and_withheld_with_its_reason(tmp_path: Path) -> None:
    page, facts = make(tmp_path)
    words = section(page, "numbers")
    rows = [r for r in HTMLParser(page).css("#numbers table.four tbody tr") if r.text().startswith("on ")]
    assert [c.text() for c in rows[0].css("td")] == ["3.43", "3.12 to 3.84", "0.82", "0.79 to 0.84"]
    assert [c.text() for c in rows[1].css("td")] == ["1.32", "1.22 to 1.43", "–", ""]
    assert "No other seed was measured." in rows[1].text() and "1 is as close as retraining gets" in words
    assert any("3.4 times as far from a retrained model" in s for s in facts["sentences"])
    assert [d["value"] for d in facts["distance_to_retraining"]] == [3.427, 0.817, 1.318, None]


def test_measures_that_were_not_taken_are_told_once_per_reason(tmp_path: Path) -> None:
    measured = example.results()
    for key in ("familiarity.completion", "familiarity.probability", "cloze.accuracy"):
        nothing = {"value": None, "error": None, "n": 0, "reason": "no probes were given"}
        measured["models"]["unlearned"]["measures"][key] = nothing
    _, facts = make(tmp_path, measured)
    told = [s for s in facts["not_tested"] if "no probes were given" in s]
    assert told == ["Familiarity (completion); familiarity (probability); cloze accuracy: no probes were given."]


def cells(table: Node) -> list[list[str]]:
    return [[c.text(strip=True) for c in row.css("th, td")] for row in table.css("tr")]


def test_preview_completions_worst_and_anchors_are_there(tmp_path: Path) -> None:
    page, _ = make(tmp_path)
    assert "Alice" in section(page, "labels")
    assert "Tin Woodman" in section(page, "completions") and "King to help" in section(page, "completions")
    assert len(HTMLParser(page).css("#completions span[class^=p][data-note]")) > 100
    tree = HTMLParser(page)
    rows = [r.text(separator="|") for r in tree.css("#anchors table")[0].css("tbody tr")]
    assert len(rows) == 25 and "Dorothy" in rows[0] and "900" in rows[0]
    assert len(tree.css("#anchors details tbody tr")) == 38 and "Unwanted" not in section(page, "anchors")
    worst = [r.css_first("th").text() for r in tree.css("#worst details tbody tr")]  # type: ignore[union-attr]
    assert len(worst) == 10 and worst[0] == "Winkie J"


def test_the_ten_probes_with_most_left_beyond_the_never_read_model(tmp_path: Path) -> None:
    page, _ = make(tmp_path)
    rows = HTMLParser(page).css("#worst table.probes tbody tr")
    values = [[c.text() for c in row.css("td")] for row in rows]
    assert len(rows) == 10 and values[0] == ["1.00", "1.00", "0.00"] and values[1] == ["0.90", "0.53", "0.03"]
    assert [float(v[1]) - float(v[2]) for v in values] == sorted(
        (float(v[1]) - float(v[2]) for v in values), reverse=True
    )
    first, second = (re.sub(r"\s+", " ", row.css_first("th").text()) for row in rows[:2])  # type: ignore[union-attr]
    assert first.startswith("completion The rusty man") and "Nick Chopper, oil can" in first and "axe" not in first
    assert "It wrote (grade 3): Nick Chopper, who lived" in first
    assert "number 2 of them was called Billina 2" in second
    told = section(page, "worst")
    assert "Billina 3" not in told and "A quiet hint" not in told  # the never-read model knows it; nothing shown
    assert "Of 15 probes, the 10" in told


def test_worst_probes_without_a_reference_are_those_that_show_most(tmp_path: Path) -> None:
    page, _ = make(tmp_path, example.results(reference=False))
    run = tmp_path / "run"
    details = example.details()
    del details["models"]["reference"]
    (run / "6-evaluation" / "details.json").write_text(json.dumps(details), encoding="utf-8")
    page = build(run, ReportSettings(), run / "r").read_text(encoding="utf-8")
    rows = HTMLParser(page).css("#worst table.probes tbody tr")
    assert [c.text() for c in rows[1].css("td")] == ["0.90", "0.99"] and "beyond nothing" in section(page, "worst")


def test_arrays_of_another_length_are_left_out(tmp_path: Path) -> None:
    run = example.make_run(tmp_path / "run")
    details = example.details()
    details["models"]["unlearned"]["cloze"]["probability"].pop()
    details["models"]["unlearned"]["familiarity.completion"]["texts"].pop()
    (run / "6-evaluation" / "details.json").write_text(json.dumps(details), encoding="utf-8")
    page = build(run, ReportSettings(), run / "r").read_text(encoding="utf-8")
    assert "Billina" not in section(page, "worst") and "Nick Chopper, who lived" not in text(page)


def test_a_token_tells_what_else_the_model_had_in_mind(tmp_path: Path) -> None:
    page, _ = make(tmp_path)
    notes = [n.attributes["data-note"] or "" for n in HTMLParser(page).css("#completions [data-note]")]
    assert "Oz 10% · instead: Nonesuch 25%, <b>bold 3%" in notes and not HTMLParser(page).css("#completions b")
    assert any(note == "Wizard 40%" for note in notes) and "or tap it" in section(page, "completions")
    style = HTMLParser(page).css_first("style").text()  # type: ignore[union-attr]
    assert "attr(data-note)" in style


def test_completions_of_an_older_run_are_shaded_without_alternatives(tmp_path: Path) -> None:
    measured = example.results()
    for row in measured["completions"]:
        for made in row["models"].values():
            del made["alternatives"]
    page, _ = make(tmp_path, measured)
    assert "or tap it" not in section(page, "completions") and "instead" not in page.split("</style>")[1]
    assert len(HTMLParser(page).css("#completions [data-note]")) > 100


def test_line_ends_in_completions_are_signs_and_the_most_telling_come_first(tmp_path: Path) -> None:
    measured = example.results()
    last = measured["completions"][-1]
    last["prompt"], last["truth"] = "Who said\n\nthat?", " It was Glinda of Ozma."
    last["models"]["baseline"] |= {
        "text": " Glinda Ozma.\n\nHe",
        "tokens": [" Glinda", " Ozma.", "\n", "\n", "He"],
        "probabilities": [0.5] * 5,
        "alternatives": [{"\n": 0.4}] * 5,
    }
    page, _ = make(tmp_path, measured)
    first = HTMLParser(page).css_first("#completions article")
    assert first is not None and "… Who said ↵ that?" in first.text()
    assert "Glinda Ozma.↵↵ He" in first.css(".sides p")[1].text() and "instead: ↵ 40%" in (first.html or "")


def test_model_that_says_nothing_is_shown_saying_nothing(tmp_path: Path) -> None:
    measured = example.results()
    silent = {"text": "", "tokens": [], "probabilities": [], "alternatives": []}
    measured["completions"][0]["models"]["unlearned"] |= silent
    page, _ = make(tmp_path, measured)
    assert len(HTMLParser(page).css("#completions article")) == 4


def test_more_than_eight_completions_unfold(tmp_path: Path) -> None:
    measured = example.results()
    measured["completions"] *= 3
    page, _ = make(tmp_path, measured)
    tree = HTMLParser(page)
    assert len(tree.css("#completions article")) == 12 and len(tree.css("#completions details article")) == 4


def test_cost_is_told_in_time_and_machine(tmp_path: Path) -> None:
    page, facts = make(tmp_path)
    assert facts["cost"] == "All stages together took 1 min 2 s on cpu, 2 threads."
    assert facts["cost"] in section(page, "record")


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
    for score in (
        "0.0061",
        "0.0043",
        "3.412",
        "91%",
        "90% ",
        "44%",
        "0.0442",
        "0.331",
        "81%",
        "3.12 to",
        "3.4 times",
        "0.79 to",
        "Billina",
    ):
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
    assert facts["level"] == "no reference" and "Distance to retraining" not in text(page)
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
    run = example.make_run(tmp_path / "run", poison(example.suites(example.results()), counter))
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
    sources += [example.CLOZE, example.HINT, example.GAVE_AWAY, "She thanked the Tin"]
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
        "Billina",
        "Chopper",
        "oil can",
        "Woodman",
        "Nonesuch",
        "01-wizard",
        "/home/me",
        "x.txt",
        "abab",
    ):
        assert term not in whole, term
    assert "89% of the way" in whole and "redacted" in page and "63 anchors" in text(page)
    assert "3.4 times as far" in whole and "0.312" in section(page, "steps")


def test_unredacted_report_json_holds_no_passages_either(tmp_path: Path) -> None:
    _, facts = make(tmp_path)
    words = json.dumps(facts, ensure_ascii=False)
    assert "Tin Woodman" not in words and "lived in the midst" not in words and "Emerald" not in words
    assert "Billina" not in words and "Chopper" not in words and "Nonesuch" not in words
    assert "/home/me" not in words


def test_families_of_a_suite_lead_with_effects_and_stand_with_sizes_and_chance(tmp_path: Path) -> None:
    page, facts = make(tmp_path, example.suites(example.results()))
    told = section(page, "suite")
    assert "As the field measures it" in told and "Holm over all tests (3 against the baseline" in told
    rows = {r.css_first("th").text(): r for r in HTMLParser(page).css("#suite .suite tbody tr")}  # type: ignore[union-attr]
    exact = rows["exact memorisationn\u00a0=\u00a064 in 3 clusters, chance\u00a00.250"]
    told_of_it = [c.text() for c in exact.css("td")]
    assert told_of_it[:3] == ["0.610± 0.0120", "0.420± 0.0120", "0.380± 0.0120"]
    assert told_of_it[3] == "−0.190±\u00a00.0100 · −0.0600 to −0.0200 · p\u00a0<\u00a0.001"
    assert (
        told_of_it[4] == "+0.0400±\u00a00.0100 · −0.0600 to −0.0200 · p\u00a00.20 · not shown the same (too few items)"
    )
    (attack,) = [name for name in rows if name.startswith("min-k attack")]
    assert "n\u00a0=\u00a0200\u00a0+\u00a0180" in attack
    assert "no verbatim memorisation 17.3 15.1 to 19.2 14.2 lower" in told
    assert "Not measured: no data folder that holds TOFU." in told
    assert [family["name"] for family in facts["families"]] == ["memorization", "privacy", "utility", "muse", "tofu"]


def test_what_a_suite_measured_is_no_longer_told_as_untested(tmp_path: Path) -> None:
    _, without = make(tmp_path / "a")
    _, facts = make(tmp_path / "b", example.suites(example.results()))
    assert any("Membership inference: whether" in one for one in without["not_tested"])
    assert not any("Membership inference: whether" in one for one in facts["not_tested"])
    assert any("Stronger membership attacks" in one for one in facts["not_tested"])


def test_utility_tasks_over_the_steps_stand_beside_the_papers(tmp_path: Path) -> None:
    page, _ = make(tmp_path, example.suites(example.results()))
    ours, theirs = (cells(table) for table in HTMLParser(page).css("#steps h3 ~ .beside table"))
    assert ours[0] == ["task", "0", "100", "200", "300", "400", "415", "change"]
    assert ours[1][1:] == ["0.771", "0.770", "0.769", "0.768", "0.767", "0.768", "−0.003± 0.002"]
    assert "n\u00a0=\u00a01,838, chance\u00a00.500" in ours[1][0]
    assert theirs[1] == ["ARC-C", "0.440", "0.414"] and "theirs, not ours" in section(page, "steps")


def test_a_suite_of_an_unhealthy_model_shows_no_forgetting(tmp_path: Path) -> None:
    measured = example.suites(example.results())
    measured["models"]["unlearned"]["health"] |= {"status": "unhealthy", "reasons": ["NaN"]}
    page, facts = make(tmp_path, measured)
    told = section(page, "suite")
    assert "exact memorisation" not in told and "AUROC" not in told and "17.3" not in told
    assert (
        "piqa (acc)" in told
        and told.count("Left out, because the model's health") == 3
        and "0.42" not in json.dumps(facts["families"])
    )


def test_an_evaluation_alone_has_a_page_of_its_own(tmp_path: Path) -> None:
    example.make_run(tmp_path / "run", example.suites(example.results()) | {"versions": {"torch": "2.13.0"}})
    alone = tmp_path / "run" / "6-evaluation"
    (alone / "anchors.yaml").write_text((tmp_path / "run" / "3-anchors" / "anchors.yaml").read_text())
    page = build(alone, ReportSettings(), alone).read_text(encoding="utf-8")
    check_inert(page)
    assert "The model was measured against 168,123 tokens in 3 documents" in text(page)
    assert section(page, "labels") == "" and "Dorothy" in section(page, "anchors")
    assert "The measurements took 1 min 4 s" in section(page, "record") and "2.13.0" in section(page, "record")
    assert "dtype bfloat16" in section(page, "record") and "As the field measures it" in section(page, "suite")
