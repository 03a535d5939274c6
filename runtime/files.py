"""Atomic writes, folders, locks, and YAML files by name, with errors that say what to do."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from runtime import PROJECT
from runtime.errors import UserError, explain

LOCK_TAKEN = (errno.EAGAIN, errno.EACCES)  # POSIX allows both for a lock that another process has
LOCKS_REFUSED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # by the file system


def make_folder(folder: Path, otherwise: str) -> None:
    """Make the folder if it is missing; UserError, before anything is written, where that or writing there fails.

    `otherwise`: how the user chooses another folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        require_writable(folder, otherwise)
    except OSError as error:
        if explained := explain(error, folder, otherwise):
            raise UserError(explained) from error
        raise


def require_space(folder: Path, needed: float, what: str, advice: str) -> None:
    """UserError, with the advice, where `what` needs more bytes than the disk of the folder has free."""
    if needed > (free := shutil.disk_usage(folder).free):
        gigabytes = f"{needed / 1e9:.0f} GB more and the disk has {free / 1e9:.0f} GB free"
        raise UserError(f"{folder}: {what} needs about {gigabytes}; {advice}")


def require_writable(folder: Path, otherwise: str) -> None:
    """Raise UserError if files cannot be created in the folder or, if it is missing, the folder itself cannot."""
    nearest = next((place for place in (folder, *folder.parents) if os.path.lexists(place)), folder)
    code = 0
    if not os.path.isdir(nearest):
        code = errno.ENOTDIR
    elif not os.access(nearest, os.W_OK | os.X_OK):
        read_only = os.statvfs(nearest).f_flag & os.ST_RDONLY
        code = errno.EROFS if read_only else errno.EACCES
    if code and (explained := explain(OSError(code, os.strerror(code), str(folder)), folder, otherwise)):
        raise UserError(explained)


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write(temporary)` write a temporary file, then move it to `path` in one step.

    If anything fails, the former file at `path` is kept and the temporary one is removed. A full disk or a folder that
    cannot be written raises a UserError.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        # Without this, a crash of the machine after the rename could leave an empty file under the final name.
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)  # the rename itself is an entry of the folder
    except BaseException as error:
        with suppress(OSError):  # on a read-only file system it was never created
            temporary.unlink(missing_ok=True)
        if _is_disk_full(error):
            kept = "the former version is kept" if path.exists() else "nothing was there before"
            raise UserError(f"no space left on the disk while saving {path}; {kept}. Free some and repeat.") from error
        if isinstance(error, OSError) and (explained := explain(error, path)):
            raise UserError(explained) from error
        raise


def _is_disk_full(error: BaseException) -> bool:
    """Return whether a write failed for lack of space; torch raises a RuntimeError, not always with its cause."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return isinstance(error, RuntimeError) and any(
        word in str(error) for word in ("PytorchStreamWriter failed", "unexpected pos", "No space left")
    )


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 under any locale; file names that are not UTF-8 (surrogates in Python) keep their bytes."""
    write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8", errors="surrogateescape"))


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def finite(values: Sequence[float]) -> list[float | None]:
    """None in place of NaN and infinity, which JSON does not have."""
    return [value if math.isfinite(value) else None for value in values]


def read_json(path: Path) -> Any | None:
    """Return the file's value, or None where the file is missing or was damaged by a crash of the machine."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):  # a JSONDecodeError and a UnicodeDecodeError are ValueErrors
        return None


def read_json_object(path: Path) -> dict[str, Any] | None:
    """Return the file's mapping; None also where it holds another value, which none of our files does."""
    value = read_json(path)
    return value if isinstance(value, dict) else None


def write_tensors(path: Path, tensors: Mapping[str, Any]) -> None:
    """Write tensors by name as safetensors."""
    from safetensors.torch import save  # loads torch, which a login node does without

    # Not by save_file: a kill would leave its temporary file, and only the owner could read the result.
    write_atomic(path, lambda temporary: temporary.write_bytes(save(dict(tensors))))


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a .jsonl file, without a last line that a killed process left incomplete."""
    if not path.exists():
        return
    with open(path, encoding="utf-8") as file:
        for line in file:
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                return


@contextmanager
def lock(file: Path, wait: bool = True, otherwise: str = "choose another place") -> Iterator[bool]:
    """Hold the lock `file` during the block; yield False where `wait` is off and another process has it.

    UserError where the file system has no locks; `otherwise`: how the user chooses another one. A process must not nest
    two locks of one file: closing the inner one drops both.
    """
    # POSIX (lockf), because the kernel drops it when the process dies, NFS carries it between hosts, and forked workers
    # of a loader do not keep it alive, as they would with flock (which is what the library filelock takes).
    handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)  # less the umask: members of a group may share runs
    try:
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            held = True
        except OSError as error:  # going on without a lock could lose another process's writes
            if error.errno in LOCKS_REFUSED:
                raise UserError(_explain_refused_locks(file, error, otherwise)) from error
            if wait or error.errno not in LOCK_TAKEN:
                raise
            held = False
        yield held
    finally:
        os.close(handle)


def _explain_refused_locks(file: Path, error: OSError, otherwise: str) -> str:
    place = next(folder for folder in file.resolve().parents if os.path.ismount(folder))
    mounts = Path("/proc/self/mounts")  # "device place type options", of Linux; the latest of a place is the last
    lines = mounts.read_text(encoding="utf-8", errors="replace").splitlines() if mounts.exists() else []
    kinds = [kind for _, at, kind, *_ in map(str.split, lines) if at == str(place)]
    named = f"{place} ({kinds[-1]})" if kinds else place
    return (
        f"cannot lock {file}: the file system of {named} refuses locks ({error.strerror}), and without them two "
        "processes could write the same files. NFS 3 needs its services lockd and statd, Lustre the mount option "
        f"flock: have them set up, or {otherwise}"
    )


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files of killed processes. Only for the process that holds the folder's lock."""
    for leftover in folder.glob(".*.tmp"):
        leftover.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find_yaml(name: str | Path, folder: str, kind: str) -> Path:
    """Return the YAML file that a path or a name stands for: the path if it is a file, or else what the checkout has.

    The checkout may have the path (sweeps/studies/alpha.yaml), or in its `folder` the name (alpha, alpha.yaml).
    UserError, with the nearest names, where there is no such file; `kind` says in it what is sought.
    """
    path = Path(name)
    if path.is_file():
        return path
    named = [PROJECT / folder / path.name, PROJECT / folder / f"{path.name}.yaml"] if path.name == str(name) else []
    found = next((file for file in (PROJECT / path, *named) if file.is_file()), None)
    if found is None:
        raise no_such_yaml(path, kind, folder)
    return found.relative_to(PROJECT) if Path.cwd() == PROJECT else found


def yaml_names(folder: str) -> list[str]:
    """Return the names by which `find_yaml` knows the files in this folder of the checkout."""
    return sorted(file.stem for file in (PROJECT / folder).glob("*.yaml"))


def no_such_yaml(path: Path, kind: str, folder: str = "") -> UserError:
    """Return the error for a missing file, with the nearest files beside it and names in the checkout's `folder`."""
    names = yaml_names(folder) if folder else []
    near = get_close_matches(path.name, [file.name for file in path.parent.glob("*.yaml")], n=3)
    near += get_close_matches(path.stem, names, n=3)
    hint = f"; near it: {', '.join(near)}" if near else f"; in {folder} there are: {', '.join(names)}" if names else ""
    return UserError(f"{kind} {path} does not exist{hint}")
