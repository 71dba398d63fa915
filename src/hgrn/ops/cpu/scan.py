"""The CPU kernels of `hgru_scan` with `hgru_carry`, and of its backward; and how any scan is cut into tasks.

A task is one sequence, one inner index and one block of channels with all of its time steps. Running states live in their output
tensors (the final state in the forward, the gradient of the initial state in the backward), where they stay in the first-level
cache. A row of channels at one step is worked on in pieces: while a piece is computed, the same piece of the next step is asked
for, because rows that lie far apart, or are visited backwards, are more than the processor's own prefetcher finds out.

Letters in the formulas: f forget and a (a + i b) candidate before their activations, s (re + i im) the state, g the gradient that
arrives at h_t from everything after it, `room` 1 - gamma, `write` 1 - lambda_t, `keep` lambda_t.
"""

from hgrn.ops.cpu.language import (
    Kernel,
    helper,
    itemsize,
    load,
    load_flag,
    load_index,
    next_task,
    prefetch,
    select,
    sigmoid,
    sigmoid_pair,
    silu,
    silu_pair,
    store,
)

PIECE = 128  # channels
AHEAD = 1024  # channels whose computation takes about as long as memory takes to answer
LAYOUT = "steps inner channels blocks block bounds reverse mask"  # strides are in bytes
_CANDIDATE = " candidate candidate_outer candidate_time candidate_inner forget forget_outer forget_time forget_inner room cos sin"


@helper
def scan_task(call, task):
    """Which sequence, outer and inner index, first channel, number of channels and range of time a task covers."""
    sequence = task // (call.inner * call.blocks)
    rest = task % (call.inner * call.blocks)
    i = rest // call.blocks
    start = (rest % call.blocks) * call.block
    outer = sequence
    begin = 0
    end = call.steps
    if call.bounds != 0:
        outer = 0
        begin = load_index(call.bounds, sequence)
        end = load_index(call.bounds, sequence + 1)
    return sequence, outer, i, start, min(call.block, call.channels - start), begin, end


@helper
def lookahead(width):
    """How many steps ahead to ask for memory: one of a wide row, more of narrow ones, which are soon done with."""
    return max(1, AHEAD // max(width, 1))


# ---------------------------------------------------------------------------------------------------------------------
# hgru_scan and hgru_carry, forward


@helper
def _scan_real(token, one, width, candidate, forget, room, state, h):
    for j in range(width):
        write = load(one, room, j, 2) * sigmoid(one, -load(token, forget, j, 1))
        s = (one - write) * load(one, state, j, 3) + write * silu(one, load(token, candidate, j, 0))
        store(one, state, j, s, 3)
        store(token, h, j, s, 4)


@helper
def _scan_complex(token, one, width, size, wide, candidate, forget, room, cos, sin, state, h):
    """`size` and `wide` are the distances from real to imaginary parts, in bytes, of tensors and of states."""
    for j in range(width):
        write = load(one, room, j, 2) * sigmoid(one, -load(token, forget, j, 1))
        keep = one - write
        c = load(one, cos, j, 2)
        s = load(one, sin, j, 2)
        re = load(one, state, j, 3)
        im = load(one, state + wide, j, 5)
        new_re = keep * (c * re - s * im) + write * silu(one, load(token, candidate, j, 0))
        new_im = keep * (s * re + c * im) + write * silu(one, load(token, candidate + size, j, 0))
        store(one, state, j, new_re, 3)
        store(one, state + wide, j, new_im, 5)
        store(token, h, j, new_re, 4)
        store(token, h + size, j, new_im, 6)


@helper
def _carry(token, one, width, forget, room, decay):
    """The product of the gates; the gate itself is exact where it is close to 0, since it is all that counts here."""
    for j in range(width):
        keep, drop = sigmoid_pair(one, load(token, forget, j, 1))
        room_j = load(one, room, j, 2)
        gate = select(keep < drop, (one - room_j) + room_j * keep, one - room_j * drop)
        store(one, decay, j, gate * load(one, decay, j, 4), 4)


@helper
def _copy(token, one, width, state, h):
    for j in range(width):
        store(token, h, j, load(one, state, j, 3), 4)


@Kernel(LAYOUT + _CANDIDATE + " state h decay")
def hgru_scan(call):
    """`state` holds the initial states and is left with the final ones.

    With `decay` (ones, left with the products of the gates), `h` is not the states but one row to be written over.
    """
    token = call.token
    one = call.one
    parts = call.variant
    size = itemsize(token)
    wide = itemsize(one)
    inner = call.inner
    reverse = call.reverse != 0
    part = size * call.channels
    wide_part = wide * call.channels
    forward = call.decay == 0
    task = next_task(call)
    while task < call.tasks:
        sequence, outer, i, start, width, begin, end = scan_task(call, task)
        row = (sequence * inner + i) * call.channels
        s = call.state + wide * (row * parts + start)
        decay = call.decay + wide * (row + start)
        room = call.room + wide * start
        cos = call.cos + wide * start
        sin = call.sin + wide * start
        candidate = (
            call.candidate + outer * call.candidate_outer + i * call.candidate_inner + size * start
        )
        forget = call.forget + outer * call.forget_outer + i * call.forget_inner + size * start
        h = (
            call.h
            + size * start
            + part * parts * ((outer * call.steps * inner + i) if forward else row // call.channels)
        )
        h_time = part * parts * inner if forward else 0
        ahead = lookahead(width)
        ahead = -ahead if reverse else ahead
        for step in range(end - begin):
            t = end - 1 - step if reverse else begin + step
            h_row = h + t * h_time
            if call.mask != 0 and not load_flag(call.mask, (outer * call.steps + t) * inner + i):
                for k in range(parts):
                    _copy(token, one, width, s + k * wide_part, h_row + k * part)
                continue
            c_row = candidate + t * call.candidate_time
            f_row = forget + t * call.forget_time
            c_next = c_row + ahead * call.candidate_time
            f_next = f_row + ahead * call.forget_time
            for j in range(0, width, PIECE):
                n = min(PIECE, width - j)
                x = j * size
                y = j * wide
                prefetch(f_next + x, n * size)
                for k in range(parts):
                    prefetch(c_next + k * part + x, n * size)
                if parts == 1:
                    _scan_real(token, one, n, c_row + x, f_row + x, room + y, s + y, h_row + x)
                else:
                    _scan_complex(
                        token,
                        one,
                        n,
                        part,
                        wide_part,
                        c_row + x,
                        f_row + x,
                        room + y,
                        cos + y,
                        sin + y,
                        s + y,
                        h_row + x,
                    )
                if not forward:
                    _carry(token, one, n, f_row + x, room + y, decay + y)
        task = next_task(call)


# ---------------------------------------------------------------------------------------------------------------------
# hgru_scan, backward


@helper
def _back_real(
    token,
    past,
    one,
    width,
    candidate,
    forget,
    room,
    before,
    grad_h,
    g_row,
    grad_c,
    grad_f,
    grad_lower,
):
    """`past` is the dtype of the row `before` that holds h_{t-1}: the initial state's is the state dtype."""
    for j in range(width):
        room_j = load(one, room, j, 2)
        keep, drop = sigmoid_pair(one, load(token, forget, j, 1))
        x, slope = silu_pair(one, load(token, candidate, j, 0))
        write = room_j * drop
        g = load(one, g_row, j, 5) + load(token, grad_h, j, 4)
        to_gate = g * (load(past, before, j, 3) - x)
        store(one, g_row, j, (one - write) * g, 5)
        store(token, grad_c, j, g * write * slope, 6)
        store(token, grad_f, j, to_gate * (write * keep), 7)
        store(one, grad_lower, j, load(one, grad_lower, j, 8) + to_gate * drop, 8)


@helper
def _back_complex(
    token,
    past,
    one,
    width,
    size,
    past_size,
    wide,
    candidate,
    forget,
    room,
    cos,
    sin,
    before,
    grad_h,
    g_row,
    grad_c,
    grad_f,
    grad_lower,
    grad_theta,
):
    for j in range(width):
        room_j = load(one, room, j, 2)
        c = load(one, cos, j, 2)
        s = load(one, sin, j, 2)
        keep, drop = sigmoid_pair(one, load(token, forget, j, 1))
        x_re, slope_re = silu_pair(one, load(token, candidate, j, 0))
        x_im, slope_im = silu_pair(one, load(token, candidate + size, j, 0))
        write = room_j * drop
        g_re = load(one, g_row, j, 5) + load(token, grad_h, j, 4)
        g_im = load(one, g_row + wide, j, 9) + load(token, grad_h + size, j, 4)
        re = load(past, before, j, 3)
        im = load(past, before + past_size, j, 3)
        turned_re = c * re - s * im
        turned_im = s * re + c * im
        to_gate = g_re * (turned_re - x_re) + g_im * (turned_im - x_im)
        gate = one - write
        store(one, g_row, j, gate * (c * g_re + s * g_im), 5)
        store(one, g_row + wide, j, gate * (c * g_im - s * g_re), 9)
        store(token, grad_c, j, g_re * write * slope_re, 6)
        store(token, grad_c + size, j, g_im * write * slope_im, 10)
        store(token, grad_f, j, to_gate * (write * keep), 7)
        store(one, grad_lower, j, load(one, grad_lower, j, 8) + to_gate * drop, 8)
        to_angle = gate * (g_im * turned_re - g_re * turned_im)
        store(one, grad_theta, j, load(one, grad_theta, j, 11) + to_angle, 11)


@helper
def _hold(token, one, width, grad_h, g_row):
    """A masked position: the gradient passes to the position before as it is."""
    for j in range(width):
        store(one, g_row, j, load(one, g_row, j, 5) + load(token, grad_h, j, 4), 5)


@helper
def clear(token, one, width, row):
    for j in range(width):
        store(token, row, j, one - one, 6)


@Kernel(
    LAYOUT
    + _CANDIDATE
    + " initial h grad_h grad_h_outer grad_h_time grad_h_inner g grad_candidate grad_forget"
    " grad_lower grad_theta"
)
def hgru_scan_backward(call):
    """`g` holds the final states' gradients and is left with the initial states'.

    grad_lower and grad_theta are sums over time for each sequence and inner index, `[N, I, D]`, and start at 0.
    """
    token = call.token
    one = call.one
    parts = call.variant
    size = itemsize(token)
    wide = itemsize(one)
    inner = call.inner
    reverse = call.reverse != 0
    part = size * call.channels
    wide_part = wide * call.channels
    task = next_task(call)
    while task < call.tasks:
        sequence, outer, i, start, width, begin, end = scan_task(call, task)
        row = (sequence * inner + i) * call.channels
        s0 = call.initial + wide * (row * parts + start)
        g_row = call.g + wide * (row * parts + start)
        gl = call.grad_lower + wide * (row + start)
        gt = call.grad_theta + wide * (row + start)
        room = call.room + wide * start
        cos = call.cos + wide * start
        sin = call.sin + wide * start
        candidate = (
            call.candidate + outer * call.candidate_outer + i * call.candidate_inner + size * start
        )
        forget = call.forget + outer * call.forget_outer + i * call.forget_inner + size * start
        grad_h = call.grad_h + outer * call.grad_h_outer + i * call.grad_h_inner + size * start
        first = outer * call.steps * inner + i
        h = call.h + part * parts * first + size * start
        grad_c = call.grad_candidate + part * parts * first + size * start
        grad_f = call.grad_forget + part * first + size * start
        back = 1 if reverse else -1
        ahead = back * lookahead(width)
        for step in range(end - begin):
            t = begin + step if reverse else end - 1 - step
            dh = grad_h + t * call.grad_h_time
            dc = grad_c + t * inner * part * parts
            df = grad_f + t * inner * part
            if call.mask != 0 and not load_flag(call.mask, first + t * inner):
                for k in range(parts):
                    _hold(token, one, width, dh + k * part, g_row + k * wide_part)
                    clear(token, one, width, dc + k * part)
                clear(token, one, width, df)
                continue
            c_row = candidate + t * call.candidate_time
            f_row = forget + t * call.forget_time
            c_next = c_row + ahead * call.candidate_time
            f_next = f_row + ahead * call.forget_time
            dh_next = dh + ahead * call.grad_h_time
            before = h + (t + back) * inner * part * parts
            before_next = before + ahead * inner * part * parts
            entering = step == end - begin - 1
            for j in range(0, width, PIECE):
                n = min(PIECE, width - j)
                x = j * size
                y = j * wide
                prefetch(f_next + x, n * size)
                for k in range(parts):
                    prefetch(c_next + k * part + x, n * size)
                    prefetch(dh_next + k * part + x, n * size)
                    prefetch(before_next + k * part + x, n * size)
                if parts == 2 and entering:
                    _back_complex(
                        token,
                        one,
                        one,
                        n,
                        part,
                        wide_part,
                        wide_part,
                        c_row + x,
                        f_row + x,
                        room + y,
                        cos + y,
                        sin + y,
                        s0 + y,
                        dh + x,
                        g_row + y,
                        dc + x,
                        df + x,
                        gl + y,
                        gt + y,
                    )
                elif parts == 2:
                    _back_complex(
                        token,
                        token,
                        one,
                        n,
                        part,
                        part,
                        wide_part,
                        c_row + x,
                        f_row + x,
                        room + y,
                        cos + y,
                        sin + y,
                        before + x,
                        dh + x,
                        g_row + y,
                        dc + x,
                        df + x,
                        gl + y,
                        gt + y,
                    )
                elif entering:
                    _back_real(
                        token,
                        one,
                        one,
                        n,
                        c_row + x,
                        f_row + x,
                        room + y,
                        s0 + y,
                        dh + x,
                        g_row + y,
                        dc + x,
                        df + x,
                        gl + y,
                    )
                else:
                    _back_real(
                        token,
                        token,
                        one,
                        n,
                        c_row + x,
                        f_row + x,
                        room + y,
                        before + x,
                        dh + x,
                        g_row + y,
                        dc + x,
                        df + x,
                        gl + y,
                    )
        task = next_task(call)
