"""One position of a stack for a few sequences, in one call of compiled code.

Shape letters: N sequences, D channels of the stack, C of a state (D, or 2D if complex), V outputs of the head.
"""

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from hgrn.modules.block import Block
from hgrn.modules.bounds import LowerBounds
from hgrn.modules.glu import GLU
from hgrn.modules.hgru import HGRU
from hgrn.modules.int8 import Int8Linear
from hgrn.modules.linear import Linear
from hgrn.modules.norms import GatedLayerNorm
from hgrn.modules.stack import HGRN
from hgrn.modules.watch import Watch
from hgrn.ops import available_engines
from hgrn.ops.addresses import describe, is_plain

_LARGEST = 8  # sequences; for more, matrix products are faster than the calls that this saves


class NotSteppable(ValueError):
    """Of this model, as it is now, there are no compiled steps; the message says why."""


class Stepper:
    """Steps of an `HGRN` on the CPU at the speed at which its weights can be read, whatever the size of the model.

    It is for inference. The numbers are those of `stack(x[:, None], state)`, to rounding. A change of the stack between two steps is
    noticed, be it trained, moved or quantized: the next step is that of the stack as it is then, from the same state. A copy, also
    by pickle, has steps of its own and goes on from the state that was copied.

    Args:
        stack: causal, float32, on the CPU, without hooks or wrappers around its parts; its linear maps may be `Int8Linear`.
        sequences: N, 1 to 8.
        head: a linear map behind the stack, whose output is returned then.

    Raises:
        ValueError: the stack cannot be stepped so, or no longer; the message says why.

    Example:
        >>> import torch
        >>> from hgrn import HGRN
        >>> from hgrn.modules import Stepper
        >>> rnn = HGRN(dim=32, depth=2).eval()
        >>> step = Stepper(rnn)
        >>> for _ in range(1000):                     # a thousand positions in some hundredths of a second
        ...     y = step(torch.randn(1, 32))
        >>> [part.shape for part in step.state[0]]    # as the stack's own
        [torch.Size([1, 64])]
    """

    def __init__(self, stack: HGRN, sequences: int = 1, head: nn.Module | None = None):
        self._stack = stack
        self._sequences = sequences
        self._head = head
        self._returned = None  # what the state was last read as, while it is that still
        self._compile()

    def _compile(self) -> None:
        """Makes the program for the stack as it is now; a state that is here already stays."""
        stack = self._stack
        sequences = self._sequences
        head = self._head
        if problem := why_not(stack, sequences, head):
            raise NotSteppable(f"Stepper: {problem}")
        from hgrn.ops.cpu import program  # here, since it needs numba

        self._program = program.Program()
        dim = stack.norm.normalized_shape[-1]
        width = stack.blocks[0].mixer.norm.normalized_shape[-1]
        with (
            torch.inference_mode(False),
            torch.no_grad(),
        ):  # a tensor made in inference mode could be written only there
            self._watch = Watch(
                module for whole in (stack, head) if whole is not None for module in whole.modules()
            )
            self._x = _zeros(sequences, dim)
            states = _zeros(len(stack.blocks), sequences, width)
            if hasattr(self, "_states"):
                if self._states.shape != states.shape:
                    raise NotSteppable(
                        "Stepper: the stack has become one of another size, whose state is another; make it anew"
                    )
                states = self._states
            try:
                for block, bound, state in zip(
                    stack.blocks, stack.lower_bounds(), states, strict=True
                ):
                    self._block(block, bound, state)
                if stack.bounds is not None:
                    self._program.watch(stack.bounds.logits)
                self._y = _zeros(sequences, dim)
                self._norm(stack.norm, self._x, self._y)
                if head is not None:
                    self._y, normed = _zeros(sequences, len(head.weight)), self._y
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
        """A copy of the state, as `HGRN` returns and takes it: for each block `(recurrent [N, C],)`."""
        self._returned = tuple((state,) for state in self._states.clone())
        return self._returned

    @state.setter
    @torch.no_grad()
    def state(self, state: tuple[tuple[Tensor], ...] | None) -> None:
        """None is the state before the first position."""
        if state is not None and state is self._returned:
            return  # it is here already
        self._returned = None
        if state is None:
            self._states.zero_()
            return
        if len(state) != len(self._states) or any(
            part.shape != self._states.shape[1:] for (part,) in state
        ):
            raise ValueError(
                f"state must have an entry for each of {len(self._states)} blocks, with a tensor of shape {tuple(self._states.shape[1:])}"
            )
        torch.stack([part for (part,) in state], out=self._states)

    def __call__(self, x: Tensor) -> Tensor:
        """x `[N, D]` -> the stack's output, or the head's, `[N, D or V]`; the state goes on."""
        if x.shape != self._x.shape:
            raise ValueError(
                f"x must have shape {tuple(self._x.shape)} (sequences, channels), got {tuple(x.shape)}"
            )
        if self._watch.has_changed():
            self._compile()
        self._x.copy_(x.detach())
        self._returned = None
        if not self._program.run():  # bounds or angles have changed, of which values were computed
            self._compile()
            self._x.copy_(x.detach())
            self._program.run()
        return self._y.clone()

    def _linear(self, part: nn.Module, x: Tensor, y: Tensor, add: Tensor | None = None) -> None:
        self._program.linear(
            x, part.weight, part.bias, y, scale=getattr(part, "scale", None), add=add
        )

    def _norm(self, part: nn.LayerNorm, x: Tensor, y: Tensor) -> None:
        self._program.norm(x, part.weight, part.bias, part.eps, y)

    def _block(self, block: nn.Module, bound: Tensor | None, state: Tensor) -> None:
        """Both residual branches, whose results are added to `self._x`."""
        normed = _zeros(*self._x.shape)
        self._norm(block.mixer_norm, self._x, normed)
        self._mixer(block.mixer, normed, bound, state)
        self._norm(block.glu_norm, self._x, normed)
        glu = block.glu
        wide = _zeros(len(normed), len(glu.gate_up_proj.weight))
        gated = _zeros(len(normed), glu.down_proj.weight.shape[1])
        self._linear(glu.gate_up_proj, normed, wide)
        self._program.gated_unit(wide, gated, activation=glu.act)
        self._linear(glu.down_proj, gated, self._x, add=self._x)

    def _mixer(self, mixer: HGRU, x: Tensor, bound: Tensor | None, state: Tensor) -> None:
        projected = _zeros(len(x), len(mixer.in_proj.weight))
        self._linear(mixer.in_proj, x, projected)
        candidate, forget, gate = projected.split(mixer.joined_rows["in_proj"], dim=-1)
        if mixer.forget_up is not None:
            low = forget, gate
            forget = _zeros(len(x), mixer.dim)
            gate = _zeros(*state.shape)
            self._linear(mixer.forget_up, low[0], forget)
            self._linear(mixer.gate_up, low[1], gate)
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
    """Memory of a step, whatever PyTorch's defaults are."""
    return torch.zeros(shape, dtype=torch.float32, device="cpu")


def why_not(stack: nn.Module, sequences: int = 1, head: nn.Module | None = None) -> str | None:
    """Why a `Stepper` cannot be made of this, or None if it can."""
    if not 1 <= sequences <= _LARGEST:
        return f"sequences must lie between 1 and {_LARGEST}, got {sequences}; for more, call the stack itself"
    if "numba" not in available_engines("cpu"):
        return "the engine numba cannot be used here; `hgrn doctor` says why"
    if stack.training:
        return "the stack is in training mode; call eval()"
    if any(block.mixer.bidirectional for block in stack.blocks):
        return "a bidirectional stack reads whole sequences and has no steps"
    if any(block.mixer.context is not None for block in stack.blocks):
        return "the stack reads one stretch of longer sequences (hgrn.parallel)"
    if _has_any_global_hook():
        return "there are hooks for all modules, which would not be called"
    known = (
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
    for name, part in [*stack.named_modules(), ("head", head)]:
        if part is not None and type(part) not in known:
            return f"{name} is a {type(part).__name__}, of which there are no compiled steps"
        if part is not None and has_own_forward(part):
            return f"{name} has hooks, or a forward of its own, which would not be called"
        if isinstance(part, nn.Dropout) and part.training and part.p > 0:
            return f"{name} is in training mode; call eval()"
    for whole in (stack, head):
        for name, tensor in (
            [] if whole is None else [*whole.named_parameters(), *whole.named_buffers()]
        ):
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
    """Whether calling the module does more than its class says: it has hooks, or its `forward` was replaced."""
    return bool(part._forward_hooks or part._forward_pre_hooks or "forward" in vars(part))
