"""A GPU's choices without a GPU."""

from tests.engines.conftest import cuda_paths, emulated_flash, unfused_flex

__all__ = ["cuda_paths", "emulated_flash", "unfused_flex"]
