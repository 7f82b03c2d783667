"""HOW attention runs fast: few engines, shared by the mechanisms, each with a CPU and a CUDA path."""
