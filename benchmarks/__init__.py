"""All measurements behind the numbers in docs/, started by `python -m benchmarks`."""
