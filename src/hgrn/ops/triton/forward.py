"""The GPU kernels of the forward scan, and of the chain of its parts, in Triton.

A program owns one row (a sequence and an inner index), one block of channels and one part of time.
It walks along time in tiles with the state in registers, and reads each input once. Positions of a
slot lie in one thread's registers, so the scan inside a slot is serial and moves nothing; only what
each slot does to a state crosses threads. Loads of further tiles are in flight meanwhile, by way of
shared memory.

Where rows and channels are too few to fill the GPU, time is split into S parts. A first pass of
the same kernel leaves only what each part does to a state that enters it, `chain` follows the
parts, and a second pass writes. docs/gpu.md counts bytes and instructions.

Strides of time and the number of channels are compiled in, so that the rows of a slot are constant
offsets; lengths are not, so that a new length needs no new kernel.
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
    silu,
    store_tile,
    turn,
    without_masked,
)


@triton.jit(do_not_specialize=["steps", "rows", "part_steps"])
def scan(
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
    final,
    decay,
    turns,
    steps,
    rows,
    part_steps,
    x_time: tl.constexpr,
    gate_time: tl.constexpr,
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
    """Writes h (WRITE), and the state behind each part, `final [S, rows, C]`.

    Every position does `state -> keep * exp(i theta) * state + new`, with keep = lambda. FUSED
    makes keep and new of pre-activations and `complement` (1 - lower bound); otherwise `gate` is
    the logarithm of keep, and `x` is new.

    `initial [S, rows, C]` enters each part. CARRY leaves `decay [S, rows, D]`, the product of the
    gates, and `turns [S, rows]`, how many positions turned the state.
    """
    # Where this program works: positions low to high of a sequence, in scan order.
    row, column, channel_exists = own_row(channels, BD, V)
    part = tl.program_id(1).to(tl.int64)
    i = row % inner
    outer, begin, length = sequence_of(boundaries, row, inner, steps, PACKED)
    low = tl.minimum(part * part_steps, length)
    high = tl.minimum(low + part_steps, length)
    width: tl.constexpr = channels * 2 if COMPLEX else channels
    at = (part * rows + row) * width + column

    # What is loaded once: the state, theta, the complement of the lower bound.
    zeros = tl.zeros([W, BD], WIDE)
    state = zeros + tl.load(initial + at, mask=channel_exists, other=0).to(WIDE)[None, :]
    state_im = state
    if COMPLEX:
        state_im = tl.load(initial + at + channels, mask=channel_exists, other=0)
        state_im = zeros + state_im.to(WIDE)[None, :]
        cos, sin, cos_rest, sin_rest = turn(theta, column, channel_exists, WIDE)
    if FUSED:
        complement = tl.load(complement + column, mask=channel_exists, other=0)
        complement = complement.to(WIDE)[None, None, :]
    product = tl.full([BD], 1, WIDE)
    turned = tl.full([], 0, tl.int64)

    lane = tl.arange(0, R * W) // W
    slot = tl.arange(0, R * W) % W * R
    x_base = x + outer * x_outer + i * x_inner
    gate_base = gate + outer * gate_outer + i * gate_inner
    # Equal to `start`, but the compiler does not know. So it recomputes the addresses of stores
    # instead of holding them in registers while loads are in flight.
    now = low
    for start in tl.range(low, high, R * W, num_stages=STAGES):
        # Load: which rows of the tile exist, and where they lie.
        t = position(start + slot + lane, begin, length, REVERSE)
        row_exists = rows_below(high - start - slot, lane, R)
        exists = row_exists[:, None] & channel_exists[None, :]
        gate_at = address(gate_base, t, column, gate_time)
        x_at = address(x_base, t, column, x_time)
        # The same once more for the stores, from `now`.
        active_row = rows_below(high - now - slot, lane, R)
        stored = active_row[:, None] & channel_exists[None, :]
        store_t = position(now + slot + lane, begin, length, REVERSE)
        h_at = address(h, (outer * steps + store_t) * inner + i, column, width)
        # Active positions exist and are not masked. All others leave the state as it is.
        if MASKED:
            mask_at = mask + (outer * steps + t) * inner + i
            active_row = tl.load(mask_at, mask=row_exists, other=0) != 0
        active = as_tile(active_row[:, None], R, W, BD)
        raw_gate = load_tile(gate_at, exists, WIDE, R, W, BD)
        keep, write, _, _ = gates(raw_gate, active, complement, FUSED, PTX)
        new = load_tile(x_at, exists, WIDE, R, W, BD)
        if FUSED:
            new = write * silu(without_masked(new, active, MASKED), PTX)

        # Scan inside each slot, across the slots, and store.
        if COMPLEX:
            new_im = load_tile(x_at + channels, exists, WIDE, R, W, BD)
            if FUSED:
                new_im = write * silu(without_masked(new_im, active, MASKED), PTX)
            a = tl.where(active, keep * cos, 1)
            a_im = tl.where(active, keep * sin, 0)
            a, a_im, b, b_im, count = tl.associative_scan(
                (a, a_im, new, new_im, active.to(WIDE)), 0, join_counting
            )
            by, by_im = corrected(a, a_im, count, cos_rest, sin_rest)
            enters, enters_im, state, state_im = across_slots(
                last_of_slot(by, R),
                last_of_slot(by_im, R),
                last_of_slot(b, R),
                last_of_slot(b_im, R),
                state,
                state_im,
                COMPLEX,
                W,
                BD,
            )
            if WRITE:
                out = b + a * enters[None] - a_im * enters_im[None]
                out_im = b_im + a * enters_im[None] + a_im * enters[None]
                store_tile(h_at, out, stored)
                store_tile(h_at + channels, out_im, stored)
        else:
            a, b = tl.associative_scan((keep, new), 0, join_real)
            enters, _, state, _ = across_slots(
                last_of_slot(a, R), zeros, last_of_slot(b, R), zeros, state, zeros, COMPLEX, W, BD
            )
            if WRITE:
                store_tile(h_at, b + a * enters[None], stored)
        now += R * W
        if CARRY:
            product *= tl.reduce(tl.reduce(keep, 0, multiply), 0, multiply)
            turned += tl.sum(active_row.to(tl.int64), 0)

    # Store what leaves this part.
    tl.store(final + at, first_row(state, W), mask=channel_exists)
    if COMPLEX:
        tl.store(final + at + channels, first_row(state_im, W), mask=channel_exists)
    if CARRY:
        tl.store(decay + (part * rows + row) * channels + column, product, mask=channel_exists)
        if COMPLEX:
            tl.store(turns + part * rows + row, turned)


@triton.jit(do_not_specialize=["rows", "parts"])
def chain(
    entering,
    decay,
    turns,
    end,
    theta,
    states,
    rows,
    parts,
    channels: tl.constexpr,
    COMPLEX: tl.constexpr,
    BACKWARD: tl.constexpr,
    WIDE: tl.constexpr,
    BD: tl.constexpr,
):
    """Follows a state through the parts of each row.

    Each part does `state -> decay * exp(i turns theta) * state + end`. Writes what enters each
    part, `states [S, rows, C]`; the first of them is `entering [rows, C]`. BACKWARD goes from the
    last part to the first, and turns by the negative angle.
    """
    row, column, channel_exists = own_row(channels, BD, 1)
    width: tl.constexpr = channels * 2 if COMPLEX else channels
    re = tl.load(entering + row * width + column, mask=channel_exists, other=0)
    im = re
    if COMPLEX:
        im = tl.load(entering + row * width + channels + column, mask=channel_exists, other=0)
        angle = tl.load(theta + column, mask=channel_exists, other=0).to(tl.float64)
    for step in range(parts):
        part = parts - 1 - step if BACKWARD else step
        place = part * rows + row
        at = place * width + column
        tl.store(states + at, re, mask=channel_exists)
        kept = tl.load(decay + place * channels + column, mask=channel_exists, other=0)
        if COMPLEX:
            tl.store(states + at + channels, im, mask=channel_exists)
            # Modulo 2 pi in float64, so that many turns lose no digits.
            phase = angle * tl.load(turns + place).to(tl.float64)
            phase -= tl.floor(phase / 6.283185307179586) * 6.283185307179586
            c = tl.cos(phase).to(WIDE)
            s = tl.sin(phase).to(WIDE)
            if BACKWARD:
                s = -s
            new = kept * (c * re - s * im) + tl.load(end + at, mask=channel_exists, other=0)
            new_im = kept * (s * re + c * im)
            im = new_im + tl.load(end + at + channels, mask=channel_exists, other=0)
            re = new
        else:
            re = kept * re + tl.load(end + at, mask=channel_exists, other=0)
