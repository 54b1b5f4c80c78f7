"""Models on a disk of the node: which files, under which name, what there is room for, what another may not do."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from pathlib import Path

import pytest

from tests.staging import content, make_model
from workers.staging import staging as under_test
from workers.staging.model_files import model_files, staged_name
from workers.staging.mounts import Mount
from workers.staging.staging import PART, Cannot, Staging, Watch, locked, used_lock


def quiet(copied_bytes: int, by_another: bool) -> None:
    pass


# ---------------------------------------------------------------- which files, under which name


def test_an_engine_s_files_are_copied_and_no_second_form_of_the_weights(tmp_path: Path) -> None:
    model = make_model(tmp_path / "m", num_shards=2)
    for name in ("pytorch_model.bin", "m.gguf", ".cache/x", "original/consolidated.00.pth", "1_Pooling/config.json"):
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).touch()
    weights = ["1_Pooling/config.json", "config.json", "model-0.safetensors", "model-1.safetensors"]
    assert [file.name for file in model_files(model)] == weights
    assert [file.name for file in model_files(model, "pt")] == [
        *weights[:2],
        "m.gguf",
        *weights[2:],
        "pytorch_model.bin",
    ]


def test_without_safetensors_the_other_weights_are_the_model(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").touch()
    assert [file.name for file in model_files(tmp_path)] == ["pytorch_model.bin"]


def test_the_name_is_the_same_on_every_node_and_another_after_an_edit(tmp_path: Path) -> None:
    model = make_model(tmp_path / "models--org--m" / "snapshots" / "0123")
    name = staged_name(model, model_files(model))
    assert name.startswith("models--org--m-") and name == staged_name(model, model_files(model))
    os.utime(model / "model-0.safetensors", ns=(0, 7))
    assert staged_name(model, model_files(model)) != name, "weights of the same size are other weights"


# ---------------------------------------------------------------- copying


def test_a_copy_is_whole_and_made_once(tmp_path: Path) -> None:
    model = make_model(tmp_path / "m")
    first = Staging(model, tmp_path / "disk")
    assert first.missing_bytes() == first.total_bytes
    first.stage(quiet)
    assert content(first.folder) == content(model)
    assert not any(path.is_symlink() for path in first.folder.rglob("*"))
    inodes = {path: path.stat().st_ino for path in first.folder.iterdir()}
    again = Staging(model, tmp_path / "disk")
    assert again.missing_bytes() == 0
    again.stage(quiet)
    assert {path: path.stat().st_ino for path in again.folder.iterdir()} == inodes, "nothing was copied again"


def test_a_copy_that_lost_files_is_repaired_and_one_that_broke_off_goes_on(tmp_path: Path) -> None:
    model = make_model(tmp_path / "m", num_shards=3)
    staging = Staging(model, tmp_path / "disk")
    staging.stage(quiet)
    kept = (staging.folder / "model-1.safetensors").stat().st_ino
    (staging.folder / "config.json").unlink()  # as a cleaner of /tmp does
    with (staging.folder / "model-2.safetensors").open("ab") as file:
        file.truncate(1000)
    (staging.folder / f"model-0.safetensors{PART}").write_bytes(b"half")
    assert [file.name for file in staging.missing] == ["config.json", "model-2.safetensors"]
    staging.stage(quiet)
    assert content(staging.folder) == content(model)
    assert (staging.folder / "model-1.safetensors").stat().st_ino == kept


def test_a_model_that_changes_while_it_is_copied_is_told(tmp_path: Path) -> None:
    model = make_model(tmp_path / "m", num_shards=1)
    staging = Staging(model, tmp_path / "disk")
    (model / "model-0.safetensors").write_bytes(b"something else")
    with pytest.raises(Cannot, match=r"model-0\.safetensors changed meanwhile"):
        staging.stage(quiet)
    # The other file may have been given up with it.
    assert "model-0.safetensors" in [file.name for file in staging.missing]


def test_a_copy_that_does_not_move_is_told(tmp_path: Path) -> None:
    watch = Watch(tmp_path, stall_s=0.01)
    (tmp_path / "a").write_bytes(b"1")
    assert watch.look() == 1
    time.sleep(0.02)
    (tmp_path / "b").write_bytes(b"2")
    assert watch.look() == 2, "a byte has come"
    time.sleep(0.02)
    with pytest.raises(Cannot, match="does its file system hang"):
        watch.look()


# ---------------------------------------------------------------- room


def small_disk(monkeypatch: pytest.MonkeyPatch, folder: Path, capacity: int) -> None:
    """What is left of so many bytes for all that lies below `folder`."""
    monkeypatch.setattr(under_test, "SPARE_BYTES", 0)
    monkeypatch.setattr(under_test, "free_bytes", lambda root: capacity - under_test.tree_bytes(folder))


def test_what_does_not_fit_is_refused_before_anything_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_disk(monkeypatch, tmp_path / "disk", 1 << 20)
    staging = Staging(make_model(tmp_path / "m", num_shards=2), tmp_path / "disk")
    with pytest.raises(Cannot, match=r"cluster.stage_dir: .* has room for 1\.0 MiB, the model needs 2\.0 MiB more"):
        staging.missing_bytes()
    with pytest.raises(Cannot):
        staging.stage(quiet)
    assert not staging.folder.exists()


def test_models_that_nobody_uses_make_room_the_longest_unused_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = tmp_path / "disk"
    small_disk(monkeypatch, disk, int(3.5 * (1 << 20)))
    old, used, recent = (Staging(make_model(tmp_path / name, 1, seed=ord(name)), disk) for name in "abc")
    for age, staging in enumerate((recent, used, old)):
        staging.stage(quiet)
        staging.used_lock.touch()
        os.utime(staging.used_lock, (1000 - age, 1000 - age))
    with locked(used.used_lock, fcntl.LOCK_SH):
        staging = Staging(make_model(tmp_path / "d", 1, seed=9), disk)
        staging.stage(quiet)
        assert (old.folder.exists(), used.folder.exists(), recent.folder.exists()) == (False, True, True)
        with pytest.raises(Cannot):
            Staging(make_model(tmp_path / "e", 3, seed=8), disk).stage(quiet)
        assert used.folder.exists(), "whatever it takes"


# ---------------------------------------------------------------- where


def test_a_disk_that_nodes_share_is_no_disk_of_a_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mount = Mount(device="10.0.0.1@o2ib:/scratch", point="/", kind="lustre")
    monkeypatch.setattr(under_test, "mount_at", lambda path: mount)
    with pytest.raises(Cannot, match="is on lustre, which all nodes share"):
        Staging(make_model(tmp_path / "m", 1), tmp_path / "disk")


def test_a_folder_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    model = make_model(tmp_path / "m", 1)
    (tmp_path / "disk" / f"sluice-{os.getuid()}").mkdir(parents=True)
    (tmp_path / "disk" / f"sluice-{os.getuid()}").chmod(0o777)
    with pytest.raises(Cannot, match="is not a folder of yours alone"):
        Staging(model, tmp_path / "disk")
    shutil.rmtree(tmp_path / "disk")
    (tmp_path / "disk").mkdir()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / "disk" / f"sluice-{os.getuid()}").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Cannot):
        Staging(model, tmp_path / "disk")


def test_what_cannot_be_read_or_made_is_told_by_name(tmp_path: Path) -> None:
    with pytest.raises(Cannot, match=r"model.path: .*/gone: No such file or directory"):
        Staging(tmp_path / "gone", tmp_path / "disk")
    (tmp_path / "disk").touch()
    with pytest.raises(Cannot, match=r"cluster.stage_dir: .*: Not a directory"):
        Staging(make_model(tmp_path / "m", 1), tmp_path / "disk")


def test_a_lock_is_its_holder_s(tmp_path: Path) -> None:
    lock = used_lock(tmp_path / "m")
    with locked(lock, fcntl.LOCK_SH) as ours, locked(lock, fcntl.LOCK_SH) as theirs:
        assert ours and theirs
        with locked(lock, fcntl.LOCK_EX | fcntl.LOCK_NB) as alone:
            assert not alone
    with locked(lock, fcntl.LOCK_EX | fcntl.LOCK_NB) as alone:
        assert alone
