from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from forgetkit.core import doctor
from forgetkit.core.doctor import checks, release


def test_every_check_is_there_once_and_problems_come_with_a_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = checks(tmp_path / "not" / "yet" / "there")
    names = [check.name for check in found]
    expected = [
        "python",
        "torch",
        "transformers",
        "cores",
        "bf16",
        "memory",
        "disk",
        "gpu",
        "openai",
        "lm_eval",
        "bitsandbytes",
        "presets",
        "demo",
    ]
    assert names == expected
    for check in found:
        assert check.found and (check.status == "ok") == (check.remedy == ""), check
    status = {check.name: check.status for check in found}
    assert status["python"] == status["torch"] == status["transformers"] == status["presets"] == "ok"
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_versions_are_compared_as_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    assert release("2.13.0+cpu") == (2, 13) > release("2.9.1") == (2, 9)
    assert release("nightly") == (0, 0)
    monkeypatch.setattr(doctor.importlib.metadata, "version", lambda name: "2.9.1")
    torch = next(check for check in checks() if check.name == "torch")
    assert torch.status == "fail" and "2.10" in torch.remedy


def test_missing_pieces_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.resources, "files", lambda package: tmp_path)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: SimpleNamespace(free=5 * 10**8))
    status = {check.name: check.status for check in checks()}
    assert status["demo"] == status["presets"] == status["disk"] == "fail"


def test_importing_loads_no_torch() -> None:
    code = "import sys, forgetkit.core.doctor; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
