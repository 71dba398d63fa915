"""Measures the GPU kernels, training steps and decoding on one GPU; from the root of the repository:

    python -m benchmarks.gpu                                # at most 8 minutes; benchmarks/results/gpu.csv and a plot
    TRITON_INTERPRET=1 python -m benchmarks.gpu --rehearse  # every path at tiny shapes on a CPU; its numbers mean nothing

What is compared, and with what:

- **Scans** (`scans`) against a copy of as many bytes in the same run. A scan can do no better: forward it reads candidate
  and forget gate and writes h, backward it reads these, h and its gradient and writes two gradients. A "kernel" is replayed
  from a CUDA graph, so that it is the GPU's time alone; an "op" is the call as a program makes it, with its launches and
  allocations, and at small shapes that is what a program waits for. Between two calls a buffer larger than any L2 is
  written, so nothing is read from cache. flash-linear-attention's scans start from log gates, so the operations that make
  these belong to their time.
- **Models** (`models`): ours and flash-linear-attention's HGRN with equal shapes (real state, no biases, SwiGLU), and a
  Transformer (RMSNorm, SwiGLU, rotary positions, PyTorch's fused attention) with about as many parameters. Weights are
  bfloat16 for all; a step is forward, backward and a fused AdamW. Decoding continues a prompt, one token a step, as called
  and from a CUDA graph.

Nothing is timed before its result was compared: our scans with float64 at the very shape that is timed (a sample of
channels, which do not mix), all options of the public functions at small ones, our model's loss and gradients with float64
on the CPU; what was compiled or captured with the plain call. If one of ours differs or fails it has no number, and the
exit status is 1. A peer that is absent, fails or differs is named and left out. A target that is missed is no failure: the
table says so. First calls, which compile, are rows of their own; what `--minutes` had no room for is named, and `--only`
measures it in a run of its own (with another `--out`, which is written anew).
"""
