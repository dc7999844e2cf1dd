"""Reused buffers, one set per thread: kernels run concurrently on different chunks and must not allocate."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import numpy.typing as npt


class Scratch(threading.local):
    """Named arrays that grow when asked for more and are never shared between threads."""

    def __init__(self) -> None:
        self._arrays: dict[str, npt.NDArray[Any]] = {}

    def get(self, name: str, words: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """`words` uninitialised elements of `dtype`. The same name gives the same memory again."""
        nbytes = words * np.dtype(dtype).itemsize
        array = self._arrays.get(name)
        if array is None or array.nbytes < nbytes:
            array = self._arrays[name] = np.empty(nbytes, np.uint8)
        return array[:nbytes].view(dtype)
