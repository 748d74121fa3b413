"""`forgetkit evaluate` with suites and `forgetkit compare`, as commands, on tiny models."""

from __future__ import annotations

import copy
import csv
import json
import signal
import sys
import time

import pytest
import torch

from forgetkit.cli import main
from tests import toys
from tests.e2e.tiny import RETAIN, Tiny
from tests.unit.evaluate import data_folder, test_utility
from tests.unit.evaluate.conftest import completion_line, probability_line, train, write_probes
from tests.unit.evaluate.test_utility import needs_lm_eval


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Healthy models 'model' (unlearned), 'other' (baseline), 'third' (reference); data in every layout; probes."""
    made = Tiny(tmp_path_factory.mktemp("evaluate"))
    fresh, again = (toys.model("llama", 400, seed=seed) for seed in (2, 3))
    with torch.no_grad():
        for parameter in (*fresh.parameters(), *again.parameters()):
            if parameter.ndim >= 2:
                parameter.div_(3.0)  # ordinary initial scale: learns faster
    before, never = train(fresh, toys.TEXT + RETAIN, 60), train(again, RETAIN, 60)
    after = train(copy.deepcopy(before), RETAIN, 8)
    for name, model in (("other", before), ("third", never), ("model", after)):
        model.save_pretrained(made.root / name)
        toys.tokenizer("bytelevel").save_pretrained(made.root / name)
    data = test_utility.write(made.root / "data")
    data_folder.tofu(data / "tofu")
    data_folder.muse(data / "muse")
    data_folder.wmdp(data)
    source = {"file": "one.txt", "quote": "x"}
    write_probes(
        made.root / "probes",
        completions=[completion_line(source=source)],
        probability=[probability_line(source=source)],
    )
    return made


def arguments(tiny: Tiny, out: str, *more: str, target: bool = True) -> list[str]:
    common = ["--out", out, "--config", str(tiny.config), "--set", "evaluate.passages=4"]
    common += ["--set", "evaluate.attack_texts=6", "--baseline", "other", "--reference", "third"]
    return ["evaluate", "model", *common, *(["--target", "target"] if target else []), *more]


def ok(tiny: Tiny, *command: str) -> str:
    """Standard output of a command that ran as a process of its own."""
    code, out, err = tiny.call(*command)
    assert code == 0, err
    return out


class Inside:
    """Commands in this very process: what is tested is what they say, and starting an interpreter takes seconds."""

    def __init__(self, tiny: Tiny, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        monkeypatch.chdir(tiny.root)
        monkeypatch.setenv("CI", "1")
        self.patch, self.capsys = monkeypatch, capsys

    def call(self, *command: str) -> tuple[int, str, str]:
        self.patch.setattr(sys, "argv", ["forgetkit", *command])
        before = signal.getsignal(signal.SIGTERM)
        self.capsys.readouterr()
        try:
            main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            signal.signal(signal.SIGTERM, before)
        told = self.capsys.readouterr()
        return code, told.out, told.err

    def ok(self, *command: str) -> str:
        code, out, err = self.call(*command)
        assert code == 0, err
        return out

    def refused(self, command: list[str], *words: str) -> None:
        """One line on standard error, exit code 2."""
        code, _, err = self.call(*command)
        lines = err.strip().splitlines()
        assert code == 2 and len(lines) == 1 and lines[0].startswith("error: "), err
        for word in words:
            assert word in lines[0], lines[0]


@pytest.fixture
def inside(tiny: Tiny, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Inside:
    return Inside(tiny, monkeypatch, capsys)


@needs_lm_eval
def test_paper(tiny: Tiny) -> None:
    out = ok(
        tiny,
        *arguments(
            tiny, "paper", "--suite", "paper", "--data-dir", "data", "--probes", "probes", "--heldout", "retain"
        ),
    )
    for words in (
        "familiarity (completion)",
        "familiarity (probability)",
        "arc_challenge (acc)",
        "mean of 7",
        "chance",
    ):
        assert words in out
    assert "Holm" in out and "results: paper/results.json" in out and "page:    paper/index.html" in out
    page = (tiny.root / "paper" / "index.html").read_text()
    assert "As the field measures it" in page and "mean of 7 utility tasks" in page and "Not measured" not in page
    results = json.loads((tiny.root / "paper" / "results.json").read_text())
    assert list(results["suites"]["families"]) == ["familiarity", "utility"]


def test_memorization_and_privacy(tiny: Tiny, inside: Inside) -> None:
    out = inside.ok(*arguments(tiny, "memorization", "--suite", "memorization"))
    for words in ("longest verbatim run", "exact memorisation", "perplexity", "extraction strength"):
        assert words in out
    out = inside.ok(*arguments(tiny, "privacy", "--suite", "privacy", "--holdout", "retain"))
    for words in ("min-k++ attack, AUROC", "gradient-norm", "reference (ratio)", "PrivLeak"):
        assert words in out
    out = inside.ok(*arguments(tiny, "privacy", "--suite", "privacy"))
    assert "privacy: not measured (no non-members" in out and "--holdout" in out


@needs_lm_eval
def test_full_takes_its_target_from_the_data_folder_and_survives_a_kill(tiny: Tiny, inside: Inside) -> None:
    command = arguments(tiny, "full", "--suite", "full", "--data-dir", "data", "--json", target=False)
    process = tiny.start(*command)
    work = tiny.root / "full" / "work"
    limit = time.monotonic() + 120
    while len(list(work.glob("*.safetensors"))) < 20 and time.monotonic() < limit and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    kept = {path: path.stat().st_mtime_ns for path in work.glob("*.safetensors")}
    assert len(kept) >= 20 and not (tiny.root / "full" / "results.json").exists()
    resumed = json.loads(ok(tiny, *command))
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert list(resumed["suites"]["families"]) == [
        "familiarity", "memorization", "knowledge", "privacy", "utility", "tofu", "muse", "wmdp",
    ]  # fmt: skip
    command[command.index("--out") + 1] = "anew"
    fresh = json.loads(inside.ok(*command))
    assert fresh["suites"] == resumed["suites"]


def test_compare_writes_table_csv_and_page(tiny: Tiny, inside: Inside) -> None:
    for name, model in (("one", "model"), ("two", "other")):
        command = arguments(tiny, name, "--heldout", "retain")
        command[1] = model
        inside.ok(*command)
    out = inside.ok("compare", "one", "two", "--csv", "out/table.csv", "--html", "out/page.html")
    assert "loss." in out and "two:" in out
    rows = list(csv.reader((tiny.root / "out" / "table.csv").open()))
    assert {len(row) for row in rows} == {9} and rows[0][0] == "measure"
    page = (tiny.root / "out" / "page.html").read_text()
    assert "<svg" in page and "two: unlearned" in page and "http" not in page.split("</style>")[1]
    inside.refused(["compare", "one", "--utility", "loss.heldot"], "--utility", "did you mean loss.heldout")
    inside.refused(["compare", "one", "--html", "one/results.json/x.html"], "cannot be written", "x.html")


def test_bad_input(tiny: Tiny, inside: Inside) -> None:
    inside.refused(arguments(tiny, "bad", "--suite", "memorisation"), "--suite", "did you mean memorization")
    task = arguments(tiny, "bad", "--suite", "paper", "--task", "hellaswg", "--data-dir", "data")
    inside.refused(task, "unknown utility task 'hellaswg'", "did you mean hellaswag")
    inside.refused(arguments(tiny, "bad", "--suite", "paper", "--data-dir", "gone"), "gone", "no such data folder")
    (tiny.root / "partial" / "piqa").mkdir(parents=True)
    missing = arguments(tiny, "bad", "--suite", "paper", "--data-dir", "partial", "--task", "piqa")
    inside.refused(missing, "partial", "piqa/validation.jsonl", "the utility tasks", "goal, sol1, sol2, label")
    inside.refused(arguments(tiny, "bad", target=False), "no target text", "--target", "--data-dir")
    assert not (tiny.root / "bad" / "results.json").exists()


def test_set_suggests_a_suite(tiny: Tiny, inside: Inside) -> None:
    inside.refused(arguments(tiny, "bad", "--set", "evaluate.suite=privcy"), "evaluate.suite", "did you mean privacy")


def test_lm_eval_missing_gives_the_install_line(tiny: Tiny, inside: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    command = arguments(tiny, "bad", "--suite", "paper", "--data-dir", "data")
    inside.refused(command, "lm-eval", "pip install 'forgetkit[eval]'")


def test_a_probe_with_an_empty_answer(tiny: Tiny, inside: Inside) -> None:
    from tests.unit.evaluate.conftest import cloze_line

    write_probes(tiny.root / "empty", cloze=[cloze_line(0), cloze_line(1, answer=" ")])
    inside.refused(arguments(tiny, "bad", "--probes", "empty"), "cloze.jsonl:2", "the answer is empty")


def test_a_reference_with_another_tokenizer(tiny: Tiny, inside: Inside) -> None:
    odd = tiny.root / "odd"
    toys.model("llama", 400, seed=4).save_pretrained(odd)
    toys.tokenizer("bytelevel", 350).save_pretrained(odd)
    command = arguments(tiny, "bad")
    command[command.index("third")] = "odd"
    inside.refused(command, "reference model has another tokenizer", "share one tokenizer")


def test_run_with_a_suite_measures_utility_along_the_fine_tune(tiny: Tiny, inside: Inside) -> None:
    pytest.importorskip("lm_eval")
    more = ["--set", "evaluate.suite=paper", "--set", f"evaluate.data_dir={tiny.root / 'data'}"]
    ok(tiny, *tiny.arguments(tiny.root / "run"), *more)
    results = json.loads((tiny.root / "run" / "6-evaluation" / "results.json").read_text())
    assert len(results["curve"]) == 3
    assert all({one["task"] for one in row["utility"]} >= {"arc_easy", "piqa"} for row in results["curve"])
    (tiny.root / "data" / "piqa" / "validation.jsonl").write_text(
        json.dumps({"goal": "open a door", "sol1": "knock", "sol2": "sing", "label": 0}) + "\n"
    )
    _, _, err = tiny.call(*tiny.arguments(tiny.root / "run"), *more)
    assert "5-unlearned: kept" in err and "6-evaluation: done" in err  # other data: measured again
    code, _, err = inside.call(
        *tiny.arguments(tiny.root / "run2"), "--set", "evaluate.suite=paper", "--set", "evaluate.data_dir=gone"
    )
    assert code == 2 and "no such data folder" in err and not (tiny.root / "run2" / "1-corpus").exists()
