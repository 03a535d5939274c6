"""Large arrays that are used again, as soon as nobody holds them.

A batch of float views at 224 pixels is some hundred megabytes. Fresh memory of that size comes from the kernel page by
page, zeroed, which takes longer than filling it.
"""

from __future__ import annotations

import sys
import threading
from typing import Any

import numpy as np
import numpy.typing as npt

_KEPT = 12  # arrays at most: of a few batches of a few sizes of views
# References to an array that only its recycler holds: its list, the loop's variable, getrefcount's argument.
_FREE = 3


class Recycler:
    """`take` gives an array of unknown content to whoever asks; it is free again when the last reference is dropped.

    Tensors made by torch.from_numpy hold a reference to their array for as long as any tensor shares their memory.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._arrays: list[npt.NDArray[Any]] = []

    def __getstate__(self) -> dict[str, Any]:
        return {}  # another process begins with nothing

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]

    def take(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        with self._lock:
            for array in self._arrays:
                if array.shape == shape and array.dtype == dtype and sys.getrefcount(array) == _FREE:
                    return array
            array = np.empty(shape, dtype)
            self._arrays = [*self._arrays[-_KEPT + 1 :], array]
            return array
