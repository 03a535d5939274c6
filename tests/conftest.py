"""What tests of several stages need: small datasets, and commands as a user runs them."""

import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from PIL import Image

import runtime  # noqa: F401  (prepares torchvision beside a CPU-only torch)
from data.config import DataConfig, ScenesConfig

ROOT = Path(__file__).resolve().parents[1]
hypothesis.settings.load_profile("ci")  # the same examples each time, without a limit of milliseconds for one


def pytest_configure(config: pytest.Config) -> None:
    """Hide GPUs, also from processes that tests start, unless `pytest -m gpu` asks for their tests.

    All other tests compare numbers with those of the CPU, which a GPU would round otherwise.
    """
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    # A shell's job in the background ignores Ctrl-C, and nohup's HUP: so would every process that a test interrupts.
    for number, handler in {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}.items():
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files of the most slow tests: xdist gives out whole files, and a long one at the end is one alone.

    Those of SLURM keep their order: what takes minutes begins in one of them and is looked at in a later one.
    """
    slow = Counter(i.path for i in items if i.get_closest_marker("slow") and not i.get_closest_marker("slurm"))
    items.sort(key=lambda item: -slow[item.path])


def pytest_runtest_setup(item: pytest.Item) -> None:
    # A plain DataLoader of an earlier test leaves a handler that raises when workers of this one are killed.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if item.get_closest_marker("gpu") is None:
        return
    import torch

    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, and `pytest -m gpu`")


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory) -> Path:
    """48 training and 16 validation images of 32 x 32 pixels in four classes that differ in colour."""
    root = tmp_path_factory.mktemp("image_folder")
    random = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 4)):
        for label, colour in enumerate(random.integers(0, 256, (4, 3))):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = colour + random.normal(0, 40, (32, 32, 3))
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{i}.png")
    return root


@pytest.fixture(scope="session")
def scenes_parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("datasets")


@pytest.fixture
def small_scenes(scenes_parent: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DataConfig]:
    """The embedded dataset with 60 + 20 images, made once a session."""
    monkeypatch.setenv("VICREGL_DATA", str(scenes_parent))
    return DataConfig(scenes=ScenesConfig(train=60, val=20))


@pytest.fixture
def folder_of_60(small_scenes: DataConfig, tmp_path: Path) -> DataConfig:
    """A copy of those 60 images as an ImageFolder tree that a test may spoil."""
    from data.catalog import open_dataset

    root = open_dataset(small_scenes).root
    for split in ("train", "val"):
        shutil.copytree(root / split, tmp_path / "tree" / split)
    return DataConfig(name="imagefolder", root=str(tmp_path / "tree"))


@pytest.fixture(scope="session")
def forget() -> Callable[[str], None]:
    """Take a package of the user's own out of this process again: other tests look at all that is registered."""
    from data import catalog
    from data.config import DATASETS
    from eval.config import EVALUATIONS
    from pretrain import criterion
    from runtime import imports

    def forget(package: str) -> None:
        imports._import_package.cache_clear()
        sys.modules.pop(package, None)
        for registry in (catalog._OPENERS, criterion._CRITERIA, EVALUATIONS):
            registered = {name: getattr(value, "work", value) for name, value in registry.items()}
            for name in (name for name, function in registered.items() if function.__module__ == package):
                del registry[name]
        DATASETS[:] = [name for name in DATASETS if name in catalog._OPENERS]

    return forget


@pytest.fixture
def command():
    """Run `python -m ...` as a user does: one thread, from the project's root; returns the finished process."""

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", *map(str, arguments)],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


class SmallDisk:
    """Mounts a real file system of some megabytes at `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, megabytes: int) -> Path:
        self.path.mkdir()
        size = f"size={megabytes}m"
        mount = ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(self.path)]
        mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
        if mounted.returncode:
            pytest.skip(f"cannot mount a small disk here: {mounted.stderr.strip()}")
        return self.path


@pytest.fixture
def small_disk(tmp_path):
    disk = SmallDisk(tmp_path / "disk")
    yield disk
    if os.path.ismount(disk.path):
        subprocess.run(["umount", disk.path], check=True)


_numbers = itertools.count(os.getpid())


def next_port() -> str:
    """Find a port that no other test gets, nor a connection before it is used: those have 32768 and more."""
    block = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % 10  # of one of xdist's processes
    while True:
        port = 7000 + 1000 * block + next(_numbers) % 1000
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):  # nobody listens there
                return str(port)


@pytest.fixture
def port() -> str:
    return next_port()


class Ranks:
    """Starts the processes of one run, as torchrun would; those that a failed test leaves behind are ended."""

    def __init__(self) -> None:
        self.started: list[subprocess.Popen[str]] = []

    def __call__(self, count: int, *arguments: object, **environment: str) -> list[subprocess.Popen[str]]:
        """`python <arguments>` in `count` processes, from the project's root, with pipes for what they print."""
        meet = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": next_port()}
        command = [sys.executable, *map(str, arguments)]
        ranks = []
        for rank in range(count):
            own = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | environment | {"RANK": str(rank)}
            settings = os.environ | meet | own
            pipe = subprocess.PIPE
            ranks.append(subprocess.Popen(command, cwd=ROOT, env=settings, stdout=pipe, stderr=pipe, text=True))
        self.started += ranks
        return ranks

    @staticmethod
    def ended(ranks: list[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
        """(exit code, stdout, stderr) of each; they must end by themselves."""
        outputs = [rank.communicate() for rank in ranks]
        return [(rank.returncode, *output) for rank, output in zip(ranks, outputs, strict=True)]


@pytest.fixture
def ranks():
    started = Ranks()
    yield started
    for process in started.started:
        process.kill()
        process.communicate()
