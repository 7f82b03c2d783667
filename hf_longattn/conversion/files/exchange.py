"""Two paths change places in one step, so that neither is ever absent."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

__all__ = ["exchange"]

AT_FDCWD = -100
RENAME_EXCHANGE = 2
CANNOT = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)
"""What the call answers where the kernel or the file system does not know it."""


def exchange(a: Path, b: Path) -> bool:
    """Exchange two paths of one file system by Linux's renameat2, which Python does not offer.

    Returns:
        Whether they were exchanged; ``False`` where the system or the file system cannot.

    Raises:
        OSError: it can, but not these two.
    """
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if os.name == "posix" else None
    if rename is None:
        return False
    if rename(AT_FDCWD, os.fsencode(a), AT_FDCWD, os.fsencode(b), RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in CANNOT:
        return False
    raise OSError(number, os.strerror(number), str(a), None, str(b))
