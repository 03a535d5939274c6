"""Run directories: identity, state, the lease between real processes, atomic files on a full disk."""

import errno
import fcntl
import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from runtime import files
from runtime.errors import BusyError, UserError
from runtime.rundir import Identity, Run, open_run

IDENTITY = Identity("pretrain", "net-alpha1", 1, {"loss": {"alpha": 1.0}})

HOLD = """
import sys, time
from runtime.rundir import Identity, open_run
identity = Identity("pretrain", "net-alpha1", 1, {"loss": {"alpha": 1.0}})
with open_run(sys.argv[1], identity, {}) as run:
    print("held", flush=True)
    time.sleep(3600)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_states_follow_the_life_of_a_run(tmp_path):
    run = Run.at(tmp_path, IDENTITY)
    assert run.state() == "new"
    with open_run(tmp_path, IDENTITY, {}):
        assert run.state() == "running"
    assert run.state() == "interrupted"
    with pytest.raises(ValueError, match="boom"), open_run(tmp_path, IDENTITY, {}):
        raise ValueError("boom")
    assert run.state() == "failed"
    assert run.failure()["message"] == "boom"
    with open_run(tmp_path, IDENTITY, {}) as again:
        assert again.failure() is None
        again.write_result({"score": 1})
    assert run.state() == "done"
    assert len(run.document()["attempts"]) == 3
    assert run.document()["config"] == IDENTITY.config


def test_two_processes_never_share_a_run(tmp_path, holder):
    run = Run.at(tmp_path, IDENTITY)
    assert run.state() == "running"
    with pytest.raises(BusyError, match=str(holder.pid)), open_run(tmp_path, IDENTITY, {}):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert run.state() == "interrupted"
    with open_run(tmp_path, IDENTITY, {}):
        pass


def test_a_fresh_heartbeat_of_another_host_counts_as_a_lease(tmp_path):
    with open_run(tmp_path, IDENTITY, {}) as run:
        pass
    beat = run.heartbeat() | {"host": "elsewhere", "ended": False, "time": time.time()}
    files.write_json(run.path / "heartbeat.json", beat)
    assert run.state() == "running"
    with pytest.raises(BusyError, match="elsewhere"), open_run(tmp_path, IDENTITY, {}):
        pass
    files.write_json(run.path / "heartbeat.json", beat | {"time": time.time() - 1000})
    assert run.state() == "interrupted"


def test_a_lock_that_may_not_be_read_leaves_the_heartbeat_to_say(tmp_path, monkeypatch):
    with open_run(tmp_path, IDENTITY, {}) as run:
        pass
    opened = os.open

    def refuse(path, *arguments, **options):
        if Path(path).name == "lock":
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(os, "open", refuse)
    assert run.state() == "interrupted"  # its last sign of life says that it has ended
    files.write_json(run.path / "heartbeat.json", run.heartbeat() | {"ended": False, "time": time.time()})
    assert run.state() == "running"


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS])
def test_a_file_system_without_locks_is_refused_and_leaves_the_heartbeat_to_say(code, tmp_path, monkeypatch):
    """NFS 3 without its lock daemons, Lustre without the option flock."""

    def refuse(*_):
        raise OSError(code, os.strerror(code))

    with open_run(tmp_path, IDENTITY, {}) as run:
        pass
    monkeypatch.setattr(fcntl, "lockf", refuse)
    monkeypatch.setattr(os, "lockf", refuse)
    assert run.state() == "interrupted"
    files.write_json(run.path / "heartbeat.json", run.heartbeat() | {"ended": False, "time": time.time()})
    assert run.state() == "running"
    other = Identity("pretrain", "other", 1, {})
    with pytest.raises(UserError) as raised, open_run(tmp_path, other, {}):
        pass
    assert Run.at(tmp_path, other).state() == "new"
    mount = subprocess.run(["df", "--output=target,fstype", tmp_path], capture_output=True, text=True, check=True)
    place, kind = mount.stdout.splitlines()[1].split()
    assert f"/lock: the file system of {place} ({kind}) refuses locks ({os.strerror(code)})" in str(raised.value)
    assert str(raised.value).endswith("or keep your runs elsewhere: machine.runs=FOLDER")


def test_members_of_a_group_may_go_on_with_each_others_runs(tmp_path):
    former = os.umask(0o002)
    try:
        with open_run(tmp_path, IDENTITY, {}) as run:
            run.append_metrics({"step": 1})
    finally:
        os.umask(former)
    modes = {path.name: stat.filemode(path.stat().st_mode) for path in run.path.iterdir()}
    assert set(modes.values()) == {"-rw-rw-r--"}, modes


def test_metrics_survive_a_cut_last_line_and_are_taken_back_to_a_checkpoint(tmp_path):
    with open_run(tmp_path, IDENTITY, {}) as run:
        for step in (10, 20, 30):
            run.append_metrics({"step": step})
        with open(run.path / "metrics.jsonl", "a") as file:
            file.write('{"step": 4')
        assert [row["step"] for row in run.metrics()] == [10, 20, 30]
        run.resume_metrics_after(20)
        assert (run.path / "metrics.jsonl").read_text() == '{"step": 10}\n{"step": 20}\n'


def test_a_result_that_is_no_mapping_is_none(tmp_path):
    with open_run(tmp_path, IDENTITY, {}) as run:
        run.write_result({"score": 1})
    for name in ("result", "failure", "heartbeat"):
        (run.path / f"{name}.json").write_text("[1]")
    assert run.state() == "interrupted"
    with open_run(tmp_path, IDENTITY, {}) as again:
        again.write_result({"score": 2})
    assert run.result() == {"score": 2}


def test_a_folder_that_is_no_run_directory_is_refused(tmp_path):
    with pytest.raises(UserError, match="not a run directory"):
        Run(tmp_path).document()
    (tmp_path / "run.yaml").write_text("hello: 1\n")
    with pytest.raises(UserError, match="expected the keys"):
        Run(tmp_path).document()


def test_a_failed_write_keeps_the_former_file(tmp_path):
    path = tmp_path / "state.json"
    files.write_json(path, {"step": 1})

    def fail(temporary):
        temporary.write_text("half")
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        files.write_atomic(path, fail)
    assert json.loads(path.read_text()) == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["state.json"]


@pytest.mark.parametrize(
    "save", [lambda p: torch.save({"a": torch.zeros(10**6)}, p), lambda p: p.write_bytes(b"1" * 4_000_000)]
)
def test_a_full_disk_keeps_the_former_file_and_says_so(small_disk, save):
    path = small_disk(1) / "checkpoint.pt"
    files.write_atomic(path, lambda temporary: temporary.write_text("former"))
    with pytest.raises(UserError, match="no space left"):
        files.write_atomic(path, save)
    assert path.read_text() == "former"
    assert os.listdir(small_disk.path) == ["checkpoint.pt"]


def test_attempts_are_read_and_counted_from_the_end_of_run_yaml(tmp_path):
    run = Run.at(tmp_path, IDENTITY)
    assert (run.attempts(), run.count_attempts()) == ([], 0)
    for number in (1, 2):
        with open_run(tmp_path, IDENTITY, {}):
            pass
        assert run.attempts() == run.document()["attempts"]
        assert run.count_attempts() == len(run.attempts()) == number
    text = (run.path / "run.yaml").read_text()
    (run.path / "run.yaml").write_text(text[: text.index("attempts:") - 5])  # cut off by a crash
    assert (run.attempts(), run.count_attempts()) == ([], 0)
