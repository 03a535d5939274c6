"""Which tests see a GPU: those marked `gpu`, by `pytest -m gpu`, and no others."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]


def test_other_tests_see_no_gpu() -> None:
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    assert not torch.cuda.is_available()


@pytest.mark.parametrize(("options", "visible"), [(["-m", "gpu"], "0"), ([], ""), (["-m", "not slow"], "")])
def test_their_own_run_alone_leaves_gpus_visible(tmp_path, options, visible) -> None:
    file = tmp_path / "test_it.py"
    file.write_text(
        f"import os, pytest\nassert os.environ['CUDA_VISIBLE_DEVICES'] == {visible!r}\n"
        "@pytest.mark.gpu\ndef test_on_a_gpu(): pass\n"
    )
    plain = ["-m", "pytest", "-c", str(ROOT / "pyproject.toml"), "-p", "no:cacheprovider", "-p", "conftest"]
    environment = os.environ | {
        "CUDA_VISIBLE_DEVICES": "0",
        "PYTHONPATH": os.pathsep.join([str(ROOT), f"{ROOT}/tests"]),
    }
    command = [sys.executable, *plain, str(file), "-rs", *options]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert visible or "needs a CUDA device" in done.stdout
