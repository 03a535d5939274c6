"""SLURM's output is parsed correctly: recordings from a real cluster (22.05), and odd cases written by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from subprocess import CompletedProcess
from types import SimpleNamespace

import pytest

from runtime.errors import UserError
from sweeps.slurm import commands as slurm_commands
from sweeps.slurm.commands import query
from sweeps.slurm.parse import JobInfo, expand, parse_accounting, parse_queue

RECORDED = Path(__file__).parent / "recorded"
TASKS = [f"1_{i}" for i in range(10)]
JOBS = [*TASKS, "10", "11", "12_0", "12_1", "12_2", "12_3", "15", "16_0", "17"]
Fake = Callable[..., Path]


def recorded(name: str) -> str:
    return (RECORDED / name).read_text()


def test_accounting_of_ended_jobs() -> None:
    infos = parse_accounting(recorded("sacct_ended.txt"), JOBS)
    states = {job: info.state for job, info in infos.items()}
    assert [states[job] for job in TASKS] == [
        *["COMPLETED", "FAILED", "FAILED", "CANCELLED", "TIMEOUT", "CANCELLED", "FAILED"],
        *["COMPLETED", "COMPLETED", "CANCELLED"],
    ]
    assert infos["1_1"] == JobInfo("FAILED", "", 7, None, "n1", 1795401095, source="sacct")
    assert infos["1_2"].signal == infos["1_6"].signal == 9
    assert states["10"] == "CANCELLED"
    assert infos["10"].reason == "Dependency"
    assert states["16_0"] == "NODE_FAIL"


def test_a_requeued_job_has_the_state_of_its_newest_attempt() -> None:
    infos = parse_accounting(recorded("sacct_working.txt"), JOBS)
    assert infos["1_5"].state == "PENDING"
    assert infos["1_5"].restarts == 1
    preempted = parse_accounting(recorded("sacct_ended.txt"), JOBS)["15"]
    assert (preempted.state, preempted.reason, preempted.restarts) == ("PENDING", "BeginTime", 1)
    assert preempted.waiting
    assert infos["1_4"].working
    assert infos["1_4"].node == "n1"


def test_a_row_for_many_tasks_counts_for_each_of_them() -> None:
    infos = parse_accounting(recorded("sacct_working.txt"), JOBS)
    assert [infos[f"12_{i}"].state for i in range(4)] == ["PENDING"] * 4
    later = parse_accounting(recorded("sacct_ended.txt"), JOBS)
    assert later["12_1"].state == "COMPLETED"
    assert not later["12_2"].ended  # it has no row, which may mean either of the two below


def test_a_task_without_a_row_has_begun_or_was_cancelled_while_it_waited(commands: Fake) -> None:
    """While SLURM splits an array, accounting leaves out tasks that have begun; seen with 22.05 on a busy machine."""
    commands("sacct", "132_2|RUNNING|0:0|n1|1795425250|None\n")
    commands("squeue", "132_0|RUNNING|None|n1|1795425250\n132_2|RUNNING|None|n1|1795425250\n")
    infos = query(["132_0", "132_1", "132_2"])
    assert infos["132_0"].working
    assert (infos["132_1"].state, infos["132_1"].reason) == ("CANCELLED", "while it waited")
    commands("squeue", "132_0|COMPLETED|None|n1|1795425250\n")
    assert query(["132_0"])["132_0"].state == "COMPLETED"
    commands("squeue", code=1, error="slurm_load_jobs error: Invalid job id specified")
    assert query(["132_1"])["132_1"].state == "CANCELLED"
    commands("squeue", code=1, error="Unable to contact slurm controller")
    assert query(["132_0"])["132_0"] == JobInfo()  # unknown: nothing may be queued on that


def test_the_controller_says_which_task_no_longer_waits(commands: Fake) -> None:
    commands("sacct", recorded("sacct_working.txt"))
    commands("squeue", recorded("squeue_working.txt"))
    infos = query(JOBS[:16])
    assert [infos[f"12_{i}"].state for i in range(4)] == ["PENDING", "PENDING", "CANCELLED", "PENDING"]
    assert infos["12_0"].source == "squeue"


def test_a_job_that_the_controller_forgot_is_over_whatever_accounting_says(commands: Fake) -> None:
    """slurmctld crashed: slurmdbd never learns of the end, and the job stays RUNNING there for ever."""
    commands("sacct", "7|RUNNING|0:0|n1|1700000000|None\n8|PENDING|0:0|None assigned|1700000000|Priority\n")
    commands("squeue", "8|PENDING|Priority||1700000000\n")
    infos = query(["7", "8"])
    assert infos["7"].gone
    assert infos["8"].waiting
    commands("squeue", code=1, error="Unable to contact slurm controller")
    assert query(["7"])["7"].working


def test_an_array_that_waited_when_the_controller_crashed_is_not_cancelled(commands: Fake) -> None:
    commands("sacct", "7_[0-1]|PENDING|0:0|None assigned|1700000000|Priority\n")
    commands("squeue", code=1, error="slurm_load_jobs error: Invalid job id specified")
    assert query(["7_0"])["7_0"].gone
    commands("squeue", "7_1|PENDING|Priority||1700000000\n")
    assert query(["7_0"])["7_0"].never_began


def test_one_call_for_all(commands: Fake) -> None:
    calls = commands("sacct", recorded("sacct_ended.txt"))
    query(TASKS)
    (line,) = calls.read_text().splitlines()
    assert line.split()[-1] == "--jobs=1"


def test_squeue_where_accounting_is_off(commands: Fake) -> None:
    commands("sacct", code=1, error="Slurm accounting storage is disabled")
    commands("squeue", recorded("squeue_working.txt"))
    infos = query(JOBS)
    assert {infos[job].state for job in ("1_4", "1_6", "1_7", "1_8")} == {"RUNNING"}
    assert (infos["1_4"].node, infos["1_4"].submitted) == ("n1", 1795401095)
    assert infos["11"].reason == "DependencyNeverSatisfied"
    assert infos["1_1"].ended
    assert infos["15"].gone
    assert infos["15"].source == "squeue"


def test_squeue_where_accounting_is_slow(commands: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    run = slurm_commands._run

    def without_patience(argv: Sequence[str], timeout_s: float) -> CompletedProcess[str]:
        assert timeout_s == slurm_commands.QUERY_SECONDS
        return run(argv, timeout_s=1.0 if argv[0] == "sacct" else None)

    monkeypatch.setattr(slurm_commands, "_run", without_patience)
    commands("sacct", seconds=3600)
    commands("squeue", recorded("squeue_working.txt"))
    assert query(["1_4"])["1_4"].source == "squeue"


def test_neither_command_answers(commands: Fake) -> None:
    commands("sacct", code=1)
    commands("squeue", code=1, error="Unable to contact slurm controller")
    info = query(["1_4"])["1_4"]
    assert info == JobInfo()
    assert not any([info.gone, info.ended, info.waiting, info.working])


def test_a_forgotten_job(commands: Fake) -> None:
    commands("sacct", "")
    commands("squeue", code=1, error="slurm_load_jobs error: Invalid job id specified")
    assert query(["7"])["7"].gone


def test_a_preempted_job_that_the_controller_has_put_back(commands: Fake) -> None:
    row = "15|PREEMPTED|0:0|n[1-2]|1795401194|None\n"
    commands("sacct", row)
    commands("squeue", "15|PENDING|BeginTime||1795401203\n")
    back = query(["15"])["15"]
    assert (back.state, back.source) == ("PENDING", "squeue")
    commands("squeue", "15|PREEMPTED|None|n1|1795401194\n")
    assert query(["15"])["15"].state == "PREEMPTED"
    commands("squeue", code=1, error="slurm_load_jobs error: Invalid job id specified")
    assert query(["15"])["15"].ended


def test_memory_that_ran_out_in_a_step() -> None:
    text = (
        "3|FAILED|1:0|n1|1795401194|None\n3.batch|FAILED|1:0|n1|1795401194|\n"
        "3.0|OUT_OF_MEMORY|0:125|n1|1795401194|\n4|OUT_OF_MEMORY|0:125|n1|1795401194|None\n"
    )
    infos = parse_accounting(text, ["3", "4"])
    assert {info.state for info in infos.values()} == {"OUT_OF_MEMORY"}


def test_steps_of_an_earlier_attempt_change_nothing() -> None:
    text = (
        "3|NODE_FAIL|1:0|n1|100|None\n3.0|OUT_OF_MEMORY|0:125|n1|100|\n"
        "3|FAILED|2:0|n1|200|None\n3.batch|FAILED|2:0|n1|200|\n"
    )
    info = parse_accounting(text, ["3"])["3"]
    assert (info.state, info.exit_code, info.restarts) == ("FAILED", 2, 1)


def test_lines_that_are_not_rows() -> None:
    text = "sacct: warning\n\n1|RUNNING\n2|CANCELLED by 1000|0:15|n1|Unknown|None\n"
    infos = parse_accounting(text, ["1", "2"])
    assert list(infos) == ["2"]
    assert (infos["2"].state, infos["2"].exit_code, infos["2"].submitted) == ("CANCELLED", 0, None)
    assert parse_queue("slurm_load_jobs error\n", ["1"]) == {}


@pytest.mark.parametrize(
    ("printed", "expected"),
    [
        ("7", ["7"]),
        ("7_3", ["7_3"]),
        ("7_[2]", ["7_2"]),
        ("7_[0-2,5%2]", ["7_0", "7_1", "7_2", "7_5"]),
        ("7_[0-8:4]", ["7_0", "7_4", "7_8"]),
        ("7+1", ["7"]),
    ],
)
def test_numbers_of_jobs(printed: str, expected: list[str]) -> None:
    assert expand(printed, set()) == expected


def test_a_list_that_was_cut_off_is_all_of_the_array() -> None:
    assert sorted(expand("7_[1,3,...", {"7_1", "7_900", "8_1"})) == ["7_1", "7_900"]


def test_ten_thousand_arrays_fit_the_command_line(commands: Fake) -> None:
    calls = commands("sacct", "")
    commands("squeue", "")
    jobs = [f"{10_000_000 + i}_{k}" for i in range(20_000) for k in (0, 1)]
    assert all(info.gone for info in query(jobs).values())
    lines = [line for line in calls.read_text().splitlines() if line.startswith("sacct")]
    asked = [number for line in lines for number in line.partition("--jobs=")[2].split(",")]
    assert len(asked) == len(set(asked)) == 20_000
    assert len(lines) == 2


def test_jobs_by_name(commands: Fake) -> None:
    calls = commands("squeue", "1|study-ab|c\n1|study-ab|c\n2|other\n")
    assert slurm_commands.job_ids_by_name() == {"study-ab|c": "1", "other": "2"}
    assert "--me" in calls.read_text()


def test_a_restarting_controller_is_waited_for_and_a_refusal_is_shown(commands: Fake, monkeypatch) -> None:
    now = [0.0]
    clock = SimpleNamespace(monotonic=lambda: now[0], sleep=lambda seconds: now.__setitem__(0, now[0] + seconds))
    monkeypatch.setattr(slurm_commands, "time", clock)
    monkeypatch.setattr(slurm_commands, "RESTART_SECONDS", 3.0)  # calls are two seconds apart
    calls = commands("scontrol", code=1, error="slurm_load_ctl_conf error: Unable to contact slurm controller")
    with pytest.raises(UserError, match="Unable to contact slurm controller"):
        slurm_commands.max_array_size()
    assert len(calls.read_text().splitlines()) == 3
    commands("sbatch", code=1, error="sbatch: error: invalid partition specified: nowhere")
    with pytest.raises(UserError, match="sbatch: error: invalid partition specified: nowhere"):
        slurm_commands.test_only("#!/bin/sh")
    assert len(calls.read_text().splitlines()) == 4


def test_jobs_that_ended_meanwhile_need_no_cancelling(commands: Fake) -> None:
    calls = commands("scancel", code=1, error="scancel: error: Kill job error on job id 7: Invalid job id specified")
    slurm_commands.scancel([str(job) for job in range(501)])
    assert len(calls.read_text().splitlines()) == 2
    commands("scancel", code=1, error="scancel: error: Access/permission denied")
    with pytest.raises(UserError, match="permission denied; repeat the command"):
        slurm_commands.scancel(["7"])
