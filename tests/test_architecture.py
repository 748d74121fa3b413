"""The one-way rule: a module imports only from its left in ORDER, and nothing heavy is imported at start-up."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "forgetkit"
ORDER = [
    "__init__",
    "settings",
    "core",
    "corpus",
    "reinforce",
    "anchors",
    "relabel",
    "methods",
    "finetune",
    "evaluate",
    "report",
    "plan",
    "pipeline",
    "demo",
    "bench",
    "standalone",
    "cli",
    "__main__",
]
STAGES = {"corpus", "reinforce", "anchors", "relabel", "finetune", "evaluate", "report"}
# What a stage may read of another: types and pure functions of earlier parts, never its stage function.
STAGE_FUNCTIONS = {
    "forgetkit.reinforce.run",
    "forgetkit.anchors.build.build_dictionary",
    "forgetkit.relabel.build.build_labels",
    "forgetkit.finetune.run",
    "forgetkit.evaluate.run.evaluate",
    "forgetkit.report.build",
}


def part(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports(path: Path, top_level: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level else ast.walk(tree)
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


FILES = sorted(p for p in SOURCE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(SOURCE).as_posix())
def test_imports_only_from_the_left(path: Path) -> None:
    own = part(path)
    assert own in ORDER, f"{own} has no place in ORDER"
    if own == "__init__":
        return  # its lazy imports are the public interface
    for name in imports(path):
        if name.startswith("forgetkit."):
            other = name.split(".")[1]
            if other in ORDER and other not in ("__init__", own):
                assert ORDER.index(other) < ORDER.index(own), f"{path.name} imports {name}"


def test_every_part_of_the_order_exists() -> None:
    assert {part(p) for p in FILES} - {"presets"} == set(ORDER)


@pytest.mark.parametrize(
    "path", [p for p in FILES if part(p) in STAGES], ids=lambda p: p.relative_to(SOURCE).as_posix()
)
def test_stages_never_call_each_other(path: Path) -> None:
    for name in imports(path) & STAGE_FUNCTIONS:
        assert name.split(".")[1] == part(path), f"{path.name} imports {name}"


def test_help_and_settings_do_not_import_torch() -> None:
    code = (
        "import sys; import forgetkit, forgetkit.cli, forgetkit.settings, forgetkit.core.config;"
        "heavy = {'torch', 'transformers', 'matplotlib', 'numpy'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_prompt_injected_or_broken_download_path_cannot_load_pickles() -> None:
    for path in FILES:
        text = path.read_text()
        assert "pickle" not in {n.split(".")[0] for n in imports(path)}, path
        assert "torch.load(" not in text, path
        assert "trust_remote_code=True" not in text, path
