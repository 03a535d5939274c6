"""Kill a pretraining again and again: python kill_many.py FOLDER KILLS SEED -- the arguments of `python -m pretrain`.

Importing torch takes seconds, so this process does it once and forks a child an attempt, which is the real command
from its first line. Each is killed by SIGKILL, half of them after a random part of a run's processor time and half a
few steps after the last one logged (neither depends on how busy the machine is), over and over, until the run is done;
then its files are moved to FOLDER/done/<n> and another one begins, until KILLS children have been killed. First of all
one run is left in peace: FOLDER/done/0. Prints how many were killed, and which step each had reached.
"""

from __future__ import annotations

import gc
import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

# Another process's kill must not hit a child that has threads of its own to wait for.
os.environ |= {"OMP_NUM_THREADS": "1"}
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import pretrain.__main__ as command
import pretrain.train  # noqa: F401  # what the command loads later is loaded here, before the forks
from runtime import compat  # noqa: F401
from runtime.errors import run_command


def attempt(argv: list[str], log: Path) -> int:
    """Start the command in a fork; its process id."""
    child = os.fork()
    if child:
        return child
    with open(log, "ab", 0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = ["pretrain", *argv]
    status = 1
    try:
        run_command(command.main)
    except SystemExit as end:
        status = end.code or 0
    except Exception:
        traceback.print_exc()
    sys.stdout.flush()
    os._exit(status)  # without the second in which the interpreter cleans up


def main(folder: Path, kills: int, seed: int, argv: list[str]) -> None:
    random.seed(seed)
    runs, done = folder / "runs", folder / "done"
    done.mkdir()
    argv = [*argv, f"machine.runs={runs}"]
    gc.freeze()  # or each child's first collections would copy the memory of this process
    process = attempt(argv, folder / "log.txt")
    _, status, used = os.wait4(process, 0)
    if status:
        sys.exit((folder / "log.txt").read_text())
    life = used.ru_utime + used.ru_stime  # seconds of the processor that an undisturbed run takes
    (next((runs / "pretrain").iterdir())).rename(done / "0")
    killed, steps = 0, []
    while killed < kills or any((runs / "pretrain").iterdir()):
        process = attempt(argv, folder / "log.txt")
        if killed < kills:
            if random.random() < 0.5:
                kill_after_steps(process, random.randint(1, 3), runs)
            else:
                kill_after_seconds(process, random.uniform(0, life / 2 if random.random() < 0.9 else life))
        status = os.waitpid(process, 0)[1]
        if os.WIFSIGNALED(status):
            killed += 1
            steps.append(reached(runs))
        elif status:
            sys.exit((folder / "log.txt").read_text()[-5000:])
        else:
            (next((runs / "pretrain").iterdir())).rename(done / str(len(list(done.iterdir()))))
    print(json.dumps({"killed": killed, "life_s": life, "steps": steps}))


def kill_after_seconds(process: int, seconds: float) -> None:
    """Kill a child once it has used that much of the processor, or let it end."""
    clock = (~process << 3) | 2  # Linux: the clock of that process
    kill_when(process, lambda: time.clock_gettime(clock) >= seconds)


def kill_after_steps(process: int, steps: int, runs: Path) -> None:
    """Kill a child once it has logged so many steps more, or let it end."""
    target = (reached(runs) or 0) + steps
    kill_when(process, lambda: (reached(runs) or 0) >= target)


def kill_when(process: int, condition: Callable[[], bool]) -> None:
    with suppress(OSError):  # no clock of a process that has ended
        while not condition():
            if os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                return
            time.sleep(0.002)
    os.kill(process, signal.SIGKILL)


def reached(runs: Path) -> int | None:
    """The last step that a killed run has logged."""
    try:
        rows = next((runs / "pretrain").iterdir()).joinpath("metrics.jsonl").read_text().splitlines()
        return int(json.loads(rows[-1])["step"])
    except (StopIteration, FileNotFoundError, IndexError, ValueError, KeyError):
        return None


if __name__ == "__main__":
    mark = sys.argv.index("--")
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[mark + 1 :])
