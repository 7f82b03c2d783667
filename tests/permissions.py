"""Root reads every file, whatever its mode says; within :func:`bound_by_permissions` it does not."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator

import pytest

_VERSION_3 = 0x20080522
_DAC_OVERRIDE, _DAC_READ_SEARCH = 1, 2


class _Header(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _Sets(ctypes.Structure):
    """The capabilities of a thread, as two words of 32 bits each (capget(2))."""

    _fields_ = [(name, ctypes.c_uint32) for name in ("effective", "permitted", "inheritable")]


@contextlib.contextmanager
def bound_by_permissions() -> Iterator[None]:
    """Give up the capabilities by which root passes over file modes, and take them back afterwards.

    The user stays the same, so that it does not matter where the clone lies or who may enter the folders above it.
    """
    if os.geteuid() != 0:
        yield
        return
    if sys.platform != "linux":
        pytest.skip("root reads every file, and only Linux lets it give that up for a while")
    libc = ctypes.CDLL(None, use_errno=True)
    header, held = _Header(_VERSION_3, 0), (_Sets * 2)()
    _call(libc.capget, header, held)
    reduced = (_Sets * 2).from_buffer_copy(held)
    reduced[0].effective &= ~(1 << _DAC_OVERRIDE | 1 << _DAC_READ_SEARCH)
    _call(libc.capset, header, reduced)
    try:
        yield
    finally:
        _call(libc.capset, header, held)


def _call(function: ctypes._CFuncPtr, header: _Header, sets: ctypes.Array[_Sets]) -> None:
    if function(ctypes.byref(header), sets):
        error = ctypes.get_errno()
        raise OSError(error, f"{function.__name__}: {os.strerror(error)}")
