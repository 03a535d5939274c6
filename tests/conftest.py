"""What tests of several stages need: a tiny ImageFolder dataset, and commands as a user runs them."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]


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


@pytest.fixture
def command():
    """Run `python -m ...` as a user does: one thread, from the project's root; returns the finished process."""

    def run(*arguments: object, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", *map(str, arguments)],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=timeout,
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
