"""The CPU engine: kernels that Numba compiles, run by the threads of PyTorch."""
