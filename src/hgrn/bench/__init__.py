"""The benchmarks behind docs/performance.md: `hgrn bench`, or `hgrn.bench.runner.run`.

Everything that is compared runs in turn in one loop (`measure`), and no kernel of ours is timed before it agrees with
the reference (`checks`).
"""
