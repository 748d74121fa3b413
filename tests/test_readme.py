"""The README tells the truth: its commands run, its files exist, its table is the recorded one."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from forgetkit.bench.controls import CONTROLS
from tests import toys
from tests.e2e.tiny import RETAIN, SETTINGS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.S)


def commands() -> list[str]:
    lines = [line for kind, text in BLOCKS if kind == "bash" for line in text.splitlines()]
    return [line.partition("#")[0].strip() for line in lines if line.startswith("forgetkit ")]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the README's `my-model`, `my-texts` and `my-other-texts`, tiny."""
    folder = tmp_path_factory.mktemp("readme")
    toys.model("llama", 400, seed=1).save_pretrained(folder / "my-model")
    toys.tokenizer("bytelevel").save_pretrained(folder / "my-model")
    for name, text in (("my-texts", toys.TEXT * 3), ("my-other-texts", RETAIN * 8)):
        (folder / name).mkdir()
        (folder / name / "one.txt").write_text(text)
    (folder / "tiny.yaml").write_text(SETTINGS)
    return folder


def test_the_readme_has_commands() -> None:
    assert len(commands()) >= 8


def test_every_command_runs_in_order(place: Path) -> None:
    """As written; only `run` and `evaluate` get `--config` with tiny sizes, for the toy model's sake."""
    for command in commands():
        arguments = shlex.split(command)[1:]
        if arguments[0] in ("run", "plan", "evaluate"):
            arguments += ["--config", "tiny.yaml"]
        done = subprocess.run(
            [sys.executable, "-m", "forgetkit", *arguments],
            cwd=place,
            capture_output=True,
            text=True,
            env={**os.environ, "CI": "1"},
        )
        allowed = (0, 1) if arguments[0] == "doctor" or arguments[:2] == ["anchors", "lint"] else (0,)
        assert done.returncode in allowed, f"{command}\n{done.stdout}\n{done.stderr}"
        assert done.stdout.strip(), command


def test_the_python_example_runs_on_the_run_made_above(place: Path) -> None:
    example = next(text for kind, text in BLOCKS if kind == "python")
    tiny = example.replace('settings={"finetune": {"epochs": 2}}', "settings=yaml.safe_load(open('tiny.yaml'))")
    assert tiny != example
    tiny = tiny.replace('out="runs/mine"', 'out="runs/python"')
    code = "import yaml\n" + tiny
    done = subprocess.run([sys.executable, "-c", code], cwd=place, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "value" in done.stdout


def test_files_that_documents_point_to_exist() -> None:
    for document in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for link in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
            if not link.startswith("http"):
                assert (document.parent / link).exists(), f"{document.name}: {link}"
    tree = next(text for kind, text in re.findall(r"```(\w*)\n(.*?)```", README, re.S) if "pipeline.py" in text)
    for name in re.findall(r"^  ([\w./]+)", tree, re.M):
        assert (ROOT / "src" / "forgetkit" / name).exists() or (ROOT / name).exists(), name


def test_help_names_every_command() -> None:
    done = subprocess.run([sys.executable, "-m", "forgetkit", "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    for name in ("run", "plan", "demo", "inspect", "anchors", "relabel", "evaluate", "compare", "doctor"):
        assert re.search(rf"^  {name}\b", done.stdout, re.M), name
    for name in re.findall(r"forgetkit ([a-z]+)", README):
        assert re.search(rf"^  {name}\b", done.stdout, re.M) or name in ("python", "is"), name


def benchmark(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_is_the_recorded_demo() -> None:
    module = benchmark("record_demo")
    recorded = json.loads(module.RECORD.read_text())
    assert module.between(README) == module.table(recorded)
    assert recorded["health"]["unlearned"] == "healthy"
    promised = re.search(r"5 to (\d+) minutes", (ROOT / "Makefile").read_text())
    assert promised is not None
    assert sum(recorded["seconds"].values()) < 60 * int(promised[1])


def test_the_testbed_page_is_the_recorded_benchmark() -> None:
    module = benchmark("record_oz")
    records = [json.loads(path.read_text()) for path in module.RECORDS.values()]
    assert module.between(module.PAGE.read_text()) == module.page(records).strip()
    for told in records:
        assert told["models"]["unlearned"]["health"] == "healthy"
        assert all(told["models"][name]["health"] == "unhealthy" for name in CONTROLS)


def test_the_speed_page_is_the_recorded_benchmark() -> None:
    module = benchmark("speed")
    recorded = json.loads(module.RECORD.read_text())
    assert module.page(recorded) == module.PAGE.read_text()
    assert all(len(point["rounds"]) >= 5 for point in recorded["points"].values())
    assert all(row["agreement"]["A"] == 1 for point in recorded["points"].values() for row in point["rounds"])
