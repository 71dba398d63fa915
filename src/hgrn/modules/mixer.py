"""What a token mixer is: the part of a block that moves information from position to position.

`HGRU` is one, `HGRN2Mixer` another. Yours derives from `Mixer`, or from `HGRU` to change a part of
it (docs/mixers.md). Shape letters: B batch, T time, N sequences, D channels.
"""

from types import ModuleType
from typing import Any, Literal, Protocol

from torch import Tensor, nn

from hgrn.modules.parameters import Init, KeepsFloat32
from hgrn.ops.hgrn2 import bounded_gates

# What not every mixer can do, as `Mixer.why_not` is asked:
# "state": go on from a state, as generation and sessions do.
# "steps": be computed by the compiled steps of a `Stepper`.
# "split": read one stretch of a sequence that is split over ranks (`hgrn.parallel`).
# "export": become part of an ONNX graph.
# "int8": have linear maps with 8-bit weights.
Use = Literal["state", "steps", "split", "export", "int8"]


class StepBuilder(Protocol):
    """What `Mixer.add_step` is given: it appends calls of kernels to a step (see `Stepper`).

    program: a `hgrn.ops.cpu.program.Program`.
    """

    program: Any

    def linear(self, part: nn.Module, x: Tensor, y: Tensor, add: Tensor | None = None) -> None:
        """`y = part(x) + add` for a linear map, also one with 8-bit weights."""
        ...

    def norm(self, part: nn.Module, x: Tensor, y: Tensor) -> None:
        """`y = part(x)` for a layer norm or an RMS norm."""
        ...

    def zeros(self, *shape: int) -> Tensor:
        """Memory of the step, float32."""
        ...


class Mixer(KeepsFloat32):
    """A token mixer.

    A stack makes one for each block, as `mixer(dim, bias=..., norm_eps=..., norm_type=...,
    **options)`: the first three are its own, the options are the mixer's. Its parameters start in
    `reset_parameters`, or in the modules inside.

    A derived class defines `forward` and `initial_state`. What else it can do it says in `why_not`.
    """

    def forward(
        self,
        x: Tensor,
        lower_bound: Tensor | None = None,
        state: tuple[Tensor, ...] | None = None,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor, ...] | None]:
        """One call for all uses: training, prefill, a further chunk, a single step (T = 1).

        Args:
            x: `[B, T, D]`; with cu_seqlens `[1, total, D]`.
            lower_bound: this layer's row of `LowerBounds`, `[D]`; None is 0.
            state: what the call on the previous chunk returned; None is `initial_state`.
            mask: bool `[B, T]`; where False the position is skipped.
            cu_seqlens: boundaries `[N + 1]` of sequences packed end to end.

        Returns:
            y like x, and the state after the last position: a tuple of tensors with N sequences
            first, or None if the mixer reads whole sequences only.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no forward")

    def initial_state(self, sequences: int) -> tuple[Tensor, ...]:
        """What state=None stands for, in the shapes that `forward` returns."""
        raise NotImplementedError(f"{type(self).__name__} defines no initial_state")

    def reset_parameters(self, init: type[Init] | ModuleType = Init) -> None:
        """Sets the parameters of the mixer itself, through the functions of `init`."""

    def why_not(self, use: Use) -> str | None:
        """Why the mixer cannot be used so; None if it can."""
        name = type(self).__name__
        if use == "steps":
            return f"a {name} has no compiled steps"
        if use == "split":
            return f"a {name} does not say how to read a sequence that is split over ranks"
        return None

    def add_step(
        self,
        builder: StepBuilder,
        x: Tensor,
        lower_bound: Tensor | None,
        state: tuple[Tensor, ...],
        total: Tensor,
    ) -> None:
        """Appends the calls of one position: x `[N, D]`; the mixer adds its y to `total` `[N, D]`.

        `state` is read and left as the state after the position.
        """
        raise NotImplementedError(self.why_not("steps"))

    def gates(self, forget: Tensor, lower_bound: Tensor | None) -> tuple[Tensor, Tensor]:
        """The bounded gate `f = gamma + (1 - gamma) sigmoid(forget)`: its logarithm, and `1 - f`.

        Both keep their digits where f is near 0 or 1. They are what `hgrn.ops.gated_scan` and
        `hgrn.ops.gla_scan` need.

        Args:
            forget: `[..., D]`, before the sigmoid.
            lower_bound: gamma `[D]`; None is 0.

        Returns:
            `[..., D]` each, float32 (float64 for float64).
        """
        return bounded_gates(forget, lower_bound)


def defined_anew(mixer: Mixer, base: type[Mixer]) -> list[str]:
    """The methods of `base` that the class of a mixer defines in its own way."""
    classes = type(mixer).__mro__
    own = {name for cls in classes[: classes.index(base)] for name in vars(cls)}
    shared = {name for cls in (base, Mixer) for name in vars(cls)}
    allowed = {"reset_parameters", "extra_repr", "why_not"}
    return sorted(name for name in own & shared - allowed if not name.startswith("__"))
