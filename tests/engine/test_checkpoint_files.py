"""Checkpoints are whole or not there, and the newest whole one is found."""

import errno
import logging
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from conftest import ROOT
from ranks import run_ranks

from d2_pixcontrast.engine import SemSegCheckpointer
from d2_pixcontrast.engine.checkpoint_files import (
    is_whole,
    keep_newest,
    numbered_checkpoints,
    write_atomically,
)


def model(value=0.0):
    layer = torch.nn.Linear(40, 30)
    torch.nn.init.constant_(layer.weight, value)
    return layer


def run_with_checkpoints(folder, iterations, **kwargs):
    for i in iterations:
        SemSegCheckpointer(model(i), str(folder), **kwargs).save(f"model_{i:07d}", iteration=i)
    return folder


def damage(path, how):
    data = bytearray(path.read_bytes())
    if how == "truncated":
        data = data[: len(data) // 2]
    elif how == "empty":
        data = b""
    elif how == "one byte":
        data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


@pytest.mark.parametrize("how", ["truncated", "empty", "one byte"])
def test_damage_is_seen(tmp_path, how):
    path = run_with_checkpoints(tmp_path, [4]) / "model_0000004.pth"
    assert is_whole(path)
    damage(path, how)
    assert not is_whole(path) and not is_whole(tmp_path / "nowhere.pth")


@pytest.mark.parametrize("how", ["truncated", "empty", "one byte", "missing"])
def test_a_damaged_newest_checkpoint_is_reported_and_the_one_before_is_used(tmp_path, how, caplog):
    run_with_checkpoints(tmp_path, [3, 7, 11])
    newest = tmp_path / "model_0000011.pth"
    newest.unlink() if how == "missing" else damage(newest, how)
    resumed = model()
    with caplog.at_level(logging.WARNING):
        state = SemSegCheckpointer(resumed, str(tmp_path)).resume_or_load("", resume=True)
    assert state["iteration"] == 7 and bool((resumed.weight == 7).all())
    assert f"{newest} is missing or damaged" in caplog.text


@pytest.mark.parametrize("tag", [None, "", "model_0000099.pth", "\0" * 17, "a\0b"])
def test_without_a_sound_tag_the_newest_is_used(tmp_path, tag):
    run_with_checkpoints(tmp_path, [3, 11, 7])
    (tmp_path / "last_checkpoint").unlink()
    if tag is not None:
        (tmp_path / "last_checkpoint").write_text(tag)
    checkpointer = SemSegCheckpointer(model(), str(tmp_path))
    assert checkpointer.has_checkpoint()
    assert checkpointer.resume_or_load("", resume=True)["iteration"] == 11


def test_another_runs_later_checkpoints_are_neither_resumed_nor_counted(tmp_path):
    """A training that began anew in the folder of a longer one."""
    run_with_checkpoints(tmp_path, [199, 399])
    run_with_checkpoints(tmp_path, [24, 49, 74], checkpoints_to_keep=2)
    names = [p.name for p in numbered_checkpoints(tmp_path)]
    assert names == [f"model_{i:07d}.pth" for i in (399, 199, 74, 49)]
    damage(tmp_path / "model_0000074.pth", "truncated")
    state = SemSegCheckpointer(model(), str(tmp_path)).resume_or_load("", resume=True)
    assert state["iteration"] == 49
    last = SemSegCheckpointer(model(), str(tmp_path), checkpoints_to_keep=1)
    last.save("model_final", iteration=99)
    assert [p.name for p in numbered_checkpoints(tmp_path, last=99)] == ["model_0000074.pth"]
    assert len(numbered_checkpoints(tmp_path)) == 3


def _resume_on_machines_of_their_own(rank, folder, url):
    dist.init_process_group("gloo", init_method=url, rank=rank, world_size=2)
    machines = [folder / "shared"] * 2
    assert SemSegCheckpointer(model(), str(machines[rank])).resume_or_load("")["iteration"] == 3
    for other, found in (("damaged", "damaged ones"), ("empty", "none")):
        machines[1] = folder / other
        with pytest.raises(ValueError) as caught:
            SemSegCheckpointer(model(), str(machines[rank])).resume_or_load("")
        if rank == 0 or other == "empty":
            assert f"process 0 finds model_0000003.pth in {machines[rank]}" in str(caught.value)
            assert f"process 1 {found}; OUTPUT_DIR has to be a folder that all" in str(caught.value)
        else:
            assert "all 1 checkpoints" in str(caught.value)
    dist.destroy_process_group()


def test_processes_that_find_different_checkpoints_do_not_start(tmp_path):
    """Machines whose OUTPUT_DIR is a disk of their own: only the first one has checkpoints."""
    for name in ("shared", "damaged", "empty"):
        (tmp_path / name).mkdir()
    for name in ("shared", "damaged"):
        run_with_checkpoints(tmp_path / name, [3])
    damage(tmp_path / "damaged" / "model_0000003.pth", "truncated")
    run_ranks(_resume_on_machines_of_their_own, (tmp_path, f"file://{tmp_path}/store"), 2)


def test_the_tag_decides(tmp_path):
    run_with_checkpoints(tmp_path, [11, 3])
    state = SemSegCheckpointer(model(), str(tmp_path)).resume_or_load("", resume=True)
    assert state["iteration"] == 3


def test_nothing_but_damaged_checkpoints_is_no_fresh_start(tmp_path):
    run_with_checkpoints(tmp_path, [3, 7])
    for path in numbered_checkpoints(tmp_path):
        damage(path, "truncated")
    with pytest.raises(ValueError, match=rf"all 2 checkpoints of {tmp_path} are damaged"):
        SemSegCheckpointer(model(), str(tmp_path)).resume_or_load("", resume=True)


def test_nothing_to_resume_from_starts_afresh(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        assert SemSegCheckpointer(model(), str(folder)).resume_or_load("", resume=True) == {}


def test_as_many_are_kept_as_asked(tmp_path):
    run_with_checkpoints(tmp_path, range(1, 6), checkpoints_to_keep=2)
    names = [p.name for p in numbered_checkpoints(tmp_path)]
    assert names == ["model_0000005.pth", "model_0000004.pth"]
    (tmp_path / "model_best.pth").touch()
    (tmp_path / "model_final.pth").touch()
    keep_newest(tmp_path, 0)
    assert {p.name for p in tmp_path.glob("*.pth")} == {"model_best.pth", "model_final.pth"}
    with pytest.raises(ValueError, match="CHECKPOINTS_TO_KEEP is -1"):
        SemSegCheckpointer(model(), str(tmp_path), checkpoints_to_keep=-1)


class FullDisk:
    """A file that takes some bytes and then fails as a full disk does."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def write(self, data):
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.file.write(data)

    def flush(self):
        self.file.flush()


def test_a_full_disk_leaves_the_last_good_file(tmp_path):
    path = tmp_path / "model.pth"
    write_atomically(path, lambda file: torch.save({"a": 1}, file))
    big = {"a": torch.zeros(10_000)}
    with pytest.raises(
        OSError, match=r"written \(No space left on device\); it is as it was before"
    ):
        write_atomically(path, lambda file: torch.save(big, FullDisk(file, 1000)))
    assert torch.load(path, weights_only=True) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["model.pth"]


def test_a_limit_of_the_system_is_one_clear_error(tmp_path):
    """The real thing: the kernel refuses to let a file grow, as on a disk that is full."""
    run_with_checkpoints(tmp_path, [3])
    code = (
        "import resource, signal, sys, torch\n"
        "from d2_pixcontrast.engine import SemSegCheckpointer\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048))\n"
        "SemSegCheckpointer(torch.nn.Linear(400, 300), sys.argv[1]).save('model_0000007')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode and "model_0000007.pth could not be written" in last, done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last_checkpoint", "model_0000003.pth"]
    state = SemSegCheckpointer(model(), str(tmp_path)).resume_or_load("", resume=True)
    assert state["iteration"] == 3
