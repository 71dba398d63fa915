"""The numbers of a run that go on after a resume."""

from dataclasses import dataclass, field


@dataclass
class Counters:
    """What a run has counted so far; checkpoints hold these fields by their names.

    step: optimizer steps taken. units: tokens or examples that counted for the loss, over all
    ranks. seconds: time spent in steps, without saving and validation. window_nats, window_units,
    window_seconds: the same since the last row of the log. best: step and metric of the best
    validation.
    """

    step: int = 0
    units: int = 0
    seconds: float = 0.0
    window_nats: float = 0.0
    window_units: int = 0
    window_seconds: float = 0.0
    best: dict[str, float] = field(default_factory=dict)

    def count_step(self, loss: float, units: int, seconds: float) -> None:
        """Count one step with a mean loss over `units`."""
        self.step += 1
        self.units += units
        self.seconds += seconds
        self.window_nats += loss * units
        self.window_units += units
        self.window_seconds += seconds

    def start_window(self) -> None:
        """Begin the sums of the next row of the log."""
        self.window_nats = 0.0
        self.window_units = 0
        self.window_seconds = 0.0
