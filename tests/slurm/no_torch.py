"""Imported first, it stands in for torch, of which a run directory's provenance asks for the GPU's name, no more.

A process begins in half a second instead of four: a test of a scheduler starts many.
"""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

torch, distributed = (ModuleType(name) for name in ("torch", "torch.distributed"))
no_gpu = SimpleNamespace(is_available=lambda: False, device_count=lambda: 0)
torch.__dict__.update(cuda=no_gpu, device=str, distributed=distributed)
sys.modules |= {"torch": torch, "torch.distributed": distributed}
