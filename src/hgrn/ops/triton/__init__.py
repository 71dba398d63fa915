"""The GPU engine: kernels in Triton, and their launches."""
