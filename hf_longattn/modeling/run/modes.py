"""The modes of a base model."""

from __future__ import annotations

from typing import Any


class RunsInModes:
    """A base model that can be run in modes; see :mod:`hf_longattn.modeling.run`."""

    sharding: Any = None
    """The :class:`.run.sharding.Sharding` by which this model's sequences are split, inside of :func:`hf_longattn.sequence_parallel`."""
    packing: Any = None
    """The :class:`.run.packing.Packing` by which padded batches are run as one packed row, after :meth:`optimize_for_inference`."""
