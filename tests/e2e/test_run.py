"""The whole pipeline through the real command line: files, resuming, killing, editing, and bad input."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.e2e.tiny import Tiny

STAGES = ["1-corpus", "2-reinforced", "3-anchors", "4-labels", "5-unlearned", "6-evaluation", "8-report"]
MODEL = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
FILES = {
    "run.json",
    "settings.yaml",
    ".lock",
    *(f"{stage}/MANIFEST.json" for stage in STAGES),
    "1-corpus/summary.json",
    *(f"1-corpus/{part}/{name}" for part in ("target", "retain") for name in ("blocks.safetensors", "documents.jsonl")),
    "2-reinforced/log.jsonl",
    *(f"2-reinforced/model/{name}" for name in MODEL),
    "3-anchors/anchors.yaml",
    "3-anchors/proposed.yaml",
    "4-labels/preview.json",
    "4-labels/summary.json",
    *(
        f"4-labels/{part}/{name}"
        for part in ("target", "retain")
        for name in ("index.json", "labels-0000000.safetensors")
    ),
    "5-unlearned/log.jsonl",
    *(f"5-unlearned/model/{name}" for name in MODEL),
    "6-evaluation/results.json",
    "6-evaluation/details.json",
    "8-report/index.html",
    "8-report/report.json",
}


def files(run: Path) -> set[str]:
    return {p.relative_to(run).as_posix() for p in run.rglob("*") if p.is_file()}


def weights(run: Path) -> str:
    return hashlib.sha256((run / "5-unlearned" / "model" / "model.safetensors").read_bytes()).hexdigest()


def settled(err: str) -> dict[str, str]:
    """Stage -> 'done' or 'kept', from what the run said."""
    found = {}
    for line in err.splitlines():
        name, _, rest = line.partition(": ")
        if name in STAGES and rest != "...":
            found[name] = rest.split()[0].rstrip(",")
    return found


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A finished run. Tests that change it restore what they change or come last."""
    tiny = Tiny(tmp_path_factory.mktemp("tiny"))
    code, out, err = tiny.call(*tiny.arguments())
    assert code == 0, err
    assert "report:" in out
    return tiny


def test_the_exact_set_of_files(done: Tiny) -> None:
    found = files(done.out)
    snapshots = {name for name in found if name.startswith("5-unlearned/snapshots/")}
    assert found - snapshots == FILES
    assert {Path(name).name for name in snapshots} == MODEL
    assert len({name.split("/")[2] for name in snapshots}) == 2


def test_the_model_loads_with_nothing_of_ours(done: Tiny) -> None:
    folder = done.out / "5-unlearned" / "model"
    code = (
        "import sys; from transformers import AutoModelForCausalLM as M, AutoTokenizer as T;"
        f"m=M.from_pretrained({str(folder)!r}); t=T.from_pretrained({str(folder)!r});"
        "m.generate(**t('Dorothy', return_tensors='pt'), max_new_tokens=2);"
        "assert not [n for n in sys.modules if n.startswith('forgetkit')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd="/", env=dict(os.environ))
    assert (folder / "tokenizer.json").read_bytes() == (done.model / "tokenizer.json").read_bytes()
    assert type(AutoModelForCausalLM.from_pretrained(folder)).__name__ == "LlamaForCausalLM"
    assert AutoTokenizer.from_pretrained(folder).get_vocab() == AutoTokenizer.from_pretrained(done.model).get_vocab()


def test_results_are_strict_json_with_every_measure(done: Tiny) -> None:
    text = (done.out / "6-evaluation" / "results.json").read_text()
    results = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert {"baseline", "unlearned"} <= set(results["models"])
    assert len(results["curve"]) >= 2


def test_the_same_command_again_redoes_nothing(done: Tiny) -> None:
    before = weights(done.out)
    code, _, err = done.call(*done.arguments())
    assert code == 0, err
    assert settled(err) == dict.fromkeys(STAGES, "kept")
    assert weights(done.out) == before


def test_a_changed_setting_redoes_exactly_what_depends_on_it(done: Tiny) -> None:
    code, _, err = done.call(*done.arguments(), "--set", "report.title=Another")
    assert code == 0, err
    assert settled(err) == {**dict.fromkeys(STAGES, "kept"), "8-report": "done"}
    code, _, err = done.call(*done.arguments(), "--set", "evaluate.completions=1")
    assert settled(err) == {**dict.fromkeys(STAGES, "kept"), "6-evaluation": "done", "8-report": "done"}
    code, _, err = done.call(*done.arguments())  # back to what it was
    assert code == 0, err


def test_a_persons_edit_of_the_dictionary_redoes_the_labels_and_survives_a_rebuild(done: Tiny, tmp_path: Path) -> None:
    from forgetkit.anchors.dictionary import Dictionary

    tiny = Tiny(tmp_path)
    code, out, err = tiny.call("anchors", "build", *tiny.arguments()[1:])
    assert code == 0, err
    path = tiny.out / "3-anchors" / "anchors.yaml"
    assert str(path) in out
    assert not (tiny.out / "4-labels").exists()
    first = Dictionary.load(path).kept[0]
    text = path.read_text()
    assert f"counterpart: {first.counterpart}\n" in text
    path.write_text(text.replace(f"counterpart: {first.counterpart}\n", "counterpart: Bartholomew\n", 1))
    code, _, err = tiny.call(*tiny.arguments())
    assert code == 0, err
    assert settled(err)["3-anchors"] == "kept"
    rebuilt = ["--set", "anchors.contexts=1"]
    code, _, err = tiny.call(*tiny.arguments(), *rebuilt)
    assert code == 0, err
    assert settled(err)["3-anchors"] == "done"
    assert settled(err)["4-labels"] == "kept"
    assert {a.term: a.counterpart for a in Dictionary.load(path).kept}[first.term] == "Bartholomew"


def test_another_target_in_the_same_folder_is_refused(done: Tiny) -> None:
    arguments = done.arguments()
    arguments[arguments.index(str(done.target))] = str(done.retain)
    code, _, err = done.call(*arguments)
    assert code == 2
    assert "belongs to a run of model" in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.slow
def test_kill_9_at_any_moment_and_the_same_command_give_the_same_bits(done: Tiny, tmp_path: Path) -> None:
    """Killed again and again, at first in this stage, then in that; every byte of the weights must agree."""
    expected = weights(done.out)
    other = tmp_path / "killed"
    kills = 0
    moments = [("2-reinforced: ...", 0.1), ("3-anchors: ...", 0.0), ("4-labels: ...", 0.05), ("5-unlearned: ...", 0.05)]
    for line_before, delay in [*moments, ("5-unlearned: ...", 0.3), ("6-evaluation: ...", 0.1)]:
        process = done.start(*done.arguments(other))
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith(line_before):
                break
        time.sleep(delay)
        if process.poll() is None:
            process.kill()
            kills += 1
        process.communicate()
    code, _, err = done.call(*done.arguments(other))
    assert code == 0, err
    assert kills >= 3, "the run was too quick to be killed"
    assert weights(other) == expected
    assert files(other) == files(done.out)
    assert not list(other.glob(".tmp-*")) + list(other.glob(".work-*"))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_with_their_code_and_the_command_that_resumes(
    done: Tiny, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    process = done.start(*done.arguments(tmp_path / "stopped"))
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("2-reinforced"):
            break
    time.sleep(0.3)
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == code, err
    assert "To go on: forgetkit run" in err
    assert "Traceback" not in err


def test_two_runs_of_one_folder(done: Tiny, tmp_path: Path) -> None:
    first = done.start(*done.arguments(tmp_path / "shared"))
    try:
        assert first.stderr is not None
        for line in first.stderr:
            if line.startswith("1-corpus"):
                break
        first.send_signal(signal.SIGSTOP)  # so that it cannot finish before the second one asks
        code, _, err = done.call(*done.arguments(tmp_path / "shared"))
        assert code == 2
        assert f"process {first.pid}" in err
    finally:
        first.kill()
        first.communicate()


def test_preset_paper_runs_with_the_papers_labels(tmp_path: Path) -> None:
    tiny = Tiny(tmp_path)
    small = tiny.config.read_text().splitlines()
    keep = [
        line for line in small if line.split(":")[0] in ("seed", "threads", "model", "corpus", "anchors", "evaluate")
    ]
    tiny.config.write_text("\n".join(keep))
    code, _, err = tiny.call(*tiny.arguments(), "--preset", "paper")
    assert code == 0, err
    chosen = json.loads((tiny.out / "4-labels" / "MANIFEST.json").read_text())["settings"]["relabel"]
    expected = {"alpha": 5.0, "space": "logits", "labels": "hard", "subtract": "everywhere", "retain": "none"}
    expected |= {"mask_seen_anchors": True, "mask_inside_anchors": True, "suppress_unseen_anchors": 0.0}
    assert {key: chosen[key] for key in expected} == expected
    status = json.loads((tiny.out / "4-labels" / "summary.json").read_text())
    assert "retain" not in status
    assert "inner" not in status["target"]["positions"]
    rows = [json.loads(line) for line in (tiny.out / "5-unlearned" / "log.jsonl").read_text().splitlines()]
    assert {row["lr"] for row in rows} == {1e-6}
