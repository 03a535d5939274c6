"""Errors a user can act on, and how a command ends on them: one message, no traceback."""

from __future__ import annotations

import errno
import io
import logging
import os
import pickle
import pwd
import stat
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

# The base class is defined in the library, the lowest layer: `except UserError` catches its errors and ours.
from vicregl.errors import UserError as UserError  # noqa: PLC0414


@contextmanager
def errors_at(where: str) -> Iterator[None]:
    """Begin the message of a UserError of the block with the place where the user finds its cause."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


class NotFiniteError(UserError):
    """A loss that is NaN or infinite; the message names the term and the step."""

    exit_code = 3


class BusyError(UserError):
    """The run directory is in use by another process."""

    exit_code = 4


class Unfinished(Exception):  # noqa: N818  # not an error
    """The run was asked to stop (a signal other than Ctrl-C, a time limit), and has saved its state."""

    exit_code = 75  # EX_TEMPFAIL: repeat the command


# Raised by torch.load and load_state_dict for a file that is cut off, or holds something else.
CHECKPOINT_ERRORS = (
    pickle.UnpicklingError,
    RuntimeError,
    OSError,
    EOFError,
    ValueError,
    LookupError,
    AttributeError,
    TypeError,
)


def unreadable_checkpoint(path: str | Path, error: Exception) -> UserError:
    return UserError(
        f"{path} cannot be read: it is cut off or not a checkpoint of this run ({type(error).__name__}). "
        "Delete it to start this run over, or put a good copy in its place"
    )


def explain(error: OSError, path: str | Path | None = None, otherwise: str = "") -> str | None:
    """Describe what could not be read or written, why, and what to do; None for an error of another kind.

    `path`: the caller's file, where the error names a temporary one; `otherwise`: an alternative for the user.
    """
    named = path if path is not None else error.filename2 or error.filename
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        place = "" if named is None else f" ({named})"  # writing to an open file does not name it
        return f"no space left on the disk{place}; free some and repeat the command"
    if not isinstance(named, str | Path):  # of a process or a socket, say
        return None
    otherwise = otherwise or "choose another place"
    if error.errno == errno.EROFS:
        return f"cannot write {named}: its file system is mounted read-only; {otherwise}"
    if error.errno == errno.ENAMETOOLONG:
        return f"cannot make {named}: a name in it is longer than the file system allows (255 bytes); shorten it"
    nearest = _nearest(Path(os.fsdecode(error.filename or named)))
    if error.errno in (errno.EACCES, errno.EPERM):
        return _explain_access(named, nearest, otherwise)
    if error.errno == errno.EISDIR:
        return f"cannot write {named}: it is a folder, and a file is expected; remove it, or {otherwise}"
    if error.errno in (errno.ENOTDIR, errno.EEXIST) and os.path.exists(nearest) and not os.path.isdir(nearest):
        return f"cannot reach {named}: {nearest} is a file, and a folder is needed; move it away, or {otherwise}"
    return None


def _nearest(path: Path) -> Path:
    """Return the path itself, or the first of its parents that exists."""
    path = Path(os.path.abspath(path))
    return next(place for place in (path, *path.parents) if os.path.lexists(place))


def _explain_access(path: str | Path, nearest: Path, otherwise: str) -> str:
    """Name the file or folder that denies access: replacing a writable file also needs a writable folder."""
    folder = os.path.isdir(nearest)
    culprit = nearest if folder or not os.access(nearest, os.R_OK | os.W_OK) else nearest.parent
    status = os.lstat(culprit)
    verb = "write" if os.access(culprit, os.R_OK | (os.X_OK if folder else 0)) else "read"
    owner, mode = _user(status.st_uid), stat.filemode(status.st_mode)
    mine = status.st_uid == os.geteuid()
    who = "is your own" if mine else f"belongs to {owner}, and you are {_user(os.geteuid())}"
    remedy = "chmod it" if mine else f"ask {owner} for access"
    return f"cannot {verb} {path}: {culprit} {who} (mode {mode}); {remedy}, or {otherwise}"


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:  # common in containers
        return f"user {number}"


_without_cleanup = False


def exit_without_cleanup() -> None:
    """Let `run_command` end this process via os._exit, skipping interpreter shutdown.

    Threads of torch.distributed that still run during the shutdown abort the process (exit code -6), though its run
    is done.
    """
    global _without_cleanup
    _without_cleanup = True


def _make_streams_encode_anything() -> None:
    """Print any text under any locale: UTF-8 into files and pipes, the terminal's encoding with escapes otherwise."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # tests and notebooks replace it by another class
            stream.reconfigure(encoding=None if stream.isatty() else "utf-8", errors="backslashreplace")


def run_command(main: Callable[[Sequence[str]], int | None]) -> None:
    """Run `main(argv)` and exit with the code that it returns; None is 0.

    A UserError is printed as its message and exits with its code; Ctrl-C with 130, as shells do; Unfinished with 75.
    Any other exception is a bug of ours and keeps its traceback.
    """
    _make_streams_encode_anything()
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
        elif _without_cleanup:
            traceback.print_exc()
            code = 1
        else:
            raise
    if _without_cleanup:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code or 0)
    sys.exit(code)
