"""The CPU kernels of the scans: `hgru_scan` with `hgru_carry`, `gated_scan`, and their backward.

All of them walk along time with one state for each channel (equations in `hgrn.ops.reference`):

    h_t = keep_t exp(i theta) h_{t-1} + new_t

`hgru_scan` (the constant `fused` is 1) computes both from pre-activations, in the same pass:

    keep_t = 1 - write_t,  write_t = complement sigmoid(-gate_t),  new_t = write_t SiLU(x_t)

with `complement` 1 - lower bound. `gated_scan` (`fused` is 0) has
`keep_t = exp(gate_t)` and `new_t = x_t`. With `parts` 2 the state is complex: a row holds all
real parts, then all imaginary parts.

**Tasks.** A task is one sequence, one inner index and one block of channels, with all time steps.
Running states live in the output tensors (the final state in the forward, the gradient of the
initial state in the backward), where they stay in the first-level cache.

**Pieces.** The channels of one time step are computed in pieces. Before each piece we prefetch the
same piece of a later step, because the processor's own prefetcher does not follow large or negative
strides.

**Shapes.** (Letters as in `hgrn.ops.arguments`.) x, h and their gradients are `[O, T, I, C]`, the
gate and its gradient `[O, T, I, D]`, states `[N, I, C]`, decay and sums of gradients `[N, I, D]`,
complement, cosine and sine of theta `[D]`, the mask `[O, T, I]`, and bounds `[N + 1]`, where packed
sequences begin.
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
from hgrn.ops.cpu.language import Kernel, arithmetic, by_constant, helper
from hgrn.ops.cpu.rows import prefetch, second

_PIECE = 128  # channels
# So many channels take about as long to compute as memory takes to answer.
_AHEAD = 1024
_NUMBERS = (
    "steps inner channels blocks block reverse"
    " x_outer x_time x_inner gate_outer gate_time gate_inner"
)


@helper
def _place(call, task):
    """What a task covers: sequence, outer and inner index, first channel, width, time range."""
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
def _lookahead(call, width):
    """How many steps ahead to prefetch: one for wide rows, more for narrow ones, which end soon.

    `gated_scan` computes so little that one step ahead is best for all.
    """
    if call.fused:
        return max(1, _AHEAD // max(width, 1))
    return 1


# --------------------------------------------------------------------------------------------------
# Forward


@arithmetic
def _keep_and_write(call, gate, complement, j):
    """`keep` and `write`. The second is a product, so nothing cancels where the first is near 1."""
    if call.fused:
        write = complement[j] * sigmoid(-gate[j])
        return one_minus(write), write
    keep = exp_nonpositive(gate[j])
    return keep, keep


@arithmetic
def _new(call, write, x, j):
    """`new`, what enters the state."""
    if call.fused:
        return write * silu(x[j])
    return x[j]


@helper
def _step_real(call, width, x, gate, complement, cos, sin, state, h):
    """One time step of `width` channels."""
    for j in range(width):
        keep, write = _keep_and_write(call, gate, complement, j)
        state[j] = h[j] = keep * state[j] + _new(call, write, x, j)


@helper
def _step_complex(call, width, x, gate, complement, cos, sin, state, h):
    """One time step of a complex state."""
    x_im = second(x, call.channels)
    state_im = second(state, call.channels)
    h_im = second(h, call.channels)
    for j in range(width):
        keep, write = _keep_and_write(call, gate, complement, j)

        # Turn the old state by theta, then decay it.
        turned = cos[j] * state[j] - sin[j] * state_im[j]
        turned_im = sin[j] * state[j] + cos[j] * state_im[j]

        state[j] = h[j] = keep * turned + _new(call, write, x, j)
        state_im[j] = h_im[j] = keep * turned_im + _new(call, write, x_im, j)


_step = by_constant("parts", {1: _step_real, 2: _step_complex})


@helper
def _hold(call, width, x, state, h):
    """A masked step: the state stays. `gated_scan` still adds its input, which need not be 0."""
    for j in range(width):
        if not call.fused:
            state[j] += x[j]
        h[j] = state[j]


@helper
def _multiply_gates(width, gate, complement, decay):
    """The product of the gates, for `hgru_carry`.

    Here a gate near 0 must be exact, since all that is left of a state is this product. So such a
    gate is computed as lower bound + complement sigmoid(gate), a sum in which nothing cancels.
    """
    for j in range(width):
        on, off = sigmoid_pair(gate[j])
        small = one_minus(complement[j]) + complement[j] * on
        large = one_minus(complement[j] * off)
        decay[j] *= select(on < off, small, large)


@Kernel(
    constants="parts fused",
    numbers=_NUMBERS,
    tensors="x gate h",
    states="complement cos sin state decay",
    integers="bounds",
    flags="mask",
)
def scan_forward(call, task):
    """Writes h; `state` holds the initial states and is left with the final ones.

    With `decay` (ones, left with the products of the gates) it is `hgru_carry`: nobody wants the
    states in between, so h is not `[O, T, I, C]` but `[N, I, C]`, and every step writes to the same
    row.
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
    x = call.x + (outer * call.x_outer + i * call.x_inner + start)
    gate = call.gate + (outer * call.gate_outer + i * call.gate_inner + start)
    h = call.h + ((row if call.decay else first) * call.parts * channels + start)
    h_time = 0 if call.decay else call.inner * call.parts * channels

    ahead = -_lookahead(call, width) if reverse else _lookahead(call, width)
    for step in range(end - begin):
        t = end - 1 - step if reverse else begin + step
        x_t = x + t * call.x_time
        gate_t = gate + t * call.gate_time
        h_t = h + t * h_time

        # A masked position takes no part.
        if call.mask and not call.mask[first + t * call.inner]:
            _hold(call, width, x_t, state, h_t)
            if call.parts == 2:
                x_im = second(x_t, channels)
                _hold(call, width, x_im, second(state, channels), second(h_t, channels))
            continue

        for low in range(0, width, _PIECE):
            piece = min(_PIECE, width - low)
            prefetch(gate_t + (ahead * call.gate_time + low), piece)
            for part in range(call.parts):
                further = part * channels + low
                prefetch(x_t + (ahead * call.x_time + further), piece)
            x_p = x_t + low
            gate_p = gate_t + low
            complement_p = complement + low
            _step(
                call, piece, x_p, gate_p, complement_p, cos + low, sin + low, state + low, h_t + low
            )
            if call.decay:
                _multiply_gates(piece, gate_p, complement_p, decay + low)


# --------------------------------------------------------------------------------------------------
# Backward


@helper
def _back_real(call, width, before, cos, sin, grad_theta, rows):
    """One time step back. `before` is h_{t-1}, `grad_state` the gradient from later steps."""
    x, gate, complement, grad_h, grad_state, grad_x, grad_gate, grad_lower = rows
    for j in range(width):
        grad = grad_state[j] + grad_h[j]
        if call.fused:
            on, off = sigmoid_pair(gate[j])
            new, slope = silu_pair(x[j])
            write = complement[j] * off
            grad_keep = grad * (before[j] - new)
            grad_state[j] = one_minus(write) * grad
            grad_x[j] = grad * write * slope
            grad_gate[j] = grad_keep * (write * on)
            grad_lower[j] += grad_keep * off
        else:
            passed = exp_nonpositive(gate[j]) * grad
            grad_state[j] = passed
            grad_x[j] = grad
            grad_gate[j] = passed * before[j]


@helper
def _back_complex(call, width, before, cos, sin, grad_theta, rows):
    """One time step of a complex state back."""
    x, gate, complement, grad_h, grad_state, grad_x, grad_gate, grad_lower = rows
    x_im = second(x, call.channels)
    before_im = second(before, call.channels)
    grad_h_im = second(grad_h, call.channels)
    grad_state_im = second(grad_state, call.channels)
    grad_x_im = second(grad_x, call.channels)
    for j in range(width):
        grad = grad_state[j] + grad_h[j]
        grad_im = grad_state_im[j] + grad_h_im[j]
        turned = cos[j] * before[j] - sin[j] * before_im[j]
        turned_im = sin[j] * before[j] + cos[j] * before_im[j]

        if call.fused:
            on, off = sigmoid_pair(gate[j])
            new, slope = silu_pair(x[j])
            new_im, slope_im = silu_pair(x_im[j])
            write = complement[j] * off
            keep = one_minus(write)
            grad_keep = grad * (turned - new) + grad_im * (turned_im - new_im)
            grad_x[j] = grad * write * slope
            grad_x_im[j] = grad_im * write * slope_im
            grad_gate[j] = grad_keep * (write * on)
            grad_lower[j] += grad_keep * off
        else:
            keep = exp_nonpositive(gate[j])
            grad_x[j] = grad
            grad_x_im[j] = grad_im
            grad_gate[j] = keep * (grad * turned + grad_im * turned_im)

        # Turn the gradient back by theta, and decay it.
        grad_state[j] = keep * (cos[j] * grad + sin[j] * grad_im)
        grad_state_im[j] = keep * (cos[j] * grad_im - sin[j] * grad)
        grad_theta[j] += keep * (grad_im * turned - grad * turned_im)


_back = by_constant("parts", {1: _back_real, 2: _back_complex})


@helper
def _back_hold(call, width, grad_h, grad_state, grad_x):
    """A masked step back: the gradient passes to the step before, and to x if it was added."""
    for j in range(width):
        grad_state[j] += grad_h[j]
        if call.fused:
            grad_x[j] = 0
        else:
            grad_x[j] = grad_state[j]


@helper
def _clear(width, row):
    for j in range(width):
        row[j] = 0


@Kernel(
    constants="parts fused",
    numbers=_NUMBERS + " grad_h_outer grad_h_time grad_h_inner",
    tensors="x gate h grad_h grad_x grad_gate",
    states="complement cos sin initial grad_state grad_lower grad_theta",
    integers="bounds",
    flags="mask",
    # Both are only read. In one stream they have one type, so float32 needs one compiled `_back`.
    overlapping="h initial",
)
def scan_backward(call, task):
    """Writes gradients. `grad_state` holds the final states' and is left with the initial states'.

    `grad_lower` and `grad_theta` are sums over time, and start at 0. `gated_scan` reads no `x`
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
    x = call.x + (outer * call.x_outer + i * call.x_inner + start)
    gate = call.gate + (outer * call.gate_outer + i * call.gate_inner + start)
    grad_h = call.grad_h + (outer * call.grad_h_outer + i * call.grad_h_inner + start)
    h = call.h + (first * call.parts * channels + start)
    grad_x = call.grad_x + (first * call.parts * channels + start)
    grad_gate = call.grad_gate + (first * channels + start)

    # The backward walks against the scan: `back` leads to the step that came before.
    back = 1 if reverse else -1
    ahead = back * _lookahead(call, width)
    for step in range(end - begin):
        t = begin + step if reverse else end - 1 - step
        grad_h_t = grad_h + t * call.grad_h_time
        grad_x_t = grad_x + t * h_time
        grad_gate_t = grad_gate + t * call.inner * channels

        # A masked position took no part.
        if call.mask and not call.mask[first + t * call.inner]:
            _back_hold(call, width, grad_h_t, grad_state, grad_x_t)
            if call.parts == 2:
                grad_state_im = second(grad_state, channels)
                grad_x_im = second(grad_x_t, channels)
                _back_hold(call, width, second(grad_h_t, channels), grad_state_im, grad_x_im)
            _clear(width, grad_gate_t)
            continue

        x_t = x + t * call.x_time
        gate_t = gate + t * call.gate_time
        before = h + (t + back) * h_time
        for low in range(0, width, _PIECE):
            piece = min(_PIECE, width - low)
            prefetch(gate_t + (ahead * call.gate_time + low), piece)
            for part in range(call.parts):
                further = part * channels + low
                if call.fused:
                    prefetch(x_t + (ahead * call.x_time + further), piece)
                prefetch(grad_h_t + (ahead * call.grad_h_time + further), piece)
                prefetch(before + (ahead * h_time + further), piece)

            rows = (
                x_t + low,
                gate_t + low,
                complement + low,
                grad_h_t + low,
                grad_state + low,
                grad_x_t + low,
                grad_gate_t + low,
                grad_lower + low,
            )
            # Before the first step of a sequence lies the initial state, in the dtype of states.
            if step == end - begin - 1:
                _back(call, piece, initial + low, cos + low, sin + low, grad_theta + low, rows)
            else:
                _back(call, piece, before + low, cos + low, sin + low, grad_theta + low, rows)
