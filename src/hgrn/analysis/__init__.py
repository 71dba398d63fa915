"""Show what a trained model does, as numbers and pictures."""

from hgrn.analysis.gates import forget_gates, gate_statistics

__all__ = ["forget_gates", "gate_statistics"]
