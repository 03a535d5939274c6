"""Where a result came from: code, versions, machine, command."""

from __future__ import annotations

import hashlib
import os
import platform
import socket
import subprocess
import sys
import time
import tomllib
from dataclasses import asdict, dataclass, fields
from importlib import metadata
from pathlib import Path
from typing import Any

from runtime import PACKAGES, PROJECT, files
from runtime.device import available_cores, driver_version
from runtime.world import world_from_environment

DISTRIBUTION = "vicregl-bench"
# Sources that can change a result. YAML configs need not be hashed: the run directory holds the resolved config.
_HASHED = (".py", ".csv")
# In a copy of the code for a submission (sweeps/slurm/records.py): the identity of the original.
SNAPSHOT = "snapshot.json"
# Of everything that can change a pixel or a number.
VERSIONS_OF = (
    *("torch", "torchvision", "timm", "mmengine", "mmsegmentation", "mmcv-lite", "mmcv", "numpy", "scipy"),
    *("scikit-learn", "opencv-python", "opencv-python-headless", "pillow", "simplejpeg", "safetensors", "submitit"),
)
# git sets these in hooks and aliases of another repository; ours must not be looked up by them.
_FOREIGN_GIT = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX")
_GIT_FAILED = "git does not answer"


class NoCommitError(Exception):
    """The code has no commit, or git cannot determine it; the message says why."""


@dataclass(frozen=True)
class Code:
    """The identity of the code: its commit and the changes since, or else its version and a hash of its sources."""

    commit: str | None = None
    diff: str = ""  # of tracked sources, and the hashes of untracked ones
    no_commit: str | None = None  # why it has no commit
    version: str | None = None
    sources: str | None = None  # SHA-256

    def to_record(self) -> dict[str, Any]:
        """Return the entries for run.yaml and submission.yaml, without the text of the diff."""
        if self.commit is not None:
            return {"commit": self.commit, "dirty": bool(self.diff)}
        return {key: value for key, value in asdict(self).items() if key != "diff"} | {"dirty": None}

    @property
    def warning(self) -> str | None:
        """Return a warning where there is a checkout and git cannot determine its commit."""
        failed = self.no_commit is not None and self.no_commit.startswith(_GIT_FAILED)
        return f"{self.no_commit}; the run names the code by a hash of its sources" if failed else None


def collect() -> dict[str, Any]:
    """Record the code, versions, host, processor, command and time of this process."""
    import torch

    return {
        **code().to_record(),
        **({"snapshot": str(PROJECT)} if _snapshot() is not None else {}),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "host": socket.gethostname(),
        "job": os.environ.get("SLURM_JOB_ID"),
        "processor": processor_name(),
        "cores": available_cores(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "processes": world_from_environment().size,
        "argv": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "python": platform.python_version(),
        "versions": _versions(),
    }


def code() -> Code:
    """Identify the code of a checkout, of a copy for a submission, or of an installed or unpacked copy without git."""
    snapshot = _snapshot()
    if snapshot is not None:
        return Code(**{field.name: snapshot.get(field.name, field.default) for field in fields(Code)})
    try:
        _require_own_repository()
        # Of sources alone: who edits a study's file, or remakes a report, has the same code.
        sources = [f"*{suffix}" for suffix in _HASHED] + [":!reports", ":!tests"]
        diff = _git("diff", "--no-ext-diff", "--no-color", "HEAD", "--", *sources).decode(errors="replace")
        parts = [diff.strip(), *_untracked_sources()]
        return Code(_git("rev-parse", "HEAD").decode().strip(), "\n".join(part for part in parts if part))
    except NoCommitError as reason:
        return Code(no_commit=str(reason), version=version(), sources=_hash_of_sources())


def _untracked_sources() -> list[str]:
    """Name each source of the packages that git does not track yet, as an evaluation that was just written."""
    names = [name for name in checkout_files("--others") if name.partition("/")[0] in PACKAGES]
    # Git names a repository within this one, or a link to a folder, and not what is in it.
    inner = [sorted(path.rglob("*")) if (path := PROJECT / name).is_dir() else [path] for name in names]
    # An editor's lock may be a link to nothing, named .#module.py.
    sources = [file for paths in inner for file in paths if file.suffix in _HASHED and file.is_file()]
    return [f"untracked {file.relative_to(PROJECT)}: SHA-256 {files.sha256(file)}" for file in sources]


def _snapshot() -> dict[str, Any] | None:
    """Read the record of a copy for a submission; None elsewhere."""
    return files.read_json_object(PROJECT / SNAPSHOT)


def checkout_files(*which: str) -> list[str]:
    """Return the sorted paths of `git ls-files`, `which` as --cached; NoCommitError where there is no checkout."""
    _require_own_repository()
    listed = _git("ls-files", *which, "--exclude-standard", "-z")
    return sorted(os.fsdecode(name) for name in listed.split(b"\0") if name)


def _git(*arguments: str) -> bytes:
    """Return git's output in the project's folder. NoCommitError where that is no checkout, or git fails.

    An outer repository is not used: an installed copy may lie within the checkout of another project.
    """
    if not (PROJECT / ".git").exists():
        raise NoCommitError("not a git checkout")
    environment = {key: value for key, value in os.environ.items() if key not in _FOREIGN_GIT}
    environment |= {"GIT_CEILING_DIRECTORIES": str(PROJECT.parent), "LC_ALL": "C"}
    try:
        done = subprocess.run(["git", *arguments], cwd=PROJECT, env=environment, capture_output=True, check=True)
    except OSError as error:
        raise NoCommitError(f"{_GIT_FAILED}: it cannot be started ({error.strerror})") from error
    except subprocess.CalledProcessError as error:
        raise NoCommitError(f"{_GIT_FAILED}: {' '.join(error.stderr.decode(errors='replace').split())}") from error
    return done.stdout


def _require_own_repository() -> None:
    """Raise NoCommitError if the repository is another project's, into which this code was copied or installed."""
    if not _git("ls-files", "--", str(Path(__file__).resolve().relative_to(PROJECT))):
        raise NoCommitError("in a git repository that does not hold this code")


def package_files() -> list[str]:
    """Return the sorted relative paths of all files of the project's packages, without caches."""
    paths = []
    for package in PACKAGES:
        for folder, inner, names in os.walk(PROJECT / package):
            cache = Path(folder) == PROJECT / "data"
            inner[:] = [n for n in inner if n != "__pycache__" and n[0] != "." and not (cache and n == "cache")]
            paths += [(Path(folder) / name).relative_to(PROJECT).as_posix() for name in names]
    return sorted(paths)


def _hash_of_sources() -> str:
    digest = hashlib.sha256()
    for name in package_files():
        if name.endswith(_HASHED):
            content = (PROJECT / name).read_bytes()
            digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def version() -> str | None:
    """Return the version in the project's pyproject.toml, or else of the installed distribution."""
    try:
        project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8")).get("project", {})
    except (OSError, ValueError):
        project = {}
    if project.get("name") == DISTRIBUTION:
        return project.get("version")
    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return None


def processor_name() -> str:
    """Return the processor's model name where Linux has it, else the architecture."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.machine()


def _versions() -> dict[str, str]:
    """Return the versions of the installed libraries, and on a GPU those of CUDA, cuDNN and the driver."""
    import torch

    versions: dict[str, str] = {}
    for name in VERSIONS_OF:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    if torch.cuda.is_available():
        known = {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(), "driver": driver_version()}
        versions |= {name: str(version) for name, version in known.items() if version is not None}
    return versions
