"""Checks of what a module is given: an error names the argument, its value, the rule, the remedy.

Shape letters: B batch, T time, H, W rows and columns of a grid, D channels, N sequences.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence


def check_choice(name: str, value: object, allowed: Sequence[str]) -> None:
    """Raises ValueError unless the option `name` has one of the allowed values."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {tuple(allowed)}, got {value!r}")


def check_input(x: Tensor, letters: str, dim: int) -> None:
    """Raises TypeError or ValueError unless x holds floats in the right shape.

    `letters` names its axes, such as "[B, T, D]"; the last has size `dim`.
    """
    if isinstance(x, PackedSequence):
        raise TypeError(
            "x must be a tensor, got a PackedSequence; pass x, lengths = "
            "torch.nn.utils.rnn.pad_packed_sequence(x, batch_first=True) and "
            "mask=hgrn.ops.packing.lengths_to_mask(lengths, x.shape[1])"
        )
    if not isinstance(x, Tensor):
        raise TypeError(
            f"x must be a tensor of shape {letters}, got {type(x).__name__}; "
            "torch.as_tensor(x) makes one of numbers"
        )
    ndim = letters.count(",") + 1
    if x.ndim != ndim or x.shape[-1] != dim:
        is_single = x.ndim == ndim - 1 and x.shape[-1:] == (dim,)
        hint = "; a single sequence needs a batch axis of 1: x[None]" if is_single else ""
        raise ValueError(f"x must have shape {letters} with D = {dim}, got {tuple(x.shape)}{hint}")
    if not x.is_floating_point():
        raise TypeError(
            f"x must hold floats, got {x.dtype}; embed token ids (torch.nn.Embedding), or convert "
            "numbers with x.float()"
        )


def check_dtype(x: Tensor, weight: Tensor, name: str) -> None:
    """Raises TypeError if PyTorch would have to multiply x by a plain weight of another dtype."""
    # Tensor subclasses and quantized weights have their own rules for what they take.
    is_plain = type(weight) in (Tensor, nn.Parameter) and weight.is_floating_point()
    if x.dtype == weight.dtype or not is_plain:
        return
    # Autocast converts both factors itself.
    if not torch.is_autocast_enabled(x.device.type):
        raise TypeError(
            f"x is {x.dtype}, but the weights it meets ({name}) are {weight.dtype}; convert x with "
            f"x.to({weight.dtype}), or the module with .to({x.dtype})"
        )


def check_states(state: object, depth: int) -> None:
    """Raises TypeError or ValueError unless it is None or has a tuple of tensors a block."""
    if state is None:
        return
    if not isinstance(state, (tuple, list)):
        raise TypeError(
            "state must be None or what the stack returned, a tuple with an entry for each of "
            f"{depth} blocks, got {type(state).__name__}"
        )
    if len(state) != depth:
        raise ValueError(
            f"state must have an entry for each of {depth} blocks, got {len(state)}; pass what a "
            "stack of this depth returned, or None"
        )
    for index, entry in enumerate(state):
        check_state_tuple(entry, f"state[{index}]")


def check_state_tuple(state: object, name: str = "state") -> None:
    """Raises TypeError unless the state of one layer is a tuple (or list) of tensors."""
    is_sequence = isinstance(state, (tuple, list))
    if is_sequence and all(isinstance(part, Tensor) for part in state):
        return
    given = type(state).__name__
    if is_sequence:
        given = f"a {given} of {', '.join(type(part).__name__ for part in state) or 'nothing'}"
    raise TypeError(
        f"{name} must be a tuple of tensors, got {given}; it is what the call before returned, "
        "and no (h, c) as of nn.LSTM"
    )


def check_recurrent(recurrent: Tensor, sequences: int, channels: int) -> None:
    """Raises ValueError unless the recurrent part of a state is `[N, C]`."""
    if recurrent.shape != (sequences, channels):
        raise ValueError(
            f"state[0] as initial_state must have shape {(sequences, channels)} (sequences, "
            f"channels), got {tuple(recurrent.shape)}; a state belongs to the sequences and the "
            "layer that it came from; pass None to start anew"
        )
