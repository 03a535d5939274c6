"""Stand-ins for compiled parts are put in where they are needed, and only there. Each case in a fresh process."""

import os
import shutil
import subprocess
import sys
import textwrap
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def python(code: str, *path: Path) -> subprocess.CompletedProcess[str]:
    """Run code in a new interpreter that sees `path` before everything else."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, [*path, ROOT])), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True, check=False)


def fake_torchvision(folder: Path, library: Path | None) -> Path:
    """A package named torchvision whose compiled library is a copy of `library`, or no library at all."""
    package = folder / "torchvision"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    target = package / f"_C{EXTENSION_SUFFIXES[0]}"
    if library is None:
        target.write_bytes(b"this is no shared library")
    else:
        shutil.copy(library, target)
    return folder


def some_shared_library() -> Path:
    """Any extension module that loads."""
    spec = find_spec("numpy.fft._pocketfft_umath")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin)


OPERATOR = "hasattr(torch.ops.torchvision, 'nms')"


def test_operators_are_declared_only_where_the_library_does_not_load(tmp_path):
    whole = fake_torchvision(tmp_path / "whole", some_shared_library())
    broken = fake_torchvision(tmp_path / "broken", None)
    done = python(
        f"""
        import sys, torch
        from runtime import compat
        print(compat.prepare_torchvision(), {OPERATOR})
        sys.path[sys.path.index({str(whole)!r})] = {str(broken)!r}
        print(compat.prepare_torchvision(), {OPERATOR}, hasattr(torch.ops.torchvision, "qnms"))
        print(compat.prepare_torchvision(), len(compat._libraries))  # again: found declared, nothing added
        """,
        whole,
    )
    assert done.stdout.splitlines() == ["False False", "True True True", "True 2"], done.stderr


def test_torch_is_loaded_only_when_torchvision_is(tmp_path):
    done = python(
        f"""
        import sys, runtime, data, vicregl, pretrain, eval, sweeps
        print("torch" in sys.modules)
        import torchvision
        print("torch" in sys.modules, {OPERATOR.replace("torch.ops", "sys.modules['torch'].ops")})
        """,
        fake_torchvision(tmp_path, None),
    )
    assert done.stdout.splitlines() == ["False", "True True"], done.stderr


def test_torchvision_imports_here_by_the_stand_in_or_without_need_of_it():
    prepared = python("from runtime import compat; import torchvision; print(len(compat._libraries))")
    assert prepared.returncode == 0, prepared.stderr
    alone = python("import torch, torchvision")
    if alone.returncode == 0:
        assert prepared.stdout == "0\n"
    else:
        assert "torchvision::nms" in alone.stderr
        assert prepared.stdout == "2\n"


def test_a_declared_operator_still_fails_when_called(tmp_path):
    done = python(
        "import torch, runtime, torchvision; torch.ops.torchvision.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)",
        fake_torchvision(tmp_path, None),
    )
    assert done.returncode != 0
    assert "NotImplementedError" in done.stderr


def test_a_compiled_mmcv_is_left_as_it_is(tmp_path):
    package = tmp_path / "mmcv"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "_ext.py").write_text("def nms(): return 'compiled'\n")
    done = python(
        """
        from runtime import compat
        print(compat.prepare_mmcv())
        import mmcv._ext
        print(mmcv._ext.nms(), compat.prepare_mmcv())
        """,
        tmp_path,
    )
    assert done.stdout.splitlines() == ["False", "compiled False"], done.stderr


def test_without_compiled_operators_mmseg_imports_and_a_call_says_what_is_missing(tmp_path):
    package = tmp_path / "mmcv"
    package.mkdir()
    (package / "__init__.py").write_text("")  # as mmcv-lite: no _ext in it
    done = python(
        """
        import importlib.util, sys
        from runtime import compat
        print(compat.prepare_mmcv(), compat.prepare_mmcv())
        extension = sys.modules["mmcv._ext"]
        print(importlib.util.find_spec("mmcv._ext").name, hasattr(extension, "__path__"))
        extension.modulated_deform_conv_forward(1, key=2)
        """,
        tmp_path,
    )
    assert done.stdout.splitlines() == ["True False", "mmcv._ext False"], done.stderr
    assert "NotImplementedError" in done.stderr
    for words in ("'modulated_deform_conv_forward'", "compiled mmcv", "MMCV_WITH_OPS=1", "choose a head without it"):
        assert words in done.stderr
