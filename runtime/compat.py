"""Stand-ins for compiled parts that some machines lack, each used only where it is needed.

Imports nothing of this project, and torch only on demand, because every package imports it first.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

_NMS_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_libraries: list[Any] = []


class _BeforeTorchvision(importlib.abc.MetaPathFinder):
    """An import hook that finds nothing itself: it prepares torchvision just before its first import."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        if fullname == "torchvision":
            sys.meta_path.remove(self)
            prepare_torchvision()


def prepare_torchvision_on_import() -> None:
    """Call `prepare_torchvision` when torchvision is imported, so that commands without it need not load torch."""
    if not any(isinstance(finder, _BeforeTorchvision) for finder in sys.meta_path):
        sys.meta_path.insert(0, _BeforeTorchvision())


def prepare_torchvision() -> bool:
    """Declare torchvision's box operators where its compiled library cannot load.

    torchvision's wheel is built for CUDA. With a CPU-only torch its library silently
    fails to load, and `import torchvision` then raises "operator torchvision::nms does not exist", because it registers
    shape rules for undeclared operators. Declaring them is enough: calling one still fails, and nothing here uses
    boxes. Return whether that was needed.
    """
    if "torchvision" in sys.modules or _library_loads("torchvision"):
        return False
    import torch

    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library = torch.library.Library("torchvision", "FRAGMENT")
            library.define(name + _NMS_SCHEMA)
            _libraries.append(library)  # garbage collection of a Library removes its operators
    return True


def _library_loads(package: str) -> bool:
    """Return whether the package's compiled library `_C` can be loaded with this torch."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return True  # not installed
    library = importlib.machinery.PathFinder.find_spec("_C", list(spec.submodule_search_locations))
    if library is None or library.origin is None:
        return False
    import torch

    try:
        torch.ops.load_library(library.origin)
    except OSError:
        return False
    return True


class _MissingOperators(ModuleType):
    """Replaces `mmcv._ext`: any operator can be looked up, none can be called."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def missing(*_: Any, **__: Any) -> None:
            raise NotImplementedError(
                f"mmcv operator {name!r} needs the compiled mmcv, and mmcv-lite is installed; "
                "install mmcv 2.1.0 built with MMCV_WITH_OPS=1, or choose a head without it"
            )

        return missing


def prepare_mmcv() -> bool:
    """Let `import mmseg.models` work beside mmcv-lite, which has no compiled operators.

    Some of mmsegmentation's heads import operators of `mmcv._ext`; none of these heads is used here. A compiled mmcv
    is left unchanged. Return whether the stand-in was needed.
    """
    name = "mmcv._ext"
    if name in sys.modules or importlib.util.find_spec(name) is not None:
        return False
    stand_in = _MissingOperators(name, _MissingOperators.__doc__)
    # mmengine looks the module up by its spec, so it needs one.
    stand_in.__spec__ = importlib.machinery.ModuleSpec(name, loader=None)
    sys.modules[name] = stand_in
    return True
