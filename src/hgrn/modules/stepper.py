"""One position of a stack for a few sequences, in one call of compiled code.

Shape letters: N sequences, D channels of the stack, C channels of a state (D, or 2D if complex),
V outputs of the head.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from hgrn.modules.block import Block
from hgrn.modules.bounds import LowerBounds
from hgrn.modules.glu import GLU
from hgrn.modules.hgru import HGRU, scan_directions
from hgrn.modules.linear import Int8Linear, Linear
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
    HGRU,
    GLU,
    Linear,
    Int8Linear,
    nn.Linear,
    nn.LayerNorm,
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

        self._program = program.Program()
        blocks = [cast(Block, block) for block in stack.blocks]
        width = cast(HGRU, blocks[0].mixer).joined_rows["in_proj"][0]
        # A tensor that is made in inference mode could be written in inference mode only.
        with torch.inference_mode(False), torch.no_grad():
            self._watch = Watch(
                module for whole in (stack, head) if whole is not None for module in whole.modules()
            )
            self._x = _zeros(sequences, stack.dim)
            states = _zeros(len(blocks), sequences, width)
            if hasattr(self, "_states"):
                if self._states.shape != states.shape:
                    raise NotSteppable(
                        "Stepper: the stack now has another size, and its state no longer fits; "
                        "make a new Stepper"
                    )
                states = self._states
            try:
                for block, bound, state in zip(blocks, stack.lower_bounds(), states, strict=True):
                    self._block(block, bound, state)
                if stack.bounds is not None:
                    self._program.watch(stack.bounds.logits)
                self._y = _zeros(sequences, stack.dim)
                self._norm(stack.norm, self._x, self._y)
                if head is not None:
                    normed = self._y
                    self._y = _zeros(sequences, len(cast(nn.Linear, head).weight))
                    self._linear(head, normed, self._y)
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
    def state(self) -> tuple[tuple[Tensor], ...]:
        """A copy of the state, in the form of `HGRN`: for each block `(recurrent [N, C],)`."""
        self._returned = tuple((state,) for state in self._states.clone())
        return self._returned

    @state.setter
    @torch.no_grad()
    def state(self, state: tuple[tuple[Tensor], ...] | None) -> None:
        """None is the state before the first position."""
        if state is not None and state is self._returned:
            return  # the memory holds it already
        self._returned = None
        if state is None:
            self._states.zero_()
            return
        if len(state) != len(self._states) or any(
            part.shape != self._states.shape[1:] for (part,) in state
        ):
            raise ValueError(
                f"state must have an entry for each of {len(self._states)} blocks, with a tensor "
                f"of shape {tuple(self._states.shape[1:])}"
            )
        torch.stack([part for (part,) in state], out=self._states)

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
        if not self._program.run():
            self._compile()
            self._x.copy_(x.detach())
            self._program.run()
        return self._y.clone()

    # The parts are those that `why_not` has let pass, which the types of the modules do not say.
    def _linear(self, part: nn.Module, x: Tensor, y: Tensor, add: Tensor | None = None) -> None:
        part = cast(nn.Linear, part)
        scale = part.scale if isinstance(part, Int8Linear) else None
        self._program.linear(x, part.weight, part.bias, y, scale=scale, add=add)

    def _norm(self, part: nn.Module, x: Tensor, y: Tensor) -> None:
        part = cast(nn.LayerNorm, part)
        self._program.norm(x, part.weight, part.bias, part.eps, y)

    def _block(self, block: Block, bound: Tensor | None, state: Tensor) -> None:
        """Adds the code of both residual branches, which add their results to `self._x`."""
        normed = _zeros(*self._x.shape)
        self._norm(block.mixer_norm, self._x, normed)
        self._mixer(cast(HGRU, block.mixer), normed, bound, state)
        self._norm(block.glu_norm, self._x, normed)
        glu = cast(GLU, block.glu)
        wide = _zeros(len(normed), len(glu.gate_up_proj.weight))
        gated = _zeros(len(normed), glu.down_proj.weight.shape[1])
        self._linear(glu.gate_up_proj, normed, wide)
        self._program.gated_unit(wide, gated, activation=glu.act)
        self._linear(glu.down_proj, gated, self._x, add=self._x)

    def _mixer(self, mixer: HGRU, x: Tensor, bound: Tensor | None, state: Tensor) -> None:
        projected = _zeros(len(x), len(mixer.in_proj.weight))
        self._linear(mixer.in_proj, x, projected)
        candidate, forget, gate = projected.split(mixer.joined_rows["in_proj"], dim=-1)
        if mixer.forget_up is not None and mixer.gate_up is not None:
            low_forget = forget
            low_gate = gate
            forget = _zeros(len(x), mixer.dim)
            gate = _zeros(*state.shape)
            self._linear(mixer.forget_up, low_forget, forget)
            self._linear(mixer.gate_up, low_gate, gate)
        h = _zeros(*state.shape)
        gated = _zeros(*state.shape)
        self._program.hgru_step(candidate, forget, bound, mixer.theta, state, h)
        if mixer.theta is not None:
            self._program.watch(mixer.theta)
        norm = mixer.norm
        self._program.gated_norm(
            h,
            gate,
            norm.weight,
            norm.bias,
            norm.eps,
            gated,
            activation=mixer.gate_act,
            gate_first=mixer.gate_position == "before_norm",
        )
        self._linear(mixer.out_proj, gated, self._x, add=self._x)


def _zeros(*shape: int) -> Tensor:
    """Memory of a step: float32 on the CPU, whatever PyTorch's defaults are."""
    return torch.zeros(shape, dtype=torch.float32, device="cpu")


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
        if part is not None and type(part) not in _KNOWN:
            return f"{name} is a {type(part).__name__}, of which there are no compiled steps"
        if part is not None and has_own_forward(part):
            return f"{name} has hooks, or a forward of its own, which would not be called"
        if isinstance(part, nn.Dropout) and part.training and part.p > 0:
            return f"{name} is in training mode; call eval()"
    mixers = [part for part in stack.modules() if isinstance(part, HGRU)]
    if any(mixer.bidirectional for mixer in mixers):
        return "a bidirectional stack reads whole sequences and has no steps"
    if any(mixer.scan is not scan_directions for mixer in mixers):
        return "the stack reads one stretch of longer sequences (hgrn.parallel)"
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
