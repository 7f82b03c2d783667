"""Long models of other architectures (Longformer, BigBird …), converted into our families with equal outputs: one file each."""

from .base import (
    CheckpointConverter,
    Probe,
    WeightRenaming,
    checkpoint_converters,
    converter_of,
    layer_options,
    register_checkpoint_converter,
)

__all__ = [
    "CheckpointConverter",
    "Probe",
    "WeightRenaming",
    "checkpoint_converters",
    "converter_of",
    "layer_options",
    "register_checkpoint_converter",
]
