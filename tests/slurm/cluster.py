"""A real SLURM cluster of two nodes on this machine: munge, MariaDB, slurmdbd, slurmctld and two slurmd.

Everything lies in one folder, listens on free ports of 127.0.0.1 and is stopped by process id, so that two
clusters can live side by side and one that was killed leaves nothing that the next start does not clear away.
The nodes n1 and n2 say they have more cores than there are, so that jobs overlap, and two GPUs each.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from slurm_conf import SETTINGS, write_configs

NODES = ("n1", "n2")
DAEMONS = ("munged", "mariadbd", "mariadb-install-db", "slurmdbd", "slurmctld", "slurmd", "sbatch", "sacctmgr")
FOLDERS = Path("/tmp")  # short, as paths of sockets must be; open to every user, as munge wants it
PREFIX = "slurm-test-"
BESIDE = "beside"  # names of jobs that begin so outlive a test
_PR_SET_PDEATHSIG = 1


def why_not() -> str | None:
    """Why no cluster can be started here, or None where it can."""
    if os.geteuid() != 0:
        return "a SLURM cluster is started by root, and this is another user"
    missing = [name for name in DAEMONS if shutil.which(name) is None]
    if missing:
        return f"no {', '.join(missing)} here: `make install-slurm` installs them"
    for node in NODES:
        try:
            socket.gethostbyname(node)
        except OSError:
            return f"the host name {node} does not resolve: `make install-slurm` puts it into /etc/hosts"
    return None


@dataclass
class Cluster:
    """The daemons of one cluster; `start` makes its folder, `stop` removes it with every process that came of it."""

    cpus: int = 8  # of each node
    memory: int = 8000  # MB of each node
    accounting: bool = True
    settings: dict[str, str] = field(default_factory=lambda: dict(SETTINGS))

    def __post_init__(self) -> None:
        clear_leftovers()
        self.folder = FOLDERS / f"{PREFIX}{os.getpid()}-{time.time_ns() % 10**9}"
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        self.controllers_lost = 0  # times that slurmctld was ended

    @property
    def environment(self) -> dict[str, str]:
        """Of a shell on the cluster's login node; nothing of a job that this process may itself be."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_", "SUBMITIT_"))}
        return kept | {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def start(self) -> None:
        self.folder.mkdir(mode=0o755)
        (self.folder / "owner").write_text(json.dumps(_who(os.getpid())))
        for name in ("state", *(f"spool-{node}" for node in NODES)):
            (self.folder / name).mkdir()
        for gpu in range(2):
            # A device that does nothing, as /dev/null: with a plain file jobs would not be told CUDA_VISIBLE_DEVICES.
            os.mknod(self.folder / f"gpu{gpu}", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        self.ports = free_ports(5)
        self._write_configs()
        self._start_munge()
        if self.accounting:
            self._start_database()
            self.start_accounting()
            self.run("sacctmgr", "-i", "add", "cluster", "test")
        self.start_controller()
        for node in NODES:
            self.start_node(node)
        self.wait_for_nodes()

    def stop(self) -> None:
        for name in reversed(list(self.daemons)):
            self.kill(name, signal.SIGKILL)
        end_processes_of(self.folder)
        shutil.rmtree(self.folder, ignore_errors=True)

    def run(self, *command: object, check: bool = True, timeout: float = 600) -> str:
        """A client command's output; with `check`, one that fails raises with what it said."""
        done = subprocess.run(
            [str(part) for part in command], env=self.environment, capture_output=True, text=True, timeout=timeout
        )
        if check and done.returncode:
            raise RuntimeError(f"{command} failed with {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout

    def configure(self, **settings: str) -> None:
        """Change lines of slurm.conf and restart slurmctld, which some of them need."""
        self.settings |= settings
        self._write_configs()
        self.kill("slurmctld", signal.SIGTERM)
        self.start_controller()
        self.run("scontrol", "reconfigure")
        self.wait_for_nodes()

    def start_accounting(self) -> None:
        self._start("slurmdbd", "slurmdbd", "-D")
        wait_until(lambda: self._answers("sacctmgr", "-n", "show", "cluster"), "slurmdbd answers")

    def start_controller(self) -> None:
        self._start("slurmctld", "slurmctld", "-D")
        wait_until(lambda: self._answers("scontrol", "ping"), "slurmctld answers")

    def start_node(self, node: str) -> None:
        self._start(f"slurmd-{node}", "slurmd", "-D", "-N", node)

    def wait_for_nodes(self) -> None:
        def ready() -> bool:
            states = self.run("sinfo", "-h", "-N", "-p", "low", "-o", "%N %t", check=False).split("\n")
            up = [line for line in states if line and line.split()[1] in ("idle", "mix", "alloc", "comp", "resv")]
            return len(up) == len(NODES)

        try:
            wait_until(ready, "both nodes are up")
        except TimeoutError as error:
            raise TimeoutError(f"{error}\n{self.run('sinfo', '-R', check=False)}{self.logs()}") from error

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        """End one daemon: munged, mariadbd, slurmdbd, slurmctld, slurmd-n1 or slurmd-n2; processes of jobs live on."""
        process = self.daemons.pop(name, None)
        if process is None:
            return
        self.controllers_lost += name == "slurmctld"
        process.send_signal(number)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def lose_controller(self) -> None:
        """kill -9 of slurmctld, once it has written down all that it knows, which takes it up to five seconds.

        Else it forgets the jobs of its last seconds and gives their numbers to others, and a node that is sent a number
        for the second time is drained.
        """
        mark = f"known-{time.time_ns()}"
        job = self.run("squeue", "-h", "-o", "%A").split()[0]
        self.run("scontrol", "update", f"JobId={job}", f"Comment={mark}")
        state = self.folder / "state" / "job_state"
        wait_until(lambda: mark.encode() in state.read_bytes(), "slurmctld has written down its jobs")
        self.kill("slurmctld", signal.SIGKILL)

    def processes_of_node(self, node: str) -> list[int]:
        """Of the jobs on it, slurmstepd before the tasks: it would report that they died."""
        tasks = set(_processes_with(f"SLURMD_NODENAME={node}\0".encode())) & set(self._processes())
        parents = {int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) for pid in tasks}
        steps = [pid for pid in parents - tasks if b"slurmstepd" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        return [*steps, *tasks]

    def take_nodes(self, *asked: str) -> None:
        """For a job of higher priority that asks for them, until that is done."""
        submit = ("sbatch", "--parsable", "-p", "high", "-o", "/dev/null", *asked, "--wrap", "true")
        state = ("squeue", "-h", "-j", self.run(*submit).strip(), "--states=all", "-o", "%T")
        wait_until(lambda: self.run(*state).strip() == "COMPLETED", "the job of higher priority is done")

    @contextmanager
    def crash_and_forget(self) -> Iterator[None]:
        """What is submitted within the block slurmctld forgets: it is killed at its end, and had written down nothing.

        Numbers of jobs begin further up then: a node that is sent a number for the second time is drained.
        """
        state, former = self.folder / "state", self.folder / "former-state"
        shutil.copytree(state, former)
        yield
        self.kill("slurmctld", signal.SIGKILL)
        shutil.rmtree(state)
        former.rename(state)
        self.settings["FirstJobId"] = "10000"
        self._write_configs()
        self.start_controller()

    def tasks_of(self, folder: Path) -> list[int]:
        """The Python processes of its jobs that run code of `folder`, without the srun that started them."""
        started, tasks = os.fsencode(folder), []
        for pid in self._processes():
            with suppress(OSError):  # it has ended since
                program, *arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                tasks += [pid] * (b"python" in program and any(started in argument for argument in arguments))
        return tasks

    def _processes(self) -> list[int]:
        return _processes_with(f"SLURM_CONF={self.folder}/".encode())

    def clear(self) -> None:
        """Cancel every job and wait until none is left, but for those that go on beside the tests: where one begins."""

        def left() -> list[str]:
            jobs = [line.split("|") for line in self.run("squeue", "-h", "-o", "%i|%j", check=False).splitlines()]
            return [job for job, name in jobs if not name.startswith(BESIDE)]

        if jobs := left():
            self.run("scancel", "--quiet", *{job.partition("_")[0] for job in jobs}, check=False)
        wait_until(lambda: not left(), "no job is left")
        # What went wrong in one test must not fail the ones after it.
        self.run("scontrol", "update", f"NodeName={','.join(NODES)}", "State=RESUME", check=False)
        self.wait_for_nodes()

    def logs(self) -> str:
        """The last lines of every daemon's log."""
        parts = []
        for log in sorted(set(self.folder.glob("*.log")) - set(self.folder.glob("slurm*.out.log"))):
            lines = log.read_text(errors="replace").splitlines()[-15:]
            parts.append("\n".join([f"--- {log.name}", *lines]))
        return "\n".join(parts)

    def _write_configs(self) -> None:
        write_configs(self.folder, self.ports, self.settings, self.cpus, self.memory, self.accounting)

    def _start_munge(self) -> None:
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        files = {"key-file": key, "socket": self.folder / "munge.socket", "pid-file": self.folder / "munged.pid"}
        files |= {"log-file": self.folder / "munged.log", "seed-file": self.folder / "munged.seed"}
        options = [f"--{name}={path}" for name, path in files.items()]
        self._start("munged", "munged", "--foreground", "--num-threads=2", *options)
        wait_until(files["socket"].exists, "munged listens")

    def _start_database(self) -> None:
        data, port = self.folder / "database", self.ports[0]
        # It lives for minutes: nothing of it has to reach a disk.
        small = ["--innodb-flush-method=nosync", "--innodb-log-file-size=4M", "--innodb-buffer-pool-size=16M"]
        install = ["mariadb-install-db", "--no-defaults", f"--datadir={data}", "--user=root", "--skip-test-db"]
        self.run(*install, "--auth-root-authentication-method=normal", *small)
        self._start(
            "mariadbd",
            *["mariadbd", "--no-defaults", f"--datadir={data}", "--user=root", "--bind-address=127.0.0.1"],
            *[f"--port={port}", f"--socket={self.folder}/mariadb.socket", f"--pid-file={self.folder}/mariadb.pid"],
            *[*small, "--innodb-flush-log-at-trx-commit=0", "--performance-schema=OFF"],
        )
        wait_until((self.folder / "mariadb.socket").exists, "MariaDB listens")

    def _start(self, name: str, *command: str) -> None:
        with open(self.folder / f"{name}.out.log", "ab") as log:
            self.daemons[name] = subprocess.Popen(
                command,
                env=self.environment,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_parent(),
            )

    def _answers(self, *command: str) -> bool:
        for name, process in self.daemons.items():
            if process.poll() is not None:
                raise RuntimeError(f"{name} ended with {process.returncode}\n{self.logs()}")
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True)
        return done.returncode == 0 and "DOWN" not in done.stdout


def wait_until(condition: Callable[[], object], what: str, seconds: float = 600, poll: float = 0.2) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"after {seconds:g} s it was still not so that {what}")
        time.sleep(poll)


def free_ports(count: int) -> list[int]:
    """Ports in a row that nobody listens on: slurm.conf gives the nodes a range. Away from the ephemeral ones."""
    first = 17000 + os.getpid() % 1000 * 10
    for start in range(first, 30000, 10):
        if all(_is_free(port) for port in range(start, start + count)):
            return list(range(start, start + count))
    raise RuntimeError("no free ports from 17000 to 30000")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _die_with_parent() -> Callable[[], None]:
    libc = ctypes.CDLL(None)
    return lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _who(pid: int) -> Sequence[int] | None:
    """A process, told from a later one of the same id by when it began; None where there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else [pid, int(fields[19])]


def clear_leftovers() -> None:
    """End and remove the clusters whose starter is gone."""
    for folder in FOLDERS.glob(f"{PREFIX}*"):
        try:
            owner = json.loads((folder / "owner").read_text())
        except (OSError, ValueError):
            continue
        if _who(owner[0]) != owner:
            end_processes_of(folder)
            shutil.rmtree(folder, ignore_errors=True)


def end_processes_of(folder: Path) -> None:
    """Kill every process that was started for the cluster in `folder`: daemons, job steps and what they started."""
    mark = f"SLURM_CONF={folder}/".encode()
    deadline = time.monotonic() + 20
    while (found := _processes_with(mark)) and time.monotonic() < deadline:
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)


def _processes_with(mark: bytes) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with suppress(OSError):
            if mark in (entry / "environ").read_bytes() and _who(int(entry.name)):
                found.append(int(entry.name))
    return found
