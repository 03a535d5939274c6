"""Errors a user can act on, and how a command ends on them: one message, no traceback."""

from __future__ import annotations

import errno
import io
import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence


class UserError(Exception):
    """Something the user can mend. The text says what came, what was expected, what to do."""

    exit_code = 2


class NotFiniteError(UserError):
    """A loss that is NaN or infinite; names the term and the step."""

    exit_code = 3


class BusyError(UserError):
    """The run directory is in use by another process."""

    exit_code = 4


class Unfinished(Exception):  # noqa: N818  # not an error
    """The run was asked to stop (a signal other than Ctrl-C, a time limit), and has saved where it is."""

    exit_code = 75  # EX_TEMPFAIL: repeat the command


_leaves_at_once = False


def leave_at_once() -> None:
    """Let `run_command` end this process without taking the interpreter apart.

    Threads of torch.distributed that are at work meanwhile abort it (exit code -6), though its run is done.
    """
    global _leaves_at_once
    _leaves_at_once = True


def _print_any_text() -> None:
    """Let no locale stop a line: UTF-8 into files and pipes, as logs are read; a terminal's own encoding, escaped."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not what a test or a notebook puts in its place
            stream.reconfigure(encoding=None if stream.isatty() else "utf-8", errors="backslashreplace")


def run_command(main: Callable[[Sequence[str]], int | None]) -> None:
    """Run `main(argv)` and leave the process: 0 if it returned None or 0.

    A UserError becomes its message on stderr and its exit code; Ctrl-C becomes 130, as shells have it; Unfinished
    becomes 75.
    Any other exception is a bug of ours and keeps its traceback.
    """
    _print_any_text()
    try:
        code = main(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = error.exit_code
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where this one stopped", file=sys.stderr)
        code = 130
    except Unfinished as reason:
        print(f"stopped: {reason}; all is saved, and the same command goes on where this one stopped", file=sys.stderr)
        code = Unfinished.exit_code
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            full = f"error: no space left on the disk ({error.filename}); free some and repeat the command"
            print(full, file=sys.stderr)
            code = UserError.exit_code
        elif _leaves_at_once:
            traceback.print_exc()
            code = 1
        else:
            raise
    if _leaves_at_once:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code or 0)
    sys.exit(code)
