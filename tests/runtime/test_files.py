"""What cannot be written or read is one line: what, why, and what to do; it comes before anything is made."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from runtime import files
from runtime.errors import UserError, explain
from runtime.rundir import Identity, open_run

ROOT = Path(__file__).resolve().parents[2]


def test_a_folder_whose_place_a_file_has_taken(tmp_path):
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(UserError) as raised, open_run(tmp_path / "runs", Identity("pretrain", "a", 1, {}), {}):
        pass
    assert str(raised.value) == (
        f"cannot reach {tmp_path}/runs/pretrain/{Identity('pretrain', 'a', 1, {}).name}: {tmp_path}/runs is a file, "
        "and a folder is needed; move it away, or keep your runs elsewhere: machine.runs=FOLDER"
    )
    with pytest.raises(UserError, match=f"cannot reach {tmp_path}/runs: .* is a file"):
        files.make_folder(tmp_path / "runs", "choose")


def test_a_file_whose_place_a_folder_has_taken(tmp_path):
    (tmp_path / "README.md").mkdir()
    with pytest.raises(UserError, match=r"cannot write .*/README.md: it is a folder, and a file is expected"):
        files.write_text(tmp_path / "README.md", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


def test_a_name_that_is_too_long(tmp_path):
    with pytest.raises(UserError, match=r"longer than the file system allows \(255 bytes\)"):
        files.make_folder(tmp_path / ("a" * 256), "choose")


def test_a_file_system_that_is_mounted_read_only(small_disk):
    disk = small_disk(1)
    (disk / "there").mkdir()
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    for folder in (disk / "there", disk / "new" / "deep"):
        with pytest.raises(UserError) as raised:
            files.make_folder(folder, "use --out")
        assert str(raised.value) == f"cannot write {folder}: its file system is mounted read-only; use --out"
    with pytest.raises(UserError, match=f"cannot write {disk}/there/table.md: its file system is mounted read-only"):
        files.write_text(disk / "there" / "table.md", "text")


@pytest.mark.parametrize("text", ["[1]", "3", "null", '"a"', "{", "[" * 3])
def test_a_json_file_that_holds_no_mapping_is_as_one_that_is_missing(text, tmp_path):
    (tmp_path / "a.json").write_text(text)
    assert files.read_json_object(tmp_path / "a.json") is files.read_json_object(tmp_path / "b.json") is None


def test_an_error_that_is_not_about_a_file_keeps_its_traceback():
    assert explain(PermissionError(1, "Operation not permitted")) is None  # of os.kill
    assert explain(FileNotFoundError(2, "No such file or directory", "/nowhere")) is None
    assert explain(FileExistsError(17, "File exists", "/tmp")) is None


def test_a_full_disk_is_named_only_where_it_is_known():
    full = "no space left on the disk"
    assert explain(OSError(28, "No space left", "/a")) == f"{full} (/a); free some and repeat the command"
    assert explain(OSError(28, "No space left")) == f"{full}; free some and repeat the command"  # of an open file


def test_a_command_ends_on_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    code = "from runtime.errors import run_command; run_command(lambda argv: open(argv[0]))"
    argv = [sys.executable, "-c", code, str(tmp_path / "file" / "below")]
    done = subprocess.run(argv, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == UserError.exit_code
    assert done.stderr.splitlines() == [
        f"error: cannot reach {tmp_path}/file/below: {tmp_path}/file is a file, and a folder is needed; "
        "move it away, or choose another place"
    ]


def test_a_lock_ends_with_its_process_though_a_worker_lives_on(tmp_path):
    """Not by flock: a worker that the process forked would keep that one."""
    program = (
        "import os, sys, time; from pathlib import Path; from runtime import files\n"
        "with files.lock(Path(sys.argv[1])):\n"
        "    worker = os.fork()\n"
        "    print(worker, flush=True) if worker else None\n"
        "    time.sleep(3600)"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "lock")]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert holder.stdout is not None
    worker = int(holder.stdout.readline())
    try:
        with files.lock(tmp_path / "lock", wait=False) as held:
            assert not held
        holder.kill()
        holder.wait()
        with files.lock(tmp_path / "lock", wait=False) as held:
            assert held
    finally:
        os.kill(worker, 9)
