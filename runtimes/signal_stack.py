"""The stack on which this thread's signals are handled: a library may leave one behind that it has freed."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class _Stack(ctypes.Structure):
    """stack_t of Linux, see sigaltstack(2)."""

    _fields_ = (("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextmanager
def signal_stack_kept() -> Iterator[None]:
    """Afterwards the thread handles signals where it did before.

    OpenVINO's compiled models set a stack of their own and, when they are freed in another order than they were made,
    leave that of a freed one in place. Python's handlers run there: the next Ctrl-C or SIGTERM ended the process with a
    segmentation fault.
    """
    if sys.platform != "linux":
        yield
        return
    library, before = ctypes.CDLL(None), _Stack()
    library.sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        library.sigaltstack(ctypes.byref(before), None)
