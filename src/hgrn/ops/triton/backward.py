"""The GPU kernel of the backward scan, in Triton.

It walks from the end of a part to its start with the gradient of the state in registers, and reads
each input once, including the states that the forward scan wrote. Tiles, slots and parts are those
of forward.py.

Gradients of lower bounds and angles are sums over all positions of all rows. Each program sums its
own positions and writes one number a channel; PyTorch adds these up. There are no atomics, so a run
repeats bit by bit.
"""

import triton
import triton.language as tl

from hgrn.ops.triton.helpers import (
    across_slots,
    address,
    as_tile,
    corrected,
    first_row,
    gates,
    join_counting,
    join_real,
    last_of_slot,
    load_tile,
    multiply,
    own_row,
    position,
    rows_below,
    sequence_of,
    shifted,
    sigmoids,
    store_tile,
    turn,
    without_masked,
)


@triton.jit(do_not_specialize=["steps", "rows", "part_steps"])
def scan_backward(
    x,
    x_outer,
    x_inner,
    gate,
    gate_outer,
    gate_inner,
    complement,
    theta,
    mask,
    boundaries,
    initial,
    h,
    dh,
    dh_outer,
    dh_inner,
    entering,
    dx,
    dgate,
    passed,
    decay,
    turns,
    dlower,
    dtheta,
    steps,
    rows,
    part_steps,
    x_time: tl.constexpr,
    gate_time: tl.constexpr,
    dh_time: tl.constexpr,
    inner: tl.constexpr,
    channels: tl.constexpr,
    REVERSE: tl.constexpr,
    COMPLEX: tl.constexpr,
    FUSED: tl.constexpr,
    MASKED: tl.constexpr,
    PACKED: tl.constexpr,
    WRITE: tl.constexpr,
    CARRY: tl.constexpr,
    WIDE: tl.constexpr,
    PTX: tl.constexpr,
    R: tl.constexpr,
    W: tl.constexpr,
    BD: tl.constexpr,
    V: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Writes dx, dgate (WRITE) and the sums for lower bounds and angles, `[S, rows, D]`.

    With `g_t` the gradient of h_t from all that follows, `g_t = dh_t + conj(lambda_{t+1} exp(i
    theta)) g_{t+1}`: a scan of its own, against time. Then

        dx_t = g_t (1 - lambda_t) SiLU'(x_t)
        dlambda_t = g_t . (exp(i theta) h_{t-1} - SiLU(x_t))
        dtheta = sum_t lambda_t g_t . (i exp(i theta) h_{t-1})

    `entering [S, rows, C]` is the gradient of the state behind a part, `passed` that of the state
    before it. CARRY leaves `decay` and `turns`, as the forward scan does.
    """
    # Where this program works: positions low to high of a sequence, in scan order.
    row, column, channel_exists = own_row(channels, BD, V)
    part = tl.program_id(1).to(tl.int64)
    i = row % inner
    outer, begin, length = sequence_of(boundaries, row, inner, steps, PACKED)
    low = tl.minimum(part * part_steps, length)
    high = tl.minimum(low + part_steps, length)
    width: tl.constexpr = channels * 2 if COMPLEX else channels
    earlier: tl.constexpr = 1 if REVERSE else -1  # from a position to the one scanned before it
    at = (part * rows + row) * width + column

    # What is loaded once: the gradient p that passes from tile to tile, the initial state, theta,
    # the complement of the lower bound.
    zeros = tl.zeros([W, BD], WIDE)
    p = zeros + tl.load(entering + at, mask=channel_exists, other=0).to(WIDE)[None, :]
    initial_at = initial + row * width + column
    state = tl.load(initial_at, mask=channel_exists, other=0).to(WIDE)[None, :]
    p_im = p
    if COMPLEX:
        p_im = tl.load(entering + at + channels, mask=channel_exists, other=0)
        p_im = zeros + p_im.to(WIDE)[None, :]
        state_im = tl.load(initial_at + channels, mask=channel_exists, other=0).to(WIDE)[None, :]
        cos, sin, cos_rest, sin_rest = turn(theta, column, channel_exists, WIDE)
    if FUSED:
        complement = tl.load(complement + column, mask=channel_exists, other=0)
        complement = complement.to(WIDE)[None, None, :]
    product = tl.full([BD], 1, WIDE)
    turned = tl.full([], 0, tl.int64)
    sum_lower = zeros
    sum_theta = zeros

    lane = tl.arange(0, R * W) // W
    slot = tl.arange(0, R * W) % W * R
    x_base = x + outer * x_outer + i * x_inner
    gate_base = gate + outer * gate_outer + i * gate_inner
    dh_base = dh + outer * dh_outer + i * dh_inner
    # Equal to `high - 1 - start`, but the compiler does not know. So it recomputes the addresses of
    # stores instead of holding them in registers while loads are in flight.
    now = high - 1
    for start in tl.range(0, high - low, R * W, num_stages=STAGES):
        # Load: which rows of the tile exist, and where they lie. k is each slot's first row, from
        # which the rows go back in time.
        k = high - 1 - start - slot
        t = position(k - lane, begin, length, REVERSE)
        row_exists = rows_below(k - low + 1, lane, R)
        exists = row_exists[:, None] & channel_exists[None, :]
        gate_at = address(gate_base, t, column, gate_time)
        x_at = address(x_base, t, column, x_time)
        place = (outer * steps + t) * inner + i
        dh_at = address(dh_base, t, column, dh_time)
        # The state before each position; the first position of a sequence has the initial state.
        before_at = address(h, place + earlier * inner, column, width)
        has_before = exists & rows_below(k, lane, R)[:, None]
        # The same once more for the stores, from `now`.
        active_row = rows_below(now - slot - low + 1, lane, R)
        stored = active_row[:, None] & channel_exists[None, :]
        is_first = (lane == tl.minimum(now - slot, R).to(tl.int32))[:, None]
        # Active positions exist and are not masked. All others leave the state as it is.
        if MASKED:
            active_row = tl.load(mask + place, mask=row_exists, other=0) != 0
        active = as_tile(active_row[:, None], R, W, BD)
        store_t = position(now - slot - lane, begin, length, REVERSE)
        place = (outer * steps + store_t) * inner + i
        dx_at = address(dx, place, column, width)
        dgate_at = address(dgate, place, column, channels)
        raw_gate = load_tile(gate_at, exists, WIDE, R, W, BD)
        keep, write, on, off = gates(raw_gate, active, complement, FUSED, PTX)
        g = load_tile(dh_at, exists, WIDE, R, W, BD)

        # Scan inside each slot, then across the slots. A gradient passes to a row through the gate
        # of the row before it in the slot; the first row takes what enters the slot as it is. So
        # the gates are shifted by one, and each slot's last gate is applied on the way out.
        if COMPLEX:
            g_im = load_tile(dh_at + channels, exists, WIDE, R, W, BD)
            a = tl.where(active, keep * cos, 1)
            a_im = tl.where(active, keep * -sin, 0)
            b = shifted(a, 1)
            b_im = shifted(a_im, 0)
            count = active.to(WIDE)
            b, b_im, g, g_im, count = tl.associative_scan(
                (b, b_im, g, g_im, count), 0, join_counting
            )
            by = a * b - a_im * b_im
            by_im = a * b_im + a_im * b
            by, by_im = corrected(by, by_im, count, cos_rest, -sin_rest)
            enters, enters_im, p, p_im = across_slots(
                last_of_slot(by, R),
                last_of_slot(by_im, R),
                last_of_slot(a * g - a_im * g_im, R),
                last_of_slot(a * g_im + a_im * g, R),
                p,
                p_im,
                COMPLEX,
                W,
                BD,
            )
            g = g + b * enters[None] - b_im * enters_im[None]
            g_im = g_im + b * enters_im[None] + b_im * enters[None]
        else:
            b, g = tl.associative_scan((shifted(keep, 1), g), 0, join_real)
            by = last_of_slot(keep * b, R)
            leaves = last_of_slot(keep * g, R)
            enters, _, p, _ = across_slots(by, zeros, leaves, zeros, p, zeros, COMPLEX, W, BD)
            g += b * enters[None]
        if CARRY:
            product *= tl.reduce(tl.reduce(keep, 0, multiply), 0, multiply)
            turned += tl.sum(active_row.to(tl.int64), 0)

        # Make the gradients of the tile from g and store them.
        if WRITE:
            before = tl.load(before_at, mask=has_before, other=0).to(WIDE)
            before = as_tile(tl.where(is_first, state, before), R, W, BD)
            if COMPLEX:
                before_im = tl.load(before_at + channels, mask=has_before, other=0).to(WIDE)
                before_im = as_tile(tl.where(is_first, state_im, before_im), R, W, BD)
                re = cos * before - sin * before_im
                before_im = sin * before + cos * before_im
                before = re
                of_theta = keep * (g_im * before - g * before_im)
                sum_theta += tl.sum(tl.where(active, of_theta, 0), 0)
            if FUSED:
                value = load_tile(x_at, exists, WIDE, R, W, BD)
                value = without_masked(value, active, MASKED)
                x_on, x_off = sigmoids(value, PTX)
                unit = value * x_on
                of_gate = g * (before - unit)
                store_tile(dx_at, g * write * (x_on + unit * x_off), stored)
                if COMPLEX:
                    value = load_tile(x_at + channels, exists, WIDE, R, W, BD)
                    value = without_masked(value, active, MASKED)
                    x_on, x_off = sigmoids(value, PTX)
                    unit = value * x_on
                    of_gate += g_im * (before_im - unit)
                    store_tile(dx_at + channels, g_im * write * (x_on + unit * x_off), stored)
                # lambda = 1 - complement * off: its slope is `off` in the bound, and
                # `complement * off * on` in the gate.
                of_gate *= off
                sum_lower += tl.sum(of_gate, 0)
                of_gate = of_gate * (complement * on)
            else:
                store_tile(dx_at, g, stored)
                of_gate = g * before
                if COMPLEX:
                    store_tile(dx_at + channels, g_im, stored)
                    of_gate += g_im * before_im
                of_gate *= keep
                if MASKED:
                    of_gate = tl.where(active, of_gate, 0)
            store_tile(dgate_at, of_gate, stored)
        now -= R * W

    # Store what leaves this part, and the sums over it.
    tl.store(passed + at, first_row(p, W), mask=channel_exists)
    if COMPLEX:
        tl.store(passed + at + channels, first_row(p_im, W), mask=channel_exists)
    sums_at = (part * rows + row) * channels + column
    if CARRY:
        tl.store(decay + sums_at, product, mask=channel_exists)
        if COMPLEX:
            tl.store(turns + part * rows + row, turned)
    if WRITE:
        if FUSED:
            tl.store(dlower + sums_at, tl.sum(sum_lower, 0), mask=channel_exists)
        if COMPLEX:
            tl.store(dtheta + sums_at, tl.sum(sum_theta, 0), mask=channel_exists)
