"""Errors a user can act on, and how a command ends on them: one message, no traceback."""

from __future__ import annotations

import errno
import io
import logging
import os
import pwd
import stat
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

# The base of all errors lies at the bottom, in the library: `except UserError` catches the library's and ours.
from vicregl.errors import UserError as UserError


class NotFiniteError(UserError):
    """A loss that is NaN or infinite; names the term and the step."""

    exit_code = 3


class BusyError(UserError):
    """The run directory is in use by another process."""

    exit_code = 4


class Unfinished(Exception):  # noqa: N818  # not an error
    """The run was asked to stop (a signal other than Ctrl-C, a time limit), and has saved where it is."""

    exit_code = 75  # EX_TEMPFAIL: repeat the command


def explain(error: OSError, path: str | Path | None = None, otherwise: str = "") -> str | None:
    """What could not be read or written, why, and what to do; None where the error says nothing of that kind.

    `path`: what the caller wanted, where the error names a temporary file; `otherwise`: what else the user can do.
    """
    named = path if path is not None else error.filename2 or error.filename
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"no space left on the disk ({named}); free some and repeat the command"
    if not isinstance(named, str | Path):  # a process, say
        return None
    otherwise = otherwise or "choose another place"
    if error.errno == errno.EROFS:
        return f"cannot write {named}: its file system is mounted read-only; {otherwise}"
    if error.errno == errno.ENAMETOOLONG:
        return f"cannot make {named}: a name in it is longer than the file system allows (255 bytes); shorten it"
    there = _nearest(Path(os.fsdecode(error.filename or named)))
    if error.errno in (errno.EACCES, errno.EPERM):
        return _explain_access(named, there, otherwise)
    if error.errno == errno.EISDIR:
        return f"cannot write {named}: it is a folder, and a file is expected; remove it, or {otherwise}"
    if error.errno in (errno.ENOTDIR, errno.EEXIST) and os.path.exists(there) and not os.path.isdir(there):
        return f"cannot reach {named}: {there} is a file, and a folder is needed; move it away, or {otherwise}"
    return None


def _nearest(path: Path) -> Path:
    """The path itself, or the first of its parents that can be seen."""
    path = Path(os.path.abspath(path))
    return next(place for place in (path, *path.parents) if os.path.lexists(place))


def _explain_access(path: str | Path, there: Path, otherwise: str) -> str:
    """Which file or folder keeps this user out: a file that may be written can lie in a folder that may not."""
    folder = os.path.isdir(there)
    culprit = there if folder or not os.access(there, os.R_OK | os.W_OK) else there.parent
    found = os.lstat(culprit)
    verb = "write" if os.access(culprit, os.R_OK | (os.X_OK if folder else 0)) else "read"
    owner, mode = _user(found.st_uid), stat.filemode(found.st_mode)
    mine = found.st_uid == os.geteuid()
    who = "is your own" if mine else f"belongs to {owner}, and you are {_user(os.geteuid())}"
    remedy = "chmod it" if mine else f"ask {owner} for access"
    return f"cannot {verb} {path}: {culprit} {who} (mode {mode}); {remedy}, or {otherwise}"


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:  # in a container, as often as not
        return f"user {number}"


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
        if isinstance(error, OSError) and (explained := explain(error)):
            print(f"error: {explained}", file=sys.stderr)
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
