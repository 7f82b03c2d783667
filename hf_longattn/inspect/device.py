"""The device on which something is measured."""

from __future__ import annotations

import torch

from ..errors import OptionError, in_a_line


def chosen_device(name: str | None) -> torch.device:
    """The device with a name such as "cuda:1". By default, the accelerator if there is one, or else the CPU.

    Raises:
        OptionError: this machine has no such device.
    """
    if name is None:
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return accelerator or torch.device("cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise OptionError(
            f"There is no device {name!r:.40} here ({in_a_line(error, 120)}); leave --device out."
        ) from error
