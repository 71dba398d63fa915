"""The GPU kernels of the scans, in Triton: tiles of time by channels that walk along a sequence with the state in registers.

A program owns one row (a sequence and an inner index), one block of channels and one stretch of time, and reads each input once:
while a tile is combined by an associative scan, loads of further tiles and of other programs are in flight. Where rows and channels
are too few to fill the chip, time is split: a first pass of the same kernel leaves only what each stretch does to a state that
enters it, `chain` follows the stretches, and a second pass writes.

A complex state is turned back by the angle that has passed since the tile began, so that inside a tile one real gate scans both
parts; `cos` and `sin` are tables of n theta for n = 0 ... BT, rounded from float64. Masked positions do not turn: n counts the
others. Letters as in `cpu_scan`: room 1 - gamma, drop sigmoid(-f), write 1 - lambda, g the gradient of h_t, p what of it passes on.
"""

import triton
import triton.language as tl


@triton.jit
def _real(a, x, b, y):
    return a * b, x * b + y


@triton.jit
def _complex(a, re, im, b, re2, im2):
    return a * b, re * b + re2, im * b + im2


@triton.jit
def _sigmoids(x):
    """`sigmoid(x)` and `sigmoid(-x)`, the smaller one never a difference."""
    e = tl.exp(-tl.abs(x))
    small = e / (1 + e)
    large = 1 - small
    positive = x >= 0
    return tl.where(positive, large, small), tl.where(positive, small, large)


@triton.jit
def _range(bounds, row, inner, steps, PACKED: tl.constexpr):
    """Outer index, first position and number of positions of a row's sequence; boundaries are clamped into the tensor."""
    sequence = row // inner
    if PACKED:
        begin = tl.minimum(tl.maximum(tl.load(bounds + sequence).to(tl.int64), 0), steps)
        end = tl.minimum(tl.maximum(tl.load(bounds + sequence + 1).to(tl.int64), begin), steps)
        return sequence * 0, begin, end - begin
    return sequence, sequence * 0, sequence * 0 + steps


@triton.jit
def _gate(f, room, FUSED: tl.constexpr):
    """lambda, 1 - lambda, and both sigmoids; from log gates the first alone means something."""
    if FUSED:
        keep, drop = _sigmoids(f)
        write = room * drop
        gate = tl.where(keep < drop, (1 - room) + room * keep, 1 - write)
        return gate, write, keep, drop
    gate = tl.exp(f)
    return gate, gate, gate, gate


@triton.jit
def _position(k, begin, length, REVERSE: tl.constexpr):
    """Where the k-th position of a scan lies in the tensor."""
    return begin + length - 1 - k if REVERSE else begin + k


@triton.jit
def scan(
    x, x_outer, x_time, x_inner, f, f_outer, f_time, f_inner, room, cos, sin, mask, bounds, initial, h, final, decay, turns,
    steps, inner, channels, rows, stretch,
    REVERSE: tl.constexpr, COMPLEX: tl.constexpr, FUSED: tl.constexpr, MASKED: tl.constexpr, PACKED: tl.constexpr,
    WRITE: tl.constexpr, CARRY: tl.constexpr, WIDE: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """States `h` (WRITE) and the state behind each stretch, `final [S, R, C]`, from `initial [S, R, C]`.

    CARRY leaves `decay [S, R, D]`, the product of the gates, and `turns [S, R]`, how many positions turned the state.
    """
    row, part = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    lanes, column = tl.arange(0, BT), tl.program_id(0) * BD + tl.arange(0, BD)
    there = column < channels
    i = row % inner
    outer, begin, length = _range(bounds, row, inner, steps, PACKED)
    low = tl.minimum(part * stretch, length)
    high = tl.minimum(low + stretch, length)
    width = channels * 2 if COMPLEX else channels
    at = (part * rows + row) * width + column
    re = tl.load(initial + at, mask=there, other=0).to(WIDE)
    im = re
    if COMPLEX:
        im = tl.load(initial + at + channels, mask=there, other=0).to(WIDE)
    space = tl.load(room + column, mask=there, other=0).to(WIDE) if FUSED else re
    product = tl.full([BD], 1, WIDE)
    turned = tl.full([], 0, tl.int64)
    x_base, f_base = x + outer * x_outer + i * x_inner, f + outer * f_outer + i * f_inner
    for start in range(low, high, BT):
        k = start + lanes
        t = _position(k, begin, length, REVERSE)
        real_row = k < high
        live = real_row
        if MASKED:
            live = live & (tl.load(mask + (outer * steps + t) * inner + i, mask=real_row, other=0) != 0)
        full = real_row[:, None] & there[None, :]
        counted = live[:, None] & there[None, :]
        f_at = f_base + t[:, None] * f_time + column[None, :]
        gate, write, _, _ = _gate(tl.load(f_at, mask=full, other=0).to(WIDE), space[None, :], FUSED)
        gate = tl.where(counted, gate, 1)
        x_at = x_base + t[:, None] * x_time + column[None, :]
        new = tl.load(x_at, mask=full, other=0).to(WIDE)
        if FUSED:
            on, _ = _sigmoids(new)
            new = tl.where(counted, write * new * on, 0)
        h_at = h + ((outer * steps + t) * inner + i)[:, None] * width + column[None, :]
        last = (lanes == BT - 1)[:, None]
        if COMPLEX:
            new_im = tl.load(x_at + channels, mask=full, other=0).to(WIDE)
            if FUSED:
                on, _ = _sigmoids(new_im)
                new_im = tl.where(counted, write * new_im * on, 0)
            n = tl.cumsum(live.to(tl.int32), 0)
            c = tl.load(cos + n[:, None] * channels + column[None, :], mask=there[None, :], other=1)
            s = tl.load(sin + n[:, None] * channels + column[None, :], mask=there[None, :], other=0)
            a, b, b_im = tl.associative_scan((gate, c * new + s * new_im, c * new_im - s * new), 0, _complex)
            b, b_im = b + a * re[None, :], b_im + a * im[None, :]
            out, out_im = c * b - s * b_im, s * b + c * b_im
            re = tl.sum(tl.where(last, out, 0), 0)
            im = tl.sum(tl.where(last, out_im, 0), 0)
            if WRITE:
                tl.store(h_at, out.to(h.dtype.element_ty), mask=full)
                tl.store(h_at + channels, out_im.to(h.dtype.element_ty), mask=full)
            turned += tl.sum(live.to(tl.int64), 0)
        else:
            a, b = tl.associative_scan((gate, new), 0, _real)
            out = b + a * re[None, :]
            re = tl.sum(tl.where(last, out, 0), 0)
            if WRITE:
                tl.store(h_at, out.to(h.dtype.element_ty), mask=full)
        if CARRY:
            product *= tl.sum(tl.where(last, a, 0), 0)
    tl.store(final + at, re, mask=there)
    if COMPLEX:
        tl.store(final + at + channels, im, mask=there)
    if CARRY:
        tl.store(decay + (part * rows + row) * channels + column, product, mask=there)
        if COMPLEX:
            tl.store(turns + part * rows + row, turned)


@triton.jit
def scan_backward(
    x, x_outer, x_time, x_inner, f, f_outer, f_time, f_inner, room, cos, sin, mask, bounds, initial, h,
    dh, dh_outer, dh_time, dh_inner, entering, dx, df, passed, decay, turns, dlower, dtheta,
    steps, inner, channels, rows, stretch,
    REVERSE: tl.constexpr, COMPLEX: tl.constexpr, FUSED: tl.constexpr, MASKED: tl.constexpr, PACKED: tl.constexpr,
    WRITE: tl.constexpr, CARRY: tl.constexpr, WIDE: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Gradients `dx`, `df` (WRITE) and the sums for lower bounds and angles `[S, R, D]`, walking from a stretch's end to its start.

    `entering [S, R, C]` is the gradient of the state behind a stretch, `passed` that of the state before it.
    """
    row, part = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    lanes, column = tl.arange(0, BT), tl.program_id(0) * BD + tl.arange(0, BD)
    there = column < channels
    i = row % inner
    outer, begin, length = _range(bounds, row, inner, steps, PACKED)
    low = tl.minimum(part * stretch, length)
    high = tl.minimum(low + stretch, length)
    width = channels * 2 if COMPLEX else channels
    at = (part * rows + row) * width + column
    p = tl.load(entering + at, mask=there, other=0).to(WIDE)
    p_im = p
    c1 = p
    s1 = p
    if COMPLEX:
        p_im = tl.load(entering + at + channels, mask=there, other=0).to(WIDE)
        c1 = tl.load(cos + channels + column, mask=there, other=1)
        s1 = tl.load(sin + channels + column, mask=there, other=0)
    space = tl.load(room + column, mask=there, other=0).to(WIDE) if FUSED else p
    product = tl.full([BD], 1, WIDE)
    turned = tl.full([], 0, tl.int64)
    sum_lower = tl.zeros([BD], WIDE)
    sum_theta = tl.zeros([BD], WIDE)
    x_base, f_base = x + outer * x_outer + i * x_inner, f + outer * f_outer + i * f_inner
    dh_base, first = dh + outer * dh_outer + i * dh_inner, initial + row * width + column[None, :]
    for start in range(0, high - low, BT):
        k = high - 1 - start - lanes
        t = _position(k, begin, length, REVERSE)
        later = _position(k + 1, begin, length, REVERSE)
        real_row, has_later = k >= low, (k >= low) & (lanes > 0)
        live, live_later = real_row, has_later
        if MASKED:
            live = live & (tl.load(mask + (outer * steps + t) * inner + i, mask=real_row, other=0) != 0)
            live_later = live_later & (tl.load(mask + (outer * steps + later) * inner + i, mask=has_later, other=0) != 0)
        full, counted = real_row[:, None] & there[None, :], live[:, None] & there[None, :]
        before_here = live_later[:, None] & there[None, :]
        f_at = f_base + t[:, None] * f_time + column[None, :]
        gate, write, keep, drop = _gate(tl.load(f_at, mask=full, other=0).to(WIDE), space[None, :], FUSED)
        gate = tl.where(counted, gate, 1)
        f_at = f_base + later[:, None] * f_time + column[None, :]
        gate_later, _, _, _ = _gate(tl.load(f_at, mask=before_here, other=0).to(WIDE), space[None, :], FUSED)
        gate_later = tl.where(before_here, gate_later, 1)
        dh_at = dh_base + t[:, None] * dh_time + column[None, :]
        g = tl.load(dh_at, mask=full, other=0).to(WIDE)
        last = ((k == low) | ((lanes == BT - 1) & (k >= low)))[:, None]
        out_at = ((outer * steps + t) * inner + i)[:, None]
        h_at = h + ((outer * steps + _position(k - 1, begin, length, REVERSE)) * inner + i)[:, None] * width + column[None, :]
        inside = (k > 0)[:, None] & full
        at_first = (k == 0)[:, None] & full
        if COMPLEX:
            g_im = tl.load(dh_at + channels, mask=full, other=0).to(WIDE)
            n = tl.cumsum(live_later.to(tl.int32), 0)
            c = tl.load(cos + n[:, None] * channels + column[None, :], mask=there[None, :], other=1)
            s = tl.load(sin + n[:, None] * channels + column[None, :], mask=there[None, :], other=0)
            a, b, b_im = tl.associative_scan((gate_later, c * g - s * g_im, s * g + c * g_im), 0, _complex)
            b, b_im = b + a * p[None, :], b_im + a * p_im[None, :]
            g, g_im = c * b + s * b_im, c * b_im - s * b
            back = tl.where(counted, gate * (c1[None, :] * g + s1[None, :] * g_im), g)
            back_im = tl.where(counted, gate * (c1[None, :] * g_im - s1[None, :] * g), g_im)
            p = tl.sum(tl.where(last, back, 0), 0)
            p_im = tl.sum(tl.where(last, back_im, 0), 0)
            turned += tl.sum(live.to(tl.int64), 0)
        else:
            a, b = tl.associative_scan((gate_later, g), 0, _real)
            g = b + a * p[None, :]
            g_im = g
            p = tl.sum(tl.where(last, gate * g, 0), 0)
        if CARRY:
            product *= tl.sum(tl.where(last, a * gate, 0), 0)
        if WRITE:
            prev = tl.load(h_at, mask=inside, other=0).to(WIDE)
            prev += tl.load(tl.broadcast_to(first, [BT, BD]), mask=at_first, other=0).to(WIDE)
            dx_at = dx + out_at * width + column[None, :]
            if COMPLEX:
                prev_im = tl.load(h_at + channels, mask=inside, other=0).to(WIDE)
                prev_im += tl.load(tl.broadcast_to(first + channels, [BT, BD]), mask=at_first, other=0).to(WIDE)
                turned_re = c1[None, :] * prev - s1[None, :] * prev_im
                turned_im = s1[None, :] * prev + c1[None, :] * prev_im
                sum_theta += tl.sum(tl.where(counted, gate * (g_im * turned_re - g * turned_im), 0), 0)
            else:
                turned_re, turned_im = prev, prev
            if FUSED:
                x_at = x_base + t[:, None] * x_time + column[None, :]
                value = tl.load(x_at, mask=full, other=0).to(WIDE)
                on, off = _sigmoids(value)
                to_gate = g * (turned_re - value * on)
                tl.store(dx_at, tl.where(counted, g * write * (on + value * on * off), 0).to(dx.dtype.element_ty), mask=full)
                if COMPLEX:
                    value = tl.load(x_at + channels, mask=full, other=0).to(WIDE)
                    on, off = _sigmoids(value)
                    to_gate += g_im * (turned_im - value * on)
                    slope = tl.where(counted, g_im * write * (on + value * on * off), 0)
                    tl.store(dx_at + channels, slope.to(dx.dtype.element_ty), mask=full)
                to_gate = tl.where(counted, to_gate, 0)
                sum_lower += tl.sum(to_gate * drop, 0)
                found = to_gate * (write * keep)
            else:
                tl.store(dx_at, g.to(dx.dtype.element_ty), mask=full)
                found = g * turned_re
                if COMPLEX:
                    tl.store(dx_at + channels, g_im.to(dx.dtype.element_ty), mask=full)
                    found += g_im * turned_im
                found = tl.where(counted, gate * found, 0)
            tl.store(df + out_at * channels + column[None, :], found.to(df.dtype.element_ty), mask=full)
    tl.store(passed + at, p, mask=there)
    if COMPLEX:
        tl.store(passed + at + channels, p_im, mask=there)
    sums_at = (part * rows + row) * channels + column
    if CARRY:
        tl.store(decay + sums_at, product, mask=there)
        if COMPLEX:
            tl.store(turns + part * rows + row, turned)
    if WRITE:
        if FUSED:
            tl.store(dlower + sums_at, sum_lower, mask=there)
        if COMPLEX:
            tl.store(dtheta + sums_at, sum_theta, mask=there)


@triton.jit
def chain(
    entering, decay, turns, end, theta, states, channels, rows, parts,
    COMPLEX: tl.constexpr, BACKWARD: tl.constexpr, WIDE: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Follows the stretches of each row: `states [S, R, C]` is what enters each, the first of them `entering [R, C]`.

    BACKWARD goes from the last stretch to the first, and turns by the negative angle.
    """
    row, column = tl.program_id(1).to(tl.int64), tl.program_id(0) * BD + tl.arange(0, BD)
    there = column < channels
    width = channels * 2 if COMPLEX else channels
    re = tl.load(entering + row * width + column, mask=there, other=0)
    im = re
    if COMPLEX:
        im = tl.load(entering + row * width + channels + column, mask=there, other=0)
        angle = tl.load(theta + column, mask=there, other=0).to(tl.float64)
    for step in range(parts):
        part = parts - 1 - step if BACKWARD else step
        place = part * rows + row
        at = place * width + column
        tl.store(states + at, re, mask=there)
        kept = tl.load(decay + place * channels + column, mask=there, other=0)
        if COMPLEX:
            tl.store(states + at + channels, im, mask=there)
            phase = angle * tl.load(turns + place).to(tl.float64)
            phase -= tl.floor(phase / 6.283185307179586) * 6.283185307179586
            c, s = tl.cos(phase.to(WIDE)), tl.sin(phase.to(WIDE))
            if BACKWARD:
                s = -s
            new = kept * (c * re - s * im) + tl.load(end + at, mask=there, other=0)
            im = kept * (s * re + c * im) + tl.load(end + at + channels, mask=there, other=0)
            re = new
        else:
            re = kept * re + tl.load(end + at, mask=there, other=0)
