"""python distributed_worker.py CASE: one of the processes of test_distributed.py; prints what it got."""

import os
import signal
import time
from contextlib import suppress
from datetime import timedelta

import torch

from runtime import distributed
from runtime.distributed import barrier, broadcast, join, largest, report_failures
from runtime.errors import UserError, run_command
from runtime.world import world_from_environment


def main(argv: list[str]) -> None:
    (case,) = argv
    if case == "agree":
        distributed._POLL_SECONDS = 0.0
        distributed._Watch.failure = ask_long  # type: ignore[method-assign]
    else:
        distributed.GRACE_SECONDS = 2.0
    world = world_from_environment()
    with join(world, torch.device("cpu")), report_failures(lambda error: print(f"lost: {error}", flush=True)):
        if case == "agree":
            values = [largest(0), largest(world.rank == 1), largest(world.rank * 7), broadcast({"rank": world.rank})]
            barrier()
            # One write, which another process cannot split.
            print(f"{world.rank}/{world.size} {values}\n", end="", flush=True)
        elif world.rank == 1:
            barrier()
            fail(case)
        elif case == "hang":
            barrier()
            time.sleep(600)
        else:
            for _ in range(10**6):
                barrier()


def ask_long(watch: distributed._Watch) -> None:
    """Imitate a slow store: the watch thread is inside a call of torch when the process ends."""
    for _ in range(50):
        with suppress(RuntimeError):
            watch.store.wait(["never"], timedelta(milliseconds=10))


def fail(case: str) -> None:
    time.sleep(0.5)
    if case == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if case == "user error":
        raise UserError("this image is cut off")
    raise ValueError("a bug\nin two lines")


if __name__ == "__main__":
    run_command(main)
