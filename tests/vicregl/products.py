"""Watch a computation: multiply-adds of its matrix products, in place and with `out` too, and its largest tensor."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Arguments of x and y in x @ y.
PRODUCTS = {"mm": (0, 1), "bmm": (0, 1), "addmm": (1, 2), "baddbmm": (1, 2), "baddbmm_": (1, 2)}


class CountProducts(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.multiply_adds = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if (operands := PRODUCTS.get(func.__name__.partition(".")[0])) is not None:
            x, y = (args[k] for k in operands)
            self.multiply_adds += x.numel() * y.shape[-1]
        return func(*args, **(kwargs or {}))


def multiply_adds(work) -> int:
    with CountProducts() as counter:
        work()
    return counter.multiply_adds


class LargestResult(TorchDispatchMode):
    """Remembers how many numbers the largest tensor holds that any operation returned."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        sizes = [r.numel() for r in tree_leaves(result) if isinstance(r, torch.Tensor)]
        self.numbers = max([self.numbers, *sizes])
        return result
