"""A pretended CUDA device on a CPU build of torch, and a count of what it is asked for.

    with pretend() as asked:            # imported before torch; needs g++, once
        ...                             # fake tensors on cuda: shapes, dtypes and devices, no numbers
    asked.launches, asked.waits, asked.collectives

An operation on tensors of two devices raises, as on a GPU. What this cannot see: wrong numbers, operations that CUDA
lacks, the time that anything takes.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]


def load_guard() -> None:
    """Build and load the library that makes a CPU build of torch accept the device; torch must not be imported yet."""
    assert "torch" not in sys.modules, "import benchmarks.pretend_cuda before torch"
    source = Path(__file__).with_suffix(".cpp")
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    torch_folder = Path(spec.submodule_search_locations[0])
    library = ROOT / "build" / "pretend_cuda.so"
    newest = max(source.stat().st_mtime, (torch_folder / "version.py").stat().st_mtime)
    if not library.exists() or library.stat().st_mtime < newest:
        library.parent.mkdir(exist_ok=True)
        include, lib = torch_folder / "include", torch_folder / "lib"
        folders = [f"-I{include}", f"-I{include / 'torch/csrc/api/include'}", f"-L{lib}", f"-Wl,-rpath,{lib}"]
        options = ["-O1", "-shared", "-fPIC", "-std=c++20", *folders]
        subprocess.run(["g++", *options, source, "-o", library, "-lc10", "-ltorch_cpu"], check=True)
    ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)


load_guard()

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_leaves  # noqa: E402
from torch.utils.flop_counter import flop_registry  # noqa: E402

aten = torch.ops.aten
NO_KERNEL = ("detach", "alias", "lift_fresh", "resize_", "record_stream")
# Most tensors that one kernel of a foreach operation takes, by the number of its lists; and its blocks and their size.
FOREACH_TENSORS = {1: 110, 2: 64, 3: 48, 4: 36, 5: 30}
FOREACH_BLOCKS, BLOCK_NUMBERS = 320, 65536
# An H100 by its data sheet, times what good kernels reach of it: FLOP and bytes a second; and the least that one takes.
FLOPS = {torch.float64: 0.7 * 67e12, torch.float32: 0.75 * 67e12, torch.bfloat16: 0.6 * 989e12}
FLOPS |= {torch.float16: FLOPS[torch.bfloat16]}
BYTES, SECONDS = 0.8 * 3.35e12, 2.5e-6


class Asked(TorchDispatchMode):
    """Counts per phase of a program; a launch is an operation that is neither a view nor an allocation."""

    def __init__(self) -> None:
        super().__init__()
        self.phase = ""
        self.clear()

    def clear(self) -> None:
        self.launches: Counter[str] = Counter()  # by phase
        self.memory: Counter[str] = Counter()  # bytes that operations read and write, by phase
        # A model of an H100, by phase: the longest of launches, bytes and products; no gaps, no communication.
        self.seconds: dict[str, float] = defaultdict(float)
        self.waits: Counter[tuple[str, str]] = Counter()  # of the host for the GPU, by phase and operation
        self.collectives: Counter[str] = Counter()  # by phase
        self.sent: Counter[str] = Counter()  # bytes that this process gives to collectives, by phase

    @contextlib.contextmanager
    def during(self, phase: str) -> Iterator[None]:
        before, self.phase = self.phase, phase
        try:
            yield
        finally:
            self.phase = before

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        space, name = func._schema.name.split("::")
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        on_cuda = [tensor for tensor in tensors if tensor.device.type == "cuda"]
        if space == "c10d":
            if on_cuda:
                self.collectives[self.phase] += 1
                self.sent[self.phase] += _bytes(on_cuda)
            return func(*args, **kwargs)
        out = _of_numbers(name, func, args, kwargs) if name in NEEDS_NUMBERS else func(*args, **kwargs)
        results = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        written = [tensor for tensor in results if tensor.device.type == "cuda"]
        if self._waits(name, tensors, results, args, kwargs):
            self.waits[self.phase, name] += 1
        if space != "prim" and (on_cuda or written) and not _is_view(func, name):
            work = _product_seconds(name, args, kwargs, out)
            self.note(_kernels(name, args), _bytes([*on_cuda, *written]), work)
        return out

    def note(self, kernels: int, moved: int, product_seconds: float = 0.0) -> None:
        """Count kernels that read and write so many bytes."""
        self.launches[self.phase] += kernels
        self.memory[self.phase] += moved
        self.seconds[self.phase] += max(SECONDS * kernels, moved / BYTES, product_seconds)

    def forget(self, phase: str) -> None:
        for counted in (self.launches, self.memory, self.seconds):
            counted.pop(phase, None)

    @staticmethod
    def _waits(name: str, tensors: list[Tensor], results: list[Tensor], args: Any, kwargs: Any) -> bool:
        """Return whether the host needs a number from the device, or copies between the two and waits for that."""
        if name in ("_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2"):
            return any(tensor.device.type == "cuda" for tensor in tensors)
        if name == "index":
            return any(index is not None and index.dtype == torch.bool for index in args[1])
        if name not in ("_to_copy", "copy_"):
            return False
        source, target = (args[0], results[0]) if name == "_to_copy" else (args[1], args[0])
        non_blocking = kwargs.get("non_blocking", False) or (name == "copy_" and len(args) > 2 and args[2])
        if source.device.type == target.device.type:
            return False
        return target.device.type == "cpu" or not non_blocking


def _of_numbers(name: str, func: Any, args: Any, kwargs: Any) -> Any:
    """Answer where fake tensors have no answer: every number is 1, every condition holds."""
    x = args[0]
    if name == "_local_scalar_dense":
        if not isinstance(x, FakeTensor):
            return func(*args, **kwargs)
        return True if x.dtype == torch.bool else 1.0 if x.dtype.is_floating_point else 1
    if name == "equal":
        return True
    if name == "nonzero":
        return x.new_empty((x.numel(), x.dim()), dtype=torch.long)
    if name == "index":
        masks = [k for k, index in enumerate(args[1]) if index is not None and index.dtype == torch.bool]
        if not masks:
            return func(*args, **kwargs)
        mask = args[1][masks[0]]
        return x.new_empty((*x.shape[: masks[0]], mask.numel(), *x.shape[masks[0] + mask.dim() :]))
    if name == "batch_norm_backward_reduce":
        return tuple(args[2].new_empty(args[2].shape) for _ in range(4))
    if name in ("batch_norm_stats", "batch_norm_gather_stats_with_counts"):
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        return tuple(x.new_empty(x.shape[1], dtype=dtype) for _ in range(2))
    return torch.empty_like(x)  # batch_norm_elemt and its gradient


NEEDS_NUMBERS = {
    *("_local_scalar_dense", "equal", "nonzero", "index"),
    *("batch_norm_stats", "batch_norm_gather_stats_with_counts", "batch_norm_elemt"),  # no shapes of these in torch
    *("batch_norm_backward_reduce", "batch_norm_backward_elemt"),
}


def _is_view(func: Any, name: str) -> bool:
    if name in NO_KERNEL or name.startswith(("empty", "new_empty")):
        return True
    returns = func._schema.returns
    return bool(returns) and all(r.alias_info is not None and not r.alias_info.is_write for r in returns)


def _kernels(name: str, args: Any) -> int:
    """One, and of a foreach operation as many as its tensors need; one a tensor where sizes are to be broadcast."""
    if not name.startswith(("_foreach", "_fused")):
        return 1
    lists = [arg for arg in args if isinstance(arg, list | tuple) and arg and isinstance(arg[0], Tensor)]
    tensors, others = lists[0], [other for other in lists[1:] if len(other) == len(lists[0])]
    broadcast = any([a.shape for a in tensors] != [b.shape for b in other] for other in others)
    if broadcast and name.startswith("_foreach"):
        return len(tensors)
    blocks = sum(-(-tensor.numel() // BLOCK_NUMBERS) for tensor in tensors)
    together = FOREACH_TENSORS[min(1 + len(others), max(FOREACH_TENSORS))]
    return max(-(-len(tensors) // together), -(-blocks // FOREACH_BLOCKS))


def _product_seconds(name: str, args: Any, kwargs: Any, out: Any) -> float:
    """Return the seconds of a matrix product or a convolution at the rate of its numbers; 0 for anything else."""
    formula = flop_registry.get(getattr(aten, name.removesuffix("_"), None))
    if formula is None:
        return 0.0
    factor = next(leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor))
    return formula(*args, **kwargs, out_val=out) / FLOPS[factor.dtype]


def _bytes(tensors: list[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in {id(t): t for t in tensors}.values())


def put_on_cuda(module: nn.Module, channels_last: bool) -> None:
    """Replace every parameter and buffer by a fake one on the pretended device."""
    for part in module.modules():
        for key, p in part._parameters.items():
            if p is not None:
                layout = torch.channels_last if channels_last and p.dim() == 4 else torch.contiguous_format
                fake = torch.empty(p.shape, dtype=p.dtype, device="cuda", memory_format=layout)
                part._parameters[key] = nn.Parameter(fake, p.requires_grad)
        for key, b in part._buffers.items():
            if b is not None:
                part._buffers[key] = torch.empty(b.shape, dtype=b.dtype, device="cuda")


@contextlib.contextmanager
def pretend() -> Iterator[Asked]:
    """Make fake tensors, and let torch say that there is a GPU. Modules stay where they are: `put_on_cuda`."""
    from torch.optim import optimizer
    from torch.utils import _foreach_utils

    asked, replace = Asked(), mock.patch.object
    answers: dict[str, Any] = {
        "is_available": lambda: True,
        "device_count": lambda: 8,
        "current_device": lambda: 0,
        "is_initialized": lambda: True,
        "is_current_stream_capturing": lambda: False,
        "is_bf16_supported": lambda including_emulation=True: True,
        "_lazy_init": lambda: None,
        "get_rng_state": lambda device="cuda": None,
        "set_rng_state": lambda state, device="cuda": None,
        "mem_get_info": lambda device=None: (64 << 30, 80 << 30),
    }
    with contextlib.ExitStack() as stack:
        for name, answer in answers.items():
            stack.enter_context(replace(torch.cuda, name, answer))
        stack.enter_context(replace(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False))
        stack.enter_context(replace(nn.Module, "to", lambda module, *_, **__: module))
        stack.enter_context(torch.autograd.set_multithreading_enabled(False))
        for module in (optimizer, _foreach_utils):  # optimisers choose their foreach versions for plain tensors alone
            plain = [*module._foreach_supported_types, FakeTensor]
            stack.enter_context(replace(module, "_foreach_supported_types", plain))
        stack.enter_context(replace(FakeTensorMode, "avoid_device_init", property(lambda mode: True)))
        stack.enter_context(FakeTensorMode())
        yield stack.enter_context(asked)
