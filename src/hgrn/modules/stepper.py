"""One position of a stack for a few sequences, in one call of compiled code.

Shape letters: N sequences, D channels of the stack, C channels of a state (D, or 2D if complex),
V outputs of the head.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook
from torch.nn.utils.parametrize import is_parametrized

from hgrn.modules.block import Block
from hgrn.modules.bounds import LowerBounds
from hgrn.modules.glu import GLU
from hgrn.modules.linear import Int8Linear, Linear
from hgrn.modules.mixer import Mixer
from hgrn.modules.norms import GatedLayerNorm
from hgrn.modules.stack import HGRN
from hgrn.modules.watch import Watch
from hgrn.ops import available_engines
from hgrn.ops.addresses import describe, is_plain

# Of sequences. With more, plain matrix products are faster than what compiled steps save.
_LARGEST = 8
_KNOWN = (
    HGRN,
    Block,
    GLU,
    Linear,
    Int8Linear,
    nn.Linear,
    nn.LayerNorm,
    nn.RMSNorm,
    GatedLayerNorm,
    nn.Dropout,
    nn.ModuleList,
    LowerBounds,
)


class NotSteppable(ValueError):
    """This model, as it is now, has no compiled steps; the message says why."""


class Stepper:
    """Steps of an `HGRN` on the CPU, as fast as its weights can be read from memory.

    It is for inference. The numbers are those of `stack(x[:, None], state)`, to rounding. A stepper
    notices when the stack is trained, moved or quantized between two steps: the next step is that
    of the stack as it is then, from the same state. A copy (pickling makes one too) is independent
    of the original and starts from its state.

    Args:
        stack: causal, float32, on the CPU, without hooks or wrappers around its parts; its linear
            maps may be `Int8Linear`.
        sequences: N, 1 to 8.
        head: a linear map behind the stack; if given, its output is what a step returns.

    Raises:
        ValueError: the stack cannot be stepped, or no longer; the message says why.

    Example:
        >>> import torch
        >>> from hgrn import HGRN
        >>> from hgrn.modules import Stepper
        >>> rnn = HGRN(dim=32, depth=2).eval()
        >>> step = Stepper(rnn)
        >>> for _ in range(1000):                     # a thousand positions in about 0.05 s
        ...     y = step(torch.randn(1, 32))
        >>> [part.shape for part in step.state[0]]    # as the stack's own
        [torch.Size([1, 64])]
    """

    def __init__(self, stack: HGRN, sequences: int = 1, head: nn.Module | None = None):
        self._stack = stack
        self._sequences = sequences
        self._head = head
        # The state as last returned, so that it need not be copied back; None once it has changed.
        self._returned = None
        self._compile()

    def _compile(self) -> None:
        """Makes the program for the stack as it is now, and keeps the state if there is one."""
        stack = self._stack
        sequences = self._sequences
        head = self._head
        if problem := why_not(stack, sequences, head):
            raise NotSteppable(f"Stepper: {problem}")
        from hgrn.ops.cpu import program  # imported here, because it needs numba

        self.program = program.Program()
        blocks = [cast(Block, block) for block in stack.blocks]
        # A tensor that is made in inference mode could be written in inference mode only.
        with torch.inference_mode(False), torch.no_grad():
            self._watch = Watch(
                module for whole in (stack, head) if whole is not None for module in whole.modules()
            )
            self._x = self.zeros(sequences, stack.dim)
            # One tensor for each part of a state, for all blocks: so a step copies few tensors.
            shapes = _state_shapes(stack, sequences)
            states = [self.zeros(len(blocks), *shape) for shape in shapes]
            if hasattr(self, "_states"):
                if [part.shape for part in self._states] != [part.shape for part in states]:
                    raise NotSteppable(
                        "Stepper: the stack now has another size, and its state no longer fits; "
                        "make a new Stepper"
                    )
                states = self._states
            try:
                bounds = stack.lower_bounds()
                for block, bound, *state in zip(blocks, bounds, *states, strict=True):
                    self._block(block, bound, tuple(state))
                if stack.bounds is not None:
                    self.program.watch(stack.bounds.logits)
                self._y = self.zeros(sequences, stack.dim)
                self.norm(stack.norm, self._x, self._y)
                if head is not None:
                    normed = self._y
                    self._y = self.zeros(sequences, len(cast(nn.Linear, head).weight))
                    self.linear(head, normed, self._y)
            except ValueError as error:
                raise NotSteppable(f"Stepper: {error}") from error
        self._states = states

    def __getstate__(self) -> dict:
        return {
            "stack": self._stack,
            "sequences": self._sequences,
            "head": self._head,
            "state": self.state,
        }

    def __setstate__(self, kept: dict) -> None:
        self.__init__(kept["stack"], kept["sequences"], kept["head"])
        self.state = kept["state"]

    @property
    def state(self) -> tuple[tuple[Tensor, ...], ...]:
        """A copy of the state, in the form of `HGRN`: for each block a tuple of tensors."""
        self._returned = tuple(zip(*(part.clone() for part in self._states), strict=True))
        return self._returned

    @state.setter
    @torch.no_grad()
    def state(self, state: tuple[tuple[Tensor, ...], ...] | None) -> None:
        """None is the state before the first position."""
        if state is not None and state is self._returned:
            return  # the memory holds it already
        self._returned = None
        if state is None:
            for part in self._states:
                part.zero_()
            return
        shapes = [part.shape[1:] for part in self._states]
        depth = len(self._states[0])
        if len(state) != depth or any([part.shape for part in entry] != shapes for entry in state):
            listed = ", ".join(str(tuple(shape)) for shape in shapes)
            raise ValueError(
                f"state must have an entry for each of {depth} blocks, with tensors of these "
                f"shapes: {listed}"
            )
        for parts, held in zip(zip(*state), self._states):
            torch.stack(parts, out=held)

    def __call__(self, x: Tensor) -> Tensor:
        """One step: x `[N, D]` -> the stack's output `[N, D]`, or the head's `[N, V]`."""
        if x.shape != self._x.shape:
            raise ValueError(
                f"x must have shape {tuple(self._x.shape)} (sequences, channels), "
                f"got {tuple(x.shape)}"
            )
        if self._watch.has_changed():
            self._compile()
        self._x.copy_(x.detach())
        self._returned = None
        # The program holds values computed from bounds and angles. Where these have changed it
        # computes nothing and says so.
        if not self.program.run():
            self._compile()
            self._x.copy_(x.detach())
            self.program.run()
        return self._y.clone()

    # The parts are those that `why_not` has let pass, which the types of the modules do not say.
    def linear(self, part: nn.Module, x: Tensor, y: Tensor, add: Tensor | None = None) -> None:
        """Appends `y = part(x) + add` (see `hgrn.modules.mixer.StepBuilder`)."""
        part = cast(nn.Linear, part)
        scale = part.scale if isinstance(part, Int8Linear) else None
        self.program.linear(x, part.weight, part.bias, y, scale=scale, add=add)

    def norm(self, part: nn.Module, x: Tensor, y: Tensor) -> None:
        """Appends `y = part(x)` for a layer norm or an RMS norm."""
        if isinstance(part, nn.RMSNorm):
            # Without an epsilon PyTorch takes the smallest step of the dtype.
            eps = torch.finfo(x.dtype).eps if part.eps is None else part.eps
            self.program.norm(x, part.weight, None, eps, y, centred=False)
            return
        part = cast(nn.LayerNorm, part)
        self.program.norm(x, part.weight, part.bias, part.eps, y)

    def zeros(self, *shape: int) -> Tensor:
        """Memory of a step: float32 on the CPU, whatever PyTorch's defaults are."""
        return torch.zeros(shape, dtype=torch.float32, device="cpu")

    def _block(self, block: Block, bound: Tensor | None, state: tuple[Tensor, ...]) -> None:
        """Adds the code of both residual branches, which add their results to `self._x`."""
        normed = self.zeros(*self._x.shape)
        self.norm(block.mixer_norm, self._x, normed)
        cast(Mixer, block.mixer).add_step(self, normed, bound, state, self._x)
        self.norm(block.glu_norm, self._x, normed)
        glu = cast(GLU, block.glu)
        wide = self.zeros(len(normed), len(glu.gate_up_proj.weight))
        gated = self.zeros(len(normed), glu.down_proj.weight.shape[1])
        self.linear(glu.gate_up_proj, normed, wide)
        self.program.gated_unit(wide, gated, activation=glu.act)
        self.linear(glu.down_proj, gated, self._x, add=self._x)


def _state_shapes(stack: HGRN, sequences: int) -> list[tuple[int, ...]]:
    """The shapes of the parts of each block's state."""
    found = {
        tuple(tuple(part.shape) for part in cast(Mixer, block.mixer).initial_state(sequences))
        for block in stack.blocks
    }
    if len(found) > 1:
        raise NotSteppable("Stepper: its blocks keep states of several shapes")
    return list(found.pop())


def why_not(stack: HGRN, sequences: int = 1, head: nn.Module | None = None) -> str | None:
    """Why a `Stepper` cannot be made of this stack and head, or None if it can."""
    if not 1 <= sequences <= _LARGEST:
        return (
            f"sequences must lie between 1 and {_LARGEST}, got {sequences}; for more, call the "
            "stack itself"
        )
    if "numba" not in available_engines("cpu"):
        return "the engine numba cannot be used here; `hgrn doctor` says why"
    if stack.training:
        return "the stack is in training mode; call eval()"
    if _has_any_global_hook():
        return "there are hooks for all modules, which would not be called"
    for name, part in [*stack.named_modules(), ("head", head)]:
        if part is not None and is_parametrized(part):
            return f"{name} is a {type(part).__name__}, of which there are no compiled steps"
        if isinstance(part, Mixer):
            if reason := part.why_not("steps"):
                return reason
        elif part is not None and type(part) not in _KNOWN:
            return f"{name} is a {type(part).__name__}, of which there are no compiled steps"
        if part is not None and has_own_forward(part):
            return f"{name} has hooks, or a forward of its own, which would not be called"
        if isinstance(part, nn.Dropout) and part.training and part.p > 0:
            return f"{name} is in training mode; call eval()"
    wholes = [whole for whole in (stack, head) if whole is not None]
    for whole in wholes:
        for name, tensor in [*whole.named_parameters(), *whole.named_buffers()]:
            fits = (
                is_plain(tensor)
                and tensor.dtype in (torch.float32, torch.int8)
                and tensor.is_cpu
                and tensor.is_contiguous()
            )
            if not fits:
                return f"{name} is {describe(tensor)}; plain contiguous float32 on cpu is needed"
    return None


def has_own_forward(part: nn.Module) -> bool:
    """Whether a call of the module does more than its class: hooks, or a replaced `forward`."""
    return bool(part._forward_hooks or part._forward_pre_hooks or "forward" in vars(part))
