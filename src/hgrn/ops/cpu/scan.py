"""The CPU kernels of the scans: `hgru_scan` with `hgru_carry`, `gated_scan`, and their backward.

Both scans walk along time with one state for each channel (equations in `hgrn.ops.reference`):

    h_t = keep_t exp(i theta) h_{t-1} + new_t

`hgru_scan` makes `keep_t` and `new_t` from pre-activations (the constant `fused` is 1), `gated_scan`
takes `log(keep_t)` and `new_t` as they are (0). Its inputs use the same fields: `candidate` holds
`new_t`, and `forget` holds `log(keep_t)`. With `parts` 2 the state is complex: a row holds all real
parts, then all imaginary parts.

**Tasks.** A task is one sequence, one inner index and one block of channels, with all time steps.
Running states live in the output tensors (the final state in the forward, the gradient of the initial
state in the backward), where they stay in the first-level cache.

**Pieces.** The channels of one time step are computed in pieces. Before each piece we prefetch the same
piece of a later step, because the processor's own prefetcher does not follow large or negative strides.

**Shapes.** `candidate`, `h` and their gradients are `[O, T, I, parts D]`; `forget` and its gradient
`[O, T, I, D]`; states `[N, I, parts D]`; `decay` and the sums of gradients `[N, I, D]`; `complement`
(1 - lower bound), `cos` and `sin` (of theta) `[D]`; `mask` `[O, T, I]`; `bounds` `[N + 1]`, the cumulated
lengths of packed sequences.
"""

from hgrn.ops.cpu.gates import (
    exp_nonpositive,
    one_minus,
    select,
    sigmoid,
    sigmoid_pair,
    silu,
    silu_pair,
)
from hgrn.ops.cpu.language import Kernel, arithmetic, helper, prefetch
from hgrn.ops.cpu.rows import second

PIECE = 128  # channels
AHEAD = 1024  # channels whose computation takes about as long as memory takes to answer
_NUMBERS = (
    "steps inner channels blocks block reverse"
    " candidate_outer candidate_time candidate_inner forget_outer forget_time forget_inner"
)


@helper
def _place(call, task):
    """What a task covers: sequence, outer and inner index, first channel, number of channels, times."""
    sequence = task // (call.inner * call.blocks)
    rest = task % (call.inner * call.blocks)
    i = rest // call.blocks
    start = (rest % call.blocks) * call.block
    outer = sequence
    begin = 0
    end = call.steps
    if call.bounds:
        outer = 0
        begin = call.bounds[sequence]
        end = call.bounds[sequence + 1]
    return sequence, outer, i, start, min(call.block, call.channels - start), begin, end


@helper
def _lookahead(width):
    """How many steps ahead to prefetch: one for wide rows, more for narrow ones, which are done sooner."""
    return max(1, AHEAD // max(width, 1))


# ---------------------------------------------------------------------------------------------------
# Forward


@arithmetic
def _gate(call, forget, complement, j):
    """lambda_t and 1 - lambda_t. The second comes from its own product, so nothing cancels near 1."""
    if call.fused:
        write = complement[j] * sigmoid(-forget[j])
        return one_minus(write), write
    keep = exp_nonpositive(forget[j])
    return keep, keep


@arithmetic
def _new(call, write, candidate, j):
    """What enters the state."""
    if call.fused:
        return write * silu(candidate[j])
    return candidate[j]


@helper
def _step_real(call, low, high, candidate, forget, complement, state, h):
    """One time step of the channels from `low` to `high`."""
    for j in range(low, high):
        keep, write = _gate(call, forget, complement, j)
        state[j] = h[j] = keep * state[j] + _new(call, write, candidate, j)


@helper
def _step_complex(call, low, high, candidate, forget, complement, cos, sin, state, h):
    """One time step of a complex state."""
    candidate_im = second(candidate, call.channels)
    state_im = second(state, call.channels)
    h_im = second(h, call.channels)
    for j in range(low, high):
        keep, write = _gate(call, forget, complement, j)

        # Turn the old state by theta, then decay it.
        turned = cos[j] * state[j] - sin[j] * state_im[j]
        turned_im = sin[j] * state[j] + cos[j] * state_im[j]

        state[j] = h[j] = keep * turned + _new(call, write, candidate, j)
        state_im[j] = h_im[j] = keep * turned_im + _new(call, write, candidate_im, j)


@helper
def _hold(call, width, candidate, state, h):
    """A masked step. The state stays; `gated_scan` still adds its input, which the caller may have left."""
    for j in range(width):
        if not call.fused:
            state[j] += candidate[j]
        h[j] = state[j]


@helper
def _multiply_gates(low, high, forget, complement, decay):
    """The product of the gates, for `hgru_carry`.

    A gate near 0 must be exact here, since the product is all that is left of a state. So it is computed
    as lower bound + complement * sigmoid(forget) where that is the smaller of the two forms.
    """
    for j in range(low, high):
        on, off = sigmoid_pair(forget[j])
        small = one_minus(complement[j]) + complement[j] * on
        large = one_minus(complement[j] * off)
        decay[j] *= select(on < off, small, large)


@Kernel(
    constants="parts fused",
    numbers=_NUMBERS,
    tensors="candidate forget h",
    states="complement cos sin state decay",
    integers="bounds",
    flags="mask",
)
def scan(call, task):
    """Writes h; `state` holds the initial states and is left with the final ones.

    With `decay` (ones, left with the products of the gates) it is `hgru_carry`: nobody wants the states
    in between, so h is not `[O, T, I, C]` but `[N, I, C]`, and every step writes to the same row.
    """
    sequence, outer, i, start, width, begin, end = _place(call, task)
    channels = call.channels
    reverse = call.reverse != 0

    # The rows of this task: parameters and states here, tensors with time at position 0.
    row = sequence * call.inner + i
    first = outer * call.steps * call.inner + i
    complement = call.complement + start
    cos = call.cos + start
    sin = call.sin + start
    state = call.state + (row * call.parts * channels + start)
    decay = call.decay + (row * channels + start)
    candidate = call.candidate + (outer * call.candidate_outer + i * call.candidate_inner + start)
    forget = call.forget + (outer * call.forget_outer + i * call.forget_inner + start)
    h = call.h + ((row if call.decay else first) * call.parts * channels + start)
    h_time = 0 if call.decay else call.inner * call.parts * channels

    ahead = -_lookahead(width) if reverse else _lookahead(width)
    for step in range(end - begin):
        t = end - 1 - step if reverse else begin + step
        candidate_t = candidate + t * call.candidate_time
        forget_t = forget + t * call.forget_time
        h_t = h + t * h_time

        # A masked position takes no part.
        if call.mask and not call.mask[first + t * call.inner]:
            _hold(call, width, candidate_t, state, h_t)
            if call.parts == 2:
                candidate_im = second(candidate_t, channels)
                _hold(call, width, candidate_im, second(state, channels), second(h_t, channels))
            continue

        candidate_ahead = candidate_t + ahead * call.candidate_time
        forget_ahead = forget_t + ahead * call.forget_time
        for low in range(0, width, PIECE):
            high = min(low + PIECE, width)
            prefetch(forget_ahead + low, high - low)
            for part in range(call.parts):
                prefetch(candidate_ahead + (part * channels + low), high - low)
            if call.parts == 1:
                _step_real(call, low, high, candidate_t, forget_t, complement, state, h_t)
            else:
                _step_complex(
                    call, low, high, candidate_t, forget_t, complement, cos, sin, state, h_t
                )
            if call.decay:
                _multiply_gates(low, high, forget_t, complement, decay)


# ---------------------------------------------------------------------------------------------------
# Backward


@helper
def _back_real(
    call,
    low,
    high,
    before,
    candidate,
    forget,
    complement,
    grad_h,
    grad_state,
    grad_candidate,
    grad_forget,
    grad_lower,
):
    """One time step back. `before` holds h_{t-1}; `grad_state` the gradient that comes from later steps."""
    for j in range(low, high):
        grad = grad_state[j] + grad_h[j]
        if call.fused:
            on, off = sigmoid_pair(forget[j])
            new, slope = silu_pair(candidate[j])
            write = complement[j] * off
            to_gate = grad * (before[j] - new)
            grad_state[j] = one_minus(write) * grad
            grad_candidate[j] = grad * write * slope
            grad_forget[j] = to_gate * (write * on)
            grad_lower[j] += to_gate * off
        else:
            passed = exp_nonpositive(forget[j]) * grad
            grad_state[j] = passed
            grad_candidate[j] = grad
            grad_forget[j] = passed * before[j]


@helper
def _back_complex(
    call,
    low,
    high,
    before,
    cos,
    sin,
    grad_theta,
    candidate,
    forget,
    complement,
    grad_h,
    grad_state,
    grad_candidate,
    grad_forget,
    grad_lower,
):
    """One time step of a complex state back."""
    candidate_im = second(candidate, call.channels)
    before_im = second(before, call.channels)
    grad_h_im = second(grad_h, call.channels)
    grad_state_im = second(grad_state, call.channels)
    grad_candidate_im = second(grad_candidate, call.channels)
    for j in range(low, high):
        grad = grad_state[j] + grad_h[j]
        grad_im = grad_state_im[j] + grad_h_im[j]
        turned = cos[j] * before[j] - sin[j] * before_im[j]
        turned_im = sin[j] * before[j] + cos[j] * before_im[j]

        if call.fused:
            on, off = sigmoid_pair(forget[j])
            new, slope = silu_pair(candidate[j])
            new_im, slope_im = silu_pair(candidate_im[j])
            write = complement[j] * off
            keep = one_minus(write)
            to_gate = grad * (turned - new) + grad_im * (turned_im - new_im)
            grad_candidate[j] = grad * write * slope
            grad_candidate_im[j] = grad_im * write * slope_im
            grad_forget[j] = to_gate * (write * on)
            grad_lower[j] += to_gate * off
        else:
            keep = exp_nonpositive(forget[j])
            grad_candidate[j] = grad
            grad_candidate_im[j] = grad_im
            grad_forget[j] = keep * (grad * turned + grad_im * turned_im)

        # Turn the gradient back by theta, and decay it.
        grad_state[j] = keep * (cos[j] * grad + sin[j] * grad_im)
        grad_state_im[j] = keep * (cos[j] * grad_im - sin[j] * grad)
        grad_theta[j] += keep * (grad_im * turned - grad * turned_im)


@helper
def _back(call, low, high, before, cos, sin, grad_theta, rows):
    if call.parts == 1:
        _back_real(call, low, high, before, *rows)
    else:
        _back_complex(call, low, high, before, cos, sin, grad_theta, *rows)


@helper
def _back_hold(call, width, grad_h, grad_state, grad_candidate):
    """A masked step back: the gradient passes to the step before, and to what `gated_scan` added."""
    for j in range(width):
        grad_state[j] += grad_h[j]
        if call.fused:
            grad_candidate[j] = 0
        else:
            grad_candidate[j] = grad_state[j]


@helper
def _clear(width, row):
    for j in range(width):
        row[j] = 0


@Kernel(
    constants="parts fused",
    numbers=_NUMBERS + " grad_h_outer grad_h_time grad_h_inner",
    tensors="candidate forget h grad_h grad_candidate grad_forget",
    states="complement cos sin initial grad_state grad_lower grad_theta",
    integers="bounds",
    flags="mask",
)
def scan_backward(call, task):
    """Writes the gradients; `grad_state` holds the final states' and is left with the initial states'.

    `grad_lower` and `grad_theta` are sums over time, and start at 0. `gated_scan` reads no `candidate`
    and no `complement`, and has no `grad_lower`.
    """
    sequence, outer, i, start, width, begin, end = _place(call, task)
    channels = call.channels
    reverse = call.reverse != 0

    # The rows of this task: parameters, states and sums here, tensors with time at position 0.
    row = sequence * call.inner + i
    first = outer * call.steps * call.inner + i
    h_time = call.inner * call.parts * channels
    complement = call.complement + start
    cos = call.cos + start
    sin = call.sin + start
    initial = call.initial + (row * call.parts * channels + start)
    grad_state = call.grad_state + (row * call.parts * channels + start)
    grad_lower = call.grad_lower + (row * channels + start)
    grad_theta = call.grad_theta + (row * channels + start)
    candidate = call.candidate + (outer * call.candidate_outer + i * call.candidate_inner + start)
    forget = call.forget + (outer * call.forget_outer + i * call.forget_inner + start)
    grad_h = call.grad_h + (outer * call.grad_h_outer + i * call.grad_h_inner + start)
    h = call.h + (first * call.parts * channels + start)
    grad_candidate = call.grad_candidate + (first * call.parts * channels + start)
    grad_forget = call.grad_forget + (first * channels + start)

    # The backward walks against the scan: `back` leads to the step that came before.
    back = 1 if reverse else -1
    ahead = back * _lookahead(width)
    for step in range(end - begin):
        t = begin + step if reverse else end - 1 - step
        grad_h_t = grad_h + t * call.grad_h_time
        grad_candidate_t = grad_candidate + t * h_time
        grad_forget_t = grad_forget + t * call.inner * channels

        # A masked position took no part.
        if call.mask and not call.mask[first + t * call.inner]:
            _back_hold(call, width, grad_h_t, grad_state, grad_candidate_t)
            if call.parts == 2:
                grad_state_im = second(grad_state, channels)
                grad_candidate_im = second(grad_candidate_t, channels)
                _back_hold(
                    call, width, second(grad_h_t, channels), grad_state_im, grad_candidate_im
                )
            _clear(width, grad_forget_t)
            continue

        candidate_t = candidate + t * call.candidate_time
        forget_t = forget + t * call.forget_time
        before = h + (t + back) * h_time
        rows = (
            candidate_t,
            forget_t,
            complement,
            grad_h_t,
            grad_state,
            grad_candidate_t,
            grad_forget_t,
            grad_lower,
        )
        candidate_ahead = candidate_t + ahead * call.candidate_time
        forget_ahead = forget_t + ahead * call.forget_time
        grad_h_ahead = grad_h_t + ahead * call.grad_h_time
        before_ahead = before + ahead * h_time
        for low in range(0, width, PIECE):
            high = min(low + PIECE, width)
            prefetch(forget_ahead + low, high - low)
            for part in range(call.parts):
                if call.fused:
                    prefetch(candidate_ahead + (part * channels + low), high - low)
                prefetch(grad_h_ahead + (part * channels + low), high - low)
                prefetch(before_ahead + (part * channels + low), high - low)

            # Before the first step of a sequence lies the initial state, in the dtype of states.
            if step == end - begin - 1:
                _back(call, low, high, initial, cos, sin, grad_theta, rows)
            else:
                _back(call, low, high, before, cos, sin, grad_theta, rows)
