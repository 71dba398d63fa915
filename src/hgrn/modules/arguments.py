"""What a module is called with, checked where it is called: an error names the argument, its value, the rule and the remedy.

Shape letters: B batch, T time, H, W rows and columns of a grid, D channels, N sequences.
"""

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence


def check_input(x: Tensor, letters: str, dim: int) -> None:
    """Raises TypeError or ValueError unless x is a tensor of floats with as many axes as `letters` names, the last of size `dim`."""
    if isinstance(x, PackedSequence):
        raise TypeError(
            "x must be a tensor, got a PackedSequence; pass x, lengths = torch.nn.utils.rnn.pad_packed_sequence(x, batch_first=True) "
            "and mask=hgrn.ops.packing.lengths_to_mask(lengths, x.shape[1])"
        )
    if not isinstance(x, Tensor):
        raise TypeError(
            f"x must be a tensor of shape {letters}, got {type(x).__name__}; torch.as_tensor(x) makes one of numbers"
        )
    ndim = letters.count(",") + 1
    if x.ndim != ndim or x.shape[-1] != dim:
        hint = (
            "; a single sequence needs a batch axis of 1: x[None]"
            if x.ndim == ndim - 1 and x.shape[-1:] == (dim,)
            else ""
        )
        raise ValueError(f"x must have shape {letters} with D = {dim}, got {tuple(x.shape)}{hint}")
    if not x.is_floating_point():
        raise TypeError(
            f"x must hold floats, got {x.dtype}; embed token ids (torch.nn.Embedding), or convert numbers with x.float()"
        )


def check_dtype(x: Tensor, weight: Tensor, name: str) -> None:
    """Raises TypeError if PyTorch would have to multiply x by a plain weight of another dtype."""
    if (
        x.dtype == weight.dtype
        or type(weight) not in (Tensor, nn.Parameter)
        or not weight.is_floating_point()
    ):
        return
    if not torch.is_autocast_enabled(x.device.type):
        raise TypeError(
            f"x is {x.dtype}, but the weights it meets ({name}) are {weight.dtype}; convert x with x.to({weight.dtype}), or the "
            f"module with .to({x.dtype})"
        )


def check_states(state, depth: int) -> None:
    """Raises TypeError or ValueError unless `state` is None or has a tuple of tensors for each block of a stack."""
    if state is None:
        return
    if not isinstance(state, (tuple, list)):
        raise TypeError(
            f"state must be None or what the stack returned, a tuple with an entry for each of {depth} blocks, got "
            f"{type(state).__name__}"
        )
    if len(state) != depth:
        raise ValueError(
            f"state must have an entry for each of {depth} blocks, got {len(state)}; pass what a stack of this depth returned, or None"
        )
    for index, entry in enumerate(state):
        check_state_tuple(entry, f"state[{index}]")


def check_state_tuple(state, name: str = "state") -> None:
    if not isinstance(state, (tuple, list)) or not all(isinstance(part, Tensor) for part in state):
        given = type(state).__name__
        if isinstance(state, (tuple, list)):
            given = f"a {given} of {', '.join(type(part).__name__ for part in state) or 'nothing'}"
        raise TypeError(
            f"{name} must be a tuple of tensors, got {given}; it is what the call before returned, and no (h, c) as of nn.LSTM"
        )


def check_recurrent(recurrent: Tensor, sequences: int, channels: int) -> None:
    """Raises ValueError unless the recurrent part of a state is `[N, C]`."""
    if recurrent.shape != (sequences, channels):
        raise ValueError(
            f"state[0] as initial_state must have shape {(sequences, channels)} (sequences, channels), got "
            f"{tuple(recurrent.shape)}; a state belongs to the sequences and the layer that it came from; pass None to start anew"
        )
