from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from forgetkit.core.config import PRESETS, dump_settings, load_settings
from forgetkit.core.errors import ForgetkitError, Interrupted, suggest
from forgetkit.settings import FinetuneSettings, ReportSettings, Settings


def write(folder: Path, text: str) -> Path:
    path = folder / "file.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_nothing_given_is_the_defaults() -> None:
    assert load_settings() == Settings()


def test_order_preset_file_set(tmp_path: Path) -> None:
    path = write(tmp_path, "seed: 5\nfinetune:\n  epochs: 7\n  lora:\n    rank: 4\n")
    settings = load_settings(path, ["finetune.epochs=9", "finetune.lora.alpha=8"], "paper")
    assert settings.seed == 5
    assert settings.finetune.epochs == 9
    assert (settings.finetune.lora.rank, settings.finetune.lora.alpha) == (4, 8.0)
    assert settings.finetune.learning_rate == 1e-6  # from the preset, kept under both


def test_paper_preset_holds_the_papers_numbers() -> None:
    s = load_settings(preset="paper")
    assert s.corpus.block_tokens == 512
    assert (s.reinforce.epochs, s.reinforce.learning_rate) == (3, 3e-6)
    assert (s.reinforce.batch_blocks, s.reinforce.accumulation) == (8, 16)
    assert (s.relabel.alpha, s.relabel.space, s.relabel.labels, s.relabel.top_k) == (5.0, "logits", "hard", 1)
    assert s.relabel.mask_seen_anchors and s.relabel.mask_inside_anchors
    assert s.relabel.penalise_seen_counterparts > 0
    assert (s.relabel.subtract, s.relabel.retain) == ("everywhere", "none")
    assert (s.finetune.epochs, s.finetune.learning_rate) == (2, 1e-6)
    assert (s.finetune.batch_blocks, s.finetune.accumulation) == (8, 16)
    assert (s.finetune.retain_ratio, s.finetune.snapshots) == (0.0, 6)


@pytest.mark.parametrize("preset", PRESETS)
def test_dump_reads_back_unchanged(tmp_path: Path, preset: str) -> None:
    settings = load_settings(None, ["evaluate.heldout=[a b.txt, 'c#d.txt']", "seed=3"], preset)
    text = dump_settings(settings)
    assert load_settings(write(tmp_path, text)) == settings
    assert yaml.safe_load(text)["finetune"]["learning_rate"] == settings.finetune.learning_rate


@hypothesis_settings(deadline=None, max_examples=50)
@example(title="0E0", rate=1.0)
@given(
    st.text(st.characters(exclude_categories=["Cs"])),
    st.floats(min_value=0, exclude_min=True, allow_infinity=False),
)
def test_dump_reads_back_any_text_and_number(tmp_path_factory: pytest.TempPathFactory, title: str, rate: float) -> None:
    settings = Settings(report=ReportSettings(title=title), finetune=FinetuneSettings(learning_rate=rate))
    path = tmp_path_factory.mktemp("dump") / "file.yaml"
    path.write_text(dump_settings(settings), encoding="utf-8", newline="")
    assert load_settings(path) == settings


def test_dump_has_each_meaning_above_its_key() -> None:
    lines = dump_settings(Settings()).splitlines()
    at = lines.index("  block_tokens: 256")
    assert lines[at - 1].startswith("  # Tokens per block")
    documented = [n for n, line in enumerate(lines) if ": " in line and not line.lstrip().startswith("#")]
    assert all(lines[n - 1].lstrip().startswith("#") for n in documented)


BAD = [
    ("finetune:\n  epocs: 3", "file.yaml: finetune.epocs: unknown setting - did you mean finetune.epochs"),
    ("finetun:\n  epochs: 3", "file.yaml: finetun: unknown setting - did you mean finetune"),
    ("alpa: 3", "relabel.alpha"),
    (
        "finetune:\n  lora:\n    rnk: 3",
        "file.yaml: finetune.lora.rnk: unknown setting - did you mean finetune.lora.rank",
    ),
    ("finetune:\n  epochs: many", "file.yaml: finetune.epochs: expected integer"),
    ("finetune:\n  epochs: true", "file.yaml: finetune.epochs: expected a number, got True"),
    ("finetune:\n  epochs: -1", "file.yaml: finetune.epochs: expected greater than or equal to 0, got -1"),
    ("finetune:\n  learning_rate: .inf", "file.yaml: finetune.learning_rate: expected a finite number"),
    ("finetune:\n  learning_rate: 'inf'", "file.yaml: finetune.learning_rate: expected a finite number"),
    ("finetune:\n  schedule: fast", "one of constant, linear, cosine, got 'fast'"),
    ("finetune: 3", "file.yaml: finetune: expected a section"),
    ("finetune:", "file.yaml: finetune: expected a section"),
    ("evaluate:\n  heldout: [3]", "file.yaml: evaluate.heldout.0: expected"),
    ("seed: 1\nseed: 2", "file.yaml:2: not readable as YAML: seed is given twice"),
    ("a: &x 1\nb: *x", "aliases"),
    ("- 1", "expected sections"),
    ("1: 2", "a key must be text"),
    ("{", "file.yaml:1: not readable"),
    ("seed: !!python/object/apply:os.system [echo]", "not readable"),
    ("seed: 2024-99-99", "file.yaml"),
    ("seed: " + "[" * 5000, "not readable"),
]


@pytest.mark.parametrize(("text", "expected"), BAD)
def test_mistakes_in_a_file_are_one_line(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(ForgetkitError) as caught:
        load_settings(write(tmp_path, text))
    message = str(caught.value).replace(str(tmp_path) + "/", "")
    assert expected in message and "\n" not in message


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        ("finetune.epocs=3", "--set: finetune.epocs: unknown setting - did you mean finetune.epochs"),
        ("finetune.epochs=x", "--set: finetune.epochs: expected integer"),
        ("finetune.epochs", "expected section.key=value"),
        ("finetune.epochs=[", "--set: finetune.epochs"),
        ("finetune=3", "--set: finetune: expected a section"),
    ],
)
def test_mistakes_in_set_name_set(item: str, expected: str) -> None:
    with pytest.raises(ForgetkitError) as caught:
        load_settings(None, [item])
    assert expected in str(caught.value)


def test_set_blames_the_file_only_for_the_files_own_mistake(tmp_path: Path) -> None:
    path = write(tmp_path, "finetune:\n  epochs: 2\n")
    with pytest.raises(ForgetkitError, match=r"^--set"):
        load_settings(path, ["finetune.epochs=x"])


def test_set_values() -> None:
    settings = load_settings(
        None,
        [
            "finetune.learning_rate=3e-6",
            "report.title=123",
            "model.revision=1e5",
            "evaluate.reference=null",
            "evaluate.heldout=[a.txt, b.txt]",
            "corpus.join_lines=false",
            "relabel.retain=none",
            "anchors.llm.base_url=http://127.0.0.1:8000/v1",
            "finetune.epochs=1",
            "finetune.epochs=4",
        ],
    )
    assert settings.finetune.learning_rate == 3e-6 and settings.finetune.epochs == 4
    assert settings.report.title == "123" and settings.model.revision == "1e5"
    assert settings.evaluate.reference is None
    assert settings.evaluate.heldout == (Path("a.txt"), Path("b.txt"))
    assert settings.corpus.join_lines is False and settings.relabel.retain == "none"
    assert settings.anchors.llm.base_url == "http://127.0.0.1:8000/v1"


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(ForgetkitError, match="cannot be read"):
        load_settings(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"report: {title: caf\xe9}")
    with pytest.raises(ForgetkitError, match="UTF-8"):
        load_settings(tmp_path / "latin.yaml")
    assert load_settings(write(tmp_path, "# nothing\n")) == Settings()


def test_unknown_preset() -> None:
    with pytest.raises(ForgetkitError, match="did you mean paper"):
        load_settings(preset="papr")


def test_error_line() -> None:
    assert str(ForgetkitError("went\nwrong", "here", "do this")) == "here: went wrong - do this"
    assert str(ForgetkitError("wrong")) == "wrong"
    assert (ForgetkitError("x").exit_code, Interrupted(15).exit_code, Interrupted(2).exit_code) == (
        2,
        143,
        130,
    )
    assert suggest("epocs", ["epochs", "seed"]) == "did you mean epochs" and suggest("zzz", ["epochs"]) == ""
