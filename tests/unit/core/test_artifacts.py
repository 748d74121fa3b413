from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from forgetkit.core import artifacts
from forgetkit.core.artifacts import (
    MANIFEST,
    clean_orphans,
    commit,
    find_complete,
    hash_json,
    read_manifest,
    run_lock,
    verify,
    work_folder,
)
from forgetkit.core.errors import ForgetkitError

OLD, NEW = "a" * 64, "b" * 64


def make(run: Path, fingerprint: str, word: str = "x", **extra: object) -> None:
    with commit(run, "4-labels", fingerprint, {"1-corpus": "c" * 64}, extra) as folder:
        (folder / "shards").mkdir()
        (folder / "shards" / "0.bin").write_bytes(word.encode() * 1000)
        (folder / "summary.json").write_text(json.dumps({"word": word}))


def hidden(run: Path) -> list[str]:
    return sorted(p.name for p in run.iterdir() if p.name.startswith((".tmp", ".stale", ".work", ".corrupt")))


def test_commit_writes_a_manifest_that_verifies(tmp_path: Path) -> None:
    make(tmp_path, NEW, seed=3, threads=2, device="cpu", settings={"alpha": 1.5}, versions={"a": "1"}, note="n")
    folder = find_complete(tmp_path, "4-labels", NEW)
    assert folder == tmp_path / "4-labels"
    manifest = verify(folder)
    assert (manifest.seed, manifest.threads, manifest.device) == (3, 2, "cpu")
    assert manifest.settings == {"alpha": 1.5} and manifest.extra == {"note": "n"}
    assert manifest.parents == {"1-corpus": "c" * 64}
    assert set(manifest.files) == {"shards/0.bin", "summary.json"}
    assert manifest.files["shards/0.bin"].bytes == 1000
    assert hidden(tmp_path) == []


def test_other_fingerprint_is_not_complete_and_stays(tmp_path: Path) -> None:
    make(tmp_path, OLD)
    assert find_complete(tmp_path, "4-labels", NEW) is None
    assert find_complete(tmp_path, "4-labels", OLD) is not None


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_exception_in_the_block_leaves_the_old_artifact(tmp_path: Path, error: BaseException) -> None:
    make(tmp_path, OLD)
    with pytest.raises(type(error)), commit(tmp_path, "4-labels", NEW, {}, {}) as folder:
        (folder / "half").write_text("half")
        raise error
    assert find_complete(tmp_path, "4-labels", OLD) is not None
    assert hidden(tmp_path) == []


class Counter:
    """Stands before os.rename and os.fsync; acts on the n-th call to either."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, act: Callable[[], None], at: int, after: bool) -> None:
        self.calls = 0
        for name in ("rename", "fsync"):
            real = getattr(os, name)

            def shim(*args: object, _real: Callable[..., None] = real) -> None:
                self.calls += 1
                if self.calls == at and not after:
                    act()
                _real(*args)
                if self.calls == at and after:
                    act()

            monkeypatch.setattr(os, name, shim)


def operations(tmp_path: Path, replace: bool) -> int:
    run = tmp_path / "count"
    if replace:
        make(run, OLD, "o")
    with pytest.MonkeyPatch.context() as patch:
        counter = Counter(patch, lambda: None, -1, False)
        make(run, NEW, "n")
    return counter.calls


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_disk_error_at_every_operation(tmp_path: Path, replace: bool, number: int) -> None:
    total = operations(tmp_path, replace)
    assert total >= 7  # two files, manifest, two folders, rename, parent: the counter really sees the protocol

    def act() -> None:
        raise OSError(number, os.strerror(number))

    for at in range(1, total + 1):
        run = tmp_path / f"run{at}"
        if replace:
            make(run, OLD, "o")
        with pytest.MonkeyPatch.context() as patch:
            Counter(patch, act, at, False)
            with pytest.raises(ForgetkitError) as caught:
                make(run, NEW, "n")
        assert "disk" in str(caught.value) and str(run) in str(caught.value)
        old, new = find_complete(run, "4-labels", OLD), find_complete(run, "4-labels", NEW)
        if replace:
            assert (old is None) != (new is None)
        assert new is None or at == total  # only the last sync comes after the new one is in place
        clean_orphans(run)
        assert hidden(run) == []
        make(run, NEW, "n")
        assert find_complete(run, "4-labels", NEW) is not None


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("after", [False, True])
def test_killed_at_every_operation(tmp_path: Path, replace: bool, after: bool) -> None:
    """A process that dies on the spot (no handlers, no clean-up) leaves old or new, never a mixture."""
    total = operations(tmp_path, replace)
    for at in range(1, total + 1):
        run = tmp_path / f"run{at}"
        if replace:
            make(run, OLD, "o")
        child = os.fork()
        if child == 0:
            with pytest.MonkeyPatch.context() as patch:
                Counter(patch, lambda: os._exit(137), at, after)
                make(run, NEW, "n")
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 137
        run.mkdir(exist_ok=True)
        with run_lock(run):
            clean_orphans(run)
        assert hidden(run) == []
        old, new = find_complete(run, "4-labels", OLD), find_complete(run, "4-labels", NEW)
        assert hidden(run) == [], "nothing half-written may be found under the stage's name"
        if replace:
            assert (old is None) != (new is None)
        make(run, NEW, "n")
        complete = find_complete(run, "4-labels", NEW)
        assert complete is not None and (complete / "shards" / "0.bin").read_bytes() == b"n" * 1000
        assert hidden(run) == []


def test_everything_is_synced_before_the_rename_and_the_manifest_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    sync, rename = os.fsync, os.rename

    def record_sync(handle: int) -> None:
        seen.append(Path(f"/proc/self/fd/{handle}").readlink().name)
        sync(handle)

    def record_rename(old: Path, new: Path) -> None:
        seen.append(f"rename to {Path(new).name}")
        rename(old, new)

    monkeypatch.setattr(os, "fsync", record_sync)
    monkeypatch.setattr(os, "rename", record_rename)
    make(tmp_path, NEW)
    assert set(seen[:2]) == {"0.bin", "summary.json"} and seen[2:4] == [MANIFEST, "shards"]
    assert seen[4].startswith(".tmp-4-labels-")
    assert seen[5:] == ["rename to 4-labels", tmp_path.name]


def test_safetensors_style_disk_error_is_translated(tmp_path: Path) -> None:
    with pytest.raises(ForgetkitError, match="full"), commit(tmp_path, "s", NEW, {}, {}):
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")


def test_other_errors_pass_through(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), commit(tmp_path, "s", NEW, {}, {}):
        (tmp_path / "nowhere" / "x").read_text()


def flip(folder: Path) -> None:
    path = folder / "shards" / "0.bin"
    data = bytearray(path.read_bytes())
    data[500] ^= 1
    path.write_bytes(data)


def forge(key: str, value: object) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        raw = json.loads((folder / MANIFEST).read_text())
        raw[key] = value
        (folder / MANIFEST).write_text(json.dumps(raw))

    return damage


def link(folder: Path) -> None:
    path = folder / "summary.json"
    (folder.parent / "elsewhere").write_bytes(path.read_bytes())
    path.unlink()
    path.symlink_to(folder.parent / "elsewhere")


DAMAGE: dict[str, Callable[[Path], object]] = {
    "bit flip": flip,
    "truncated": lambda f: os.truncate(f / "summary.json", 3),
    "extra file": lambda f: (f / "shards" / "1.bin").write_text("x"),
    "extra link to folder": lambda f: (f / "more").symlink_to(f.parent),
    "missing file": lambda f: (f / "summary.json").unlink(),
    "link for file": link,
    "no manifest": lambda f: (f / MANIFEST).unlink(),
    "manifest cut": lambda f: os.truncate(f / MANIFEST, 40),
    "manifest not JSON": lambda f: (f / MANIFEST).write_bytes(b"\xff\xfe"),
    "manifest NaN": lambda f: (f / MANIFEST).write_text('{"stage": NaN}'),
    "manifest deep": lambda f: (f / MANIFEST).write_text("[" * 100_000),
    "manifest list": lambda f: (f / MANIFEST).write_text("[]"),
    "forged hash": forge("files", {"summary.json": {"bytes": 13, "sha256": "0" * 64}}),
    "unknown key": forge("surprise", 1),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_found_and_set_aside(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    make(tmp_path, NEW)
    DAMAGE[name](tmp_path / "4-labels")
    with pytest.raises(ForgetkitError):
        verify(tmp_path / "4-labels")
    assert find_complete(tmp_path, "4-labels", NEW) is None
    assert not (tmp_path / "4-labels").exists()
    assert [p[:18] for p in hidden(tmp_path)] == [".corrupt-4-labels-"]
    assert "4-labels" in caplog.text
    make(tmp_path, NEW)
    assert find_complete(tmp_path, "4-labels", NEW) is not None


def test_verify_names_the_file(tmp_path: Path) -> None:
    make(tmp_path, NEW)
    flip(tmp_path / "4-labels")
    with pytest.raises(ForgetkitError, match=r"shards/0\.bin"):
        verify(tmp_path / "4-labels")


def test_newer_schema_is_refused_and_kept(tmp_path: Path) -> None:
    make(tmp_path, NEW)
    forge("schema_version", 99)(tmp_path / "4-labels")
    with pytest.raises(ForgetkitError, match="newer"):
        find_complete(tmp_path, "4-labels", NEW)
    assert (tmp_path / "4-labels").is_dir()


def test_editable_file_may_change_and_others_may_not(tmp_path: Path) -> None:
    with commit(tmp_path, "3-anchors", NEW, {}, {}, mutable=["anchors.yaml"]) as folder:
        (folder / "anchors.yaml").write_text("a")
        (folder / "proposed.yaml").write_text("a")
    folder = tmp_path / "3-anchors"
    manifest = read_manifest(folder)
    assert manifest is not None and manifest.files["anchors.yaml"].mutable
    (folder / "anchors.yaml").write_text("edited by hand")
    (folder / "anchors.yaml~").write_text("an editor's copy")
    assert find_complete(tmp_path, "3-anchors", NEW) == folder
    (folder / "proposed.yaml~").write_text("not a copy of an editable file")
    assert find_complete(tmp_path, "3-anchors", NEW) is None


def test_deleted_editable_file_is_damage(tmp_path: Path) -> None:
    with commit(tmp_path, "3-anchors", NEW, {}, {}, mutable=["anchors.yaml"]) as folder:
        (folder / "anchors.yaml").write_text("a")
    (tmp_path / "3-anchors" / "anchors.yaml").unlink()
    assert find_complete(tmp_path, "3-anchors", NEW) is None


def test_work_folder_survives_restarts_and_goes_with_success(tmp_path: Path) -> None:
    mine, stale = work_folder(tmp_path, "4-labels", NEW), work_folder(tmp_path, "4-labels", OLD)
    other = work_folder(tmp_path, "4-labels-extra", OLD)
    (mine / "shard").write_text("x")
    clean_orphans(tmp_path)
    assert work_folder(tmp_path, "4-labels", NEW) == mine and (mine / "shard").exists()
    with pytest.raises(ValueError), commit(tmp_path, "4-labels", NEW, {}, {}):
        raise ValueError
    assert (mine / "shard").exists()
    make(tmp_path, NEW)
    assert not mine.exists() and not stale.exists() and other.exists()


def test_stale_folder_that_does_not_verify_is_kept_aside(tmp_path: Path) -> None:
    make(tmp_path, OLD)
    flip(tmp_path / "4-labels")
    (tmp_path / "4-labels").rename(tmp_path / f".stale-4-labels-{'0' * 32}")
    clean_orphans(tmp_path)
    assert not (tmp_path / "4-labels").exists()
    assert [name[:8] for name in hidden(tmp_path)] == [".corrupt"]


HOLD = """
import sys, time
from pathlib import Path
from forgetkit.core.artifacts import run_lock
with run_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_lock_between_processes(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None and holder.stdout.readline() == "held\n"
            begun = time.monotonic()
            with pytest.raises(ForgetkitError, match=f"process {holder.pid} on"), run_lock(tmp_path):
                pass
            assert time.monotonic() - begun < 1
        finally:
            holder.kill()
    with run_lock(tmp_path):  # freed by the kernel although the holder had no chance to tidy up
        assert (tmp_path / ".lock").stat().st_mode & 0o777 == 0o600
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
    assert (tmp_path / ".lock").exists()


def test_lock_refuses_links_and_pipes(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / ".lock").symlink_to(victim)
    with pytest.raises(ForgetkitError), run_lock(tmp_path):
        pass
    assert victim.read_text() == "precious"
    (tmp_path / ".lock").unlink()
    os.mkfifo(tmp_path / ".lock")
    with pytest.raises(ForgetkitError), run_lock(tmp_path):
        pass


def test_hash_json_is_canonical() -> None:
    assert hash_json({"b": Path("x/y"), "a": (1, 2)}) == hash_json({"a": [1, 2], "b": "x/y"})
    assert hash_json({"a": 1}) != hash_json({"a": 1.5})
    with pytest.raises(ValueError):
        hash_json({"a": float("nan")})
    with pytest.raises(TypeError):
        hash_json({"a": object()})


def test_module_loads_no_torch() -> None:
    code = "import sys, forgetkit.core.artifacts, forgetkit.core.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert artifacts.SCHEMA == 1
