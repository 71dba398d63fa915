"""The kernels for GPUs, and models that run on them, on one GPU (docs/gpu.md)."""
