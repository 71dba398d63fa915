"""One position of a stack for a few sequences, in one call of compiled code.

Shape letters: N sequences, D channels of the stack, C of a state (D, or 2D if complex), V outputs of the head.
"""

import torch
from torch import Tensor, nn

from hgrn.ops import available_engines

from .block import Block
from .bounds import LowerBounds
from .glu import GLU
from .hgru import HGRU
from .int8 import Int8Linear
from .linear import Linear
from .norms import GatedLayerNorm
from .stack import HGRN

_LARGEST = 8  # sequences; for more, matrix products are faster than the calls that this saves


class Stepper:
    """Steps of an `HGRN` on the CPU at the speed at which its weights can be read, whatever the size of the model.

    It is for inference: it takes the model as it is now, and is made anew when the model has been trained, moved or quantized.
    The numbers are those of `stack(x[:, None], state)`, to rounding.

    Args:
        stack: causal, float32, on the CPU, without hooks or wrappers around its parts; its linear maps may be `Int8Linear`.
        sequences: N, 1 to 8.
        head: a linear map behind the stack, whose output is returned then.

    Raises:
        ValueError: the stack cannot be stepped so; the message says why.

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
        if problem := why_not(stack, sequences, head):
            raise ValueError(f"Stepper: {problem}")
        from hgrn.ops import program  # here, since it needs numba

        self._depth, dim = len(stack.blocks), stack.norm.weight.shape[0]
        self._returned = None  # what the state was last read as, while it is that still
        self._program = program.Program()
        with torch.inference_mode(False), torch.no_grad():  # a tensor made in inference mode could be written only there
            self._x = torch.zeros(sequences, dim)
            width = stack.blocks[0].mixer.norm.weight.shape[0]
            self._states = torch.zeros(self._depth, sequences, width)
            for block, bound, state in zip(stack.blocks, stack.lower_bounds(), self._states, strict=True):
                self._block(block, bound, state)
            self._y = torch.zeros(sequences, dim)
            self._norm(stack.norm, self._x, self._y)
            if head is not None:
                self._y, normed = torch.zeros(sequences, head.out_features), self._y
                self._linear(head, normed, self._y)

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
        if len(state) != self._depth or any(part.shape != self._states.shape[1:] for (part,) in state):
            raise ValueError(
                f"state must have an entry for each of {self._depth} blocks, with a tensor of shape {tuple(self._states.shape[1:])}"
            )
        torch.stack([part for (part,) in state], out=self._states)

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """x `[N, D]` -> the stack's output, or the head's, `[N, D or V]`; the state goes on."""
        if x.shape != self._x.shape:
            raise ValueError(f"x must have shape {tuple(self._x.shape)} (sequences, channels), got {tuple(x.shape)}")
        self._x.copy_(x)
        self._returned = None
        self._program.run()
        return self._y.clone()

    def _linear(self, part: nn.Module, x: Tensor, y: Tensor, add: Tensor | None = None) -> None:
        self._program.linear(x, part.weight, part.bias, y, scale=getattr(part, "scale", None), add=add)

    def _norm(self, part: nn.LayerNorm, x: Tensor, y: Tensor) -> None:
        self._program.norm(x, part.weight, part.bias, part.eps, y)

    def _block(self, block: nn.Module, bound: Tensor | None, state: Tensor) -> None:
        """Both residual branches, whose results are added to `self._x`."""
        normed = torch.zeros_like(self._x)
        self._norm(block.mixer_norm, self._x, normed)
        self._mixer(block.mixer, normed, bound, state)
        self._norm(block.glu_norm, self._x, normed)
        glu = block.glu
        wide = torch.zeros(len(normed), glu.gate_up_proj.out_features)
        gated = torch.zeros(len(normed), glu.down_proj.in_features)
        self._linear(glu.gate_up_proj, normed, wide)
        self._program.gated_unit(wide, gated, activation=glu.act)
        self._linear(glu.down_proj, gated, self._x, add=self._x)

    def _mixer(self, mixer: HGRU, x: Tensor, bound: Tensor | None, state: Tensor) -> None:
        projected = torch.zeros(len(x), mixer.in_proj.out_features)
        self._linear(mixer.in_proj, x, projected)
        candidate, forget, gate = projected.split(mixer.joined_rows["in_proj"], dim=-1)
        if mixer.forget_up is not None:
            low = forget, gate
            forget, gate = torch.zeros(len(x), mixer.dim), torch.zeros_like(state)
            self._linear(mixer.forget_up, low[0], forget)
            self._linear(mixer.gate_up, low[1], gate)
        h, gated = torch.zeros_like(state), torch.zeros_like(state)
        self._program.hgru_step(candidate, forget, bound, mixer.theta, state, h)
        norm = mixer.norm
        self._program.gated_norm(
            h, gate, norm.weight, norm.bias, norm.eps, gated, activation=mixer.gate_act,
            gate_first=mixer.gate_position == "before_norm",
        )  # fmt: skip
        self._linear(mixer.out_proj, gated, self._x, add=self._x)


def why_not(stack: nn.Module, sequences: int = 1, head: nn.Module | None = None) -> str | None:
    """Why a `Stepper` cannot be made of this, or None if it can."""
    if not 1 <= sequences <= _LARGEST:
        return f"sequences must lie between 1 and {_LARGEST}, got {sequences}; for more, call the stack itself"
    if "numba" not in available_engines("cpu"):
        return "the package numba is not installed"
    if stack.training:
        return "the stack is in training mode; call eval()"
    if any(block.mixer.bidirectional for block in stack.blocks):
        return "a bidirectional stack reads whole sequences and has no steps"
    known = (
        HGRN, Block, HGRU, GLU, Linear, Int8Linear, nn.Linear, nn.LayerNorm, GatedLayerNorm, nn.Dropout, nn.ModuleList,
        LowerBounds,
    )  # fmt: skip
    for name, part in [*stack.named_modules(), ("head", head)]:
        if part is not None and type(part) not in known:
            return f"{name} is a {type(part).__name__}, of which there are no compiled steps"
        if part is not None and has_own_forward(part):
            return f"{name} has hooks, or a forward of its own, which would not be called"
    for whole in (stack, head):
        for name, tensor in [] if whole is None else [*whole.named_parameters(), *whole.named_buffers()]:
            fits = tensor.dtype in (torch.float32, torch.int8) and tensor.device.type == "cpu" and tensor.is_contiguous()
            if not fits:
                return f"{name} is {tensor.dtype} on {tensor.device}; contiguous float32 on cpu is needed"
    return None


def has_own_forward(part: nn.Module) -> bool:
    """Whether calling the module does more than its class says: it has hooks, or its `forward` was replaced."""
    return bool(part._forward_hooks or part._forward_pre_hooks or "forward" in vars(part))
