"""Speed, memory and quality for time on this computer's CPU (docs/performance.md).

No kernel of ours is timed before it agrees with the reference (`benchmarks.scan_cases`).
"""
