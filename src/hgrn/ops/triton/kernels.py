"""The GPU kernels of the scans, in Triton: tiles of time by channels that walk along a sequence with the state in registers.

A program owns one row (a sequence and an inner index), one block of channels and one stretch of time, and reads each input once.
A tile is `[R, W, BD]`: BD channels, and W slots of R consecutive positions. R lies in a thread's registers, channels and then slots
on lanes and warps, so that the scan inside a slot is serial and moves nothing; only what each slot does to a state crosses threads.
Memory is read and written by `[R * W, BD]`, row `r * W + w`, for which every version of Triton chooses just this layout; of three
axes they choose differently. Loads of further tiles are in flight meanwhile, by way of shared memory. Where rows and channels are too
few even so, time is split: a first pass of the same kernel leaves only what each stretch does to a state that enters it, `chain`
follows the stretches, and a second pass writes. docs/gpu.md counts bytes and instructions.

Strides of time and the number of channels are compiled in, so that the rows of a slot are constant offsets; lengths are not.
Letters as in `cpu_scan`: room 1 - gamma, drop sigmoid(-f), write 1 - lambda, g the gradient of h_t.
"""

import triton
import triton.language as tl


@triton.jit
def _real(a, x, b, y):
    return a * b, x * b + y


@triton.jit
def _complex(a, a_im, x, x_im, b, b_im, y, y_im):
    return (
        a * b - a_im * b_im,
        a * b_im + a_im * b,
        x * b - x_im * b_im + y,
        x * b_im + x_im * b + y_im,
    )


@triton.jit
def _counted(a, a_im, x, x_im, m, b, b_im, y, y_im, n):
    """As `_complex`, and counts; a sum apart from the scan would find positions again, for a layout of its own."""
    a, a_im, x, x_im = _complex(a, a_im, x, x_im, b, b_im, y, y_im)
    return a, a_im, x, x_im, m + n


@triton.jit
def _product(x, y):
    return x * y


@triton.jit
def _newest_two(x, before_x, count_x, y, before_y, count_y):
    """Of two runs that are joined the last value, the one before it, and how many there are."""
    return y, tl.where(count_y > 1, before_y, x), count_x + count_y


@triton.jit
def _shifted(x, first: tl.constexpr):
    """Along axis 0 the value before each, `first` in front: no instruction where that axis lies in registers."""
    return tl.associative_scan(
        (x, tl.full(x.shape, first, x.dtype), tl.full(x.shape, 1, tl.int32)), 0, _newest_two
    )[1]


@triton.jit
def _slots(x, R: tl.constexpr, W: tl.constexpr, BD: tl.constexpr):
    """`[R * W, BD or 1]`, as memory is read and written, -> `[R, W, BD]`: no instruction."""
    return tl.reshape(tl.broadcast_to(x, [R * W, BD]), [R, W, BD])


@triton.jit
def _load(at, mask, WIDE: tl.constexpr, R: tl.constexpr, W: tl.constexpr, BD: tl.constexpr):
    """A tile `[R, W, BD]` from where `at [R * W, BD]` points."""
    return _slots(tl.load(at, mask=mask, other=0).to(WIDE), R, W, BD)


@triton.jit
def _store(at, x, mask):
    """A tile `[R, W, BD]` to where `at [R * W, BD]` points."""
    tl.store(at, tl.reshape(x, at.shape).to(at.dtype.element_ty), mask=mask)


@triton.jit
def _last(x, R: tl.constexpr):
    """The last along axis 0, `[R, W, BD]` -> `[W, BD]`."""
    return tl.sum(tl.where(tl.arange(0, R)[:, None, None] == R - 1, x, 0), 0)


@triton.jit
def _top(x, W: tl.constexpr):
    """The first of equal rows, `[W, BD]` -> `[BD]`."""
    return tl.sum(tl.where(tl.arange(0, W)[:, None] == 0, x, 0), 0)


@triton.jit
def _exp2(x, PTX: tl.constexpr):
    """PTX: without the instructions that keep results below 2^-126, which are nothing beside 1."""
    if PTX:
        return tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    return tl.exp2(x)


@triton.jit
def _inverse(x, PTX: tl.constexpr):
    """Of x in [1, 2^126] or infinite. PTX: in one instruction, where a division would look for other x first."""
    if PTX:
        return tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    return 1 / x


@triton.jit
def _sigmoids(x, PTX: tl.constexpr):
    """`sigmoid(x)` and `sigmoid(-x)`, neither of them a difference; where the first would be below 2^-120, it is 2^-120."""
    e = _exp2(tl.minimum(x * -1.4426950408889634, 120.0, propagate_nan=tl.PropagateNan.ALL), PTX)
    on = _inverse(1 + e, PTX)
    return on, e * on


@triton.jit
def _silu(x, PTX: tl.constexpr):
    return x * _inverse(1 + _exp2(x * -1.4426950408889634, PTX), PTX)


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
def _gate(f, counted, room, FUSED: tl.constexpr, PTX: tl.constexpr):
    """lambda, 1 - lambda, and both sigmoids; from log gates the first alone means something.

    Where a position does not count the gate is so open that lambda is exactly 1 and 1 - lambda is 0, whatever f is there.
    """
    f = tl.where(counted, f, 1e4 if FUSED else 0)
    if FUSED:
        keep, drop = _sigmoids(f, PTX)
        write = room * drop
        gate = tl.where(f < 0, (1 - room) + room * keep, 1 - write)
        return gate, write, keep, drop
    gate = tl.exp(f)
    return gate, gate, gate, gate


@triton.jit
def _clean(x, counted, MASKED: tl.constexpr):
    """Without what masked positions hold, which may be NaN; their share of the state is then `0 * silu(0)`."""
    return tl.where(counted, x, 0) if MASKED else x


@triton.jit
def _position(k, begin, length, REVERSE: tl.constexpr):
    """Where the k-th position of a scan lies in the tensor."""
    return begin + length - 1 - k if REVERSE else begin + k


@triton.jit
def _rows(count, lane, R: tl.constexpr):
    """Which rows are among the first `count` of their slot."""
    return lane < tl.minimum(count, R).to(tl.int32)


@triton.jit
def _at(base, place, column, stride: tl.constexpr):
    """Where the rows of a tile lie, `[R * W, BD]`, from their places `[R * W]`, neighbours being `stride` elements apart."""
    return base + place[:, None] * stride + column[None, :]


@triton.jit
def _place(channels: tl.constexpr, BD: tl.constexpr, V: tl.constexpr):
    """A program's row, its channels, and which of them exist; V of them are one load of a thread.

    Rows and blocks of channels share the axis of the grid that is not limited to 65535; neighbours share lines of memory.
    """
    blocks: tl.constexpr = (channels + BD - 1) // BD
    row = (tl.program_id(0) // blocks).to(tl.int64)
    block = tl.program_id(0) % blocks
    column = tl.max_contiguous(block * BD + tl.arange(0, BD), V)
    return row, column, (column < channels if channels % BD else tl.full([BD], 1, tl.int1))


@triton.jit
def _cross(
    a, a_im, b, b_im, state, state_im, COMPLEX: tl.constexpr, W: tl.constexpr, BD: tl.constexpr
):
    """From what each slot makes of a state, `a * state + b`, what enters each, and in every row what leaves the last."""
    if COMPLEX:
        a, a_im, b, b_im = tl.associative_scan((a, a_im, b, b_im), 0, _complex)
        end = b + a * state - a_im * state_im
        end_im = b_im + a * state_im + a_im * state
    else:
        a, b = tl.associative_scan((a, b), 0, _real)
        end = b + a * state
        end_im = end
    slot = tl.arange(0, W)[:, None]
    before = tl.broadcast_to(tl.maximum(slot - 1, 0), [W, BD])
    last = tl.full([W, BD], W - 1, tl.int32)
    enters = tl.where(slot == 0, state, tl.gather(end, before, 0))
    leaves = tl.gather(end, last, 0)
    if COMPLEX:
        return (
            enters,
            tl.where(slot == 0, state_im, tl.gather(end_im, before, 0)),
            leaves,
            tl.gather(end_im, last, 0),
        )
    return enters, enters, leaves, leaves


@triton.jit
def _turn(theta, column, there, WIDE: tl.constexpr):
    """Cosine and sine of theta, and by what factor, less 1, `exp(i theta)` differs from them."""
    angle = tl.load(theta + column, mask=there, other=0).to(tl.float64)[None, None, :]
    c64 = tl.cos(angle)
    s64 = tl.sin(angle)
    c = c64.to(WIDE)
    s = s64.to(WIDE)
    c_off = (c64 - c).to(WIDE)
    s_off = (s64 - s).to(WIDE)
    return c, s, c_off * c + s_off * s, s_off * c - c_off * s


@triton.jit
def _exact(a, a_im, count, rest, rest_im):
    """Products of gates without what rounding cosine and sine did at each of `count` live positions.

    It turns all the same way, so over thousands of positions it would add up.
    """
    rest = count * rest
    rest_im = count * rest_im
    return a + (a * rest - a_im * rest_im), a_im + (a * rest_im + a_im * rest)


@triton.jit(do_not_specialize=["steps", "rows", "stretch"])
def scan(
    x,
    x_outer,
    x_inner,
    f,
    f_outer,
    f_inner,
    room,
    theta,
    mask,
    bounds,
    initial,
    h,
    final,
    decay,
    turns,
    steps,
    rows,
    stretch,
    x_time: tl.constexpr,
    f_time: tl.constexpr,
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
    """States `h` (WRITE) and the state behind each stretch, `final [S, rows, C]`, from `initial [S, rows, C]`.

    CARRY leaves `decay [S, rows, D]`, the product of the gates, and `turns [S, rows]`, how many positions turned the state.
    """
    row, column, there = _place(channels, BD, V)
    part = tl.program_id(1).to(tl.int64)
    i = row % inner
    outer, begin, length = _range(bounds, row, inner, steps, PACKED)
    low = tl.minimum(part * stretch, length)
    high = tl.minimum(low + stretch, length)
    width: tl.constexpr = channels * 2 if COMPLEX else channels
    at = (part * rows + row) * width + column
    none = tl.zeros([W, BD], WIDE)
    re = none + tl.load(initial + at, mask=there, other=0).to(WIDE)[None, :]
    im = re
    if COMPLEX:
        im = none + tl.load(initial + at + channels, mask=there, other=0).to(WIDE)[None, :]
        c1, s1, c_rest, s_rest = _turn(theta, column, there, WIDE)
    space = tl.load(room + column, mask=there, other=0).to(WIDE)[None, None, :] if FUSED else 0
    product = tl.full([BD], 1, WIDE)
    turned = tl.full([], 0, tl.int64)
    lane = tl.arange(0, R * W) // W
    slot = tl.arange(0, R * W) % W * R
    x_base = x + outer * x_outer + i * x_inner
    f_base = f + outer * f_outer + i * f_inner
    now = low  # as `start`, but nobody knows: from it positions are found again, not kept while loads are in flight
    for start in tl.range(low, high, R * W, num_stages=STAGES):
        t = _position(start + slot + lane, begin, length, REVERSE)
        real = _rows(high - start - slot, lane, R)
        full = real[:, None] & there[None, :]
        f_at = _at(f_base, t, column, f_time)
        x_at = _at(x_base, t, column, x_time)
        live = _rows(high - now - slot, lane, R)
        here = live[:, None] & there[None, :]
        place = (outer * steps + _position(now + slot + lane, begin, length, REVERSE)) * inner + i
        h_at = _at(h, place, column, width)
        if MASKED:
            live = tl.load(mask + (outer * steps + t) * inner + i, mask=real, other=0) != 0
        counted = _slots(live[:, None], R, W, BD)
        gate, write, _, _ = _gate(_load(f_at, full, WIDE, R, W, BD), counted, space, FUSED, PTX)
        new = _load(x_at, full, WIDE, R, W, BD)
        if FUSED:
            new = write * _silu(_clean(new, counted, MASKED), PTX)
        if COMPLEX:
            new_im = _load(x_at + channels, full, WIDE, R, W, BD)
            if FUSED:
                new_im = write * _silu(_clean(new_im, counted, MASKED), PTX)
            a = tl.where(counted, gate * c1, 1)
            a_im = tl.where(counted, gate * s1, 0)
            a, a_im, b, b_im, count = tl.associative_scan(
                (a, a_im, new, new_im, counted.to(WIDE)), 0, _counted
            )
            by, by_im = _exact(a, a_im, count, c_rest, s_rest)
            enters, enters_im, re, im = _cross(
                _last(by, R), _last(by_im, R), _last(b, R), _last(b_im, R), re, im, COMPLEX, W, BD
            )
            if WRITE:
                out = b + a * enters[None] - a_im * enters_im[None]
                out_im = b_im + a * enters_im[None] + a_im * enters[None]
                _store(h_at, out, here)
                _store(h_at + channels, out_im, here)
        else:
            a, b = tl.associative_scan((gate, new), 0, _real)
            enters, _, re, _ = _cross(
                _last(a, R), none, _last(b, R), none, re, none, COMPLEX, W, BD
            )
            if WRITE:
                _store(h_at, b + a * enters[None], here)
        now += R * W
        if CARRY:
            product *= tl.reduce(tl.reduce(gate, 0, _product), 0, _product)
            turned += tl.sum(live.to(tl.int64), 0)
    tl.store(final + at, _top(re, W), mask=there)
    if COMPLEX:
        tl.store(final + at + channels, _top(im, W), mask=there)
    if CARRY:
        tl.store(decay + (part * rows + row) * channels + column, product, mask=there)
        if COMPLEX:
            tl.store(turns + part * rows + row, turned)


@triton.jit(do_not_specialize=["steps", "rows", "stretch"])
def scan_backward(
    x,
    x_outer,
    x_inner,
    f,
    f_outer,
    f_inner,
    room,
    theta,
    mask,
    bounds,
    initial,
    h,
    dh,
    dh_outer,
    dh_inner,
    entering,
    dx,
    df,
    passed,
    decay,
    turns,
    dlower,
    dtheta,
    steps,
    rows,
    stretch,
    x_time: tl.constexpr,
    f_time: tl.constexpr,
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
    """Gradients `dx`, `df` (WRITE) and the sums for lower bounds and angles `[S, rows, D]`, walking from a stretch's end to its start.

    `entering [S, rows, C]` is the gradient of the state behind a stretch, `passed` that of the state before it.
    """
    row, column, there = _place(channels, BD, V)
    part = tl.program_id(1).to(tl.int64)
    i = row % inner
    outer, begin, length = _range(bounds, row, inner, steps, PACKED)
    low = tl.minimum(part * stretch, length)
    high = tl.minimum(low + stretch, length)
    width: tl.constexpr = channels * 2 if COMPLEX else channels
    earlier: tl.constexpr = 1 if REVERSE else -1
    at = (part * rows + row) * width + column
    none = tl.zeros([W, BD], WIDE)
    p = none + tl.load(entering + at, mask=there, other=0).to(WIDE)[None, :]
    first_at = initial + row * width + column
    first = tl.load(first_at, mask=there, other=0).to(WIDE)[None, :]
    p_im = p
    if COMPLEX:
        p_im = none + tl.load(entering + at + channels, mask=there, other=0).to(WIDE)[None, :]
        first_im = tl.load(first_at + channels, mask=there, other=0).to(WIDE)[None, :]
        c1, s1, c_rest, s_rest = _turn(theta, column, there, WIDE)
    space = tl.load(room + column, mask=there, other=0).to(WIDE)[None, None, :] if FUSED else 0
    product = tl.full([BD], 1, WIDE)
    turned = tl.full([], 0, tl.int64)
    sum_lower = none
    sum_theta = none
    lane = tl.arange(0, R * W) // W
    slot = tl.arange(0, R * W) % W * R
    x_base = x + outer * x_outer + i * x_inner
    f_base = f + outer * f_outer + i * f_inner
    dh_base = dh + outer * dh_outer + i * dh_inner
    now = high - 1  # as above
    for start in tl.range(0, high - low, R * W, num_stages=STAGES):
        k = high - 1 - start - slot  # of each slot's first row
        t = _position(k - lane, begin, length, REVERSE)
        real = _rows(k - low + 1, lane, R)
        full = real[:, None] & there[None, :]
        f_at = _at(f_base, t, column, f_time)
        x_at = _at(x_base, t, column, x_time)
        place = (outer * steps + t) * inner + i
        dh_at = _at(dh_base, t, column, dh_time)
        h_at = _at(h, place + earlier * inner, column, width)
        has_before = full & _rows(k, lane, R)[:, None]
        live = _rows(now - slot - low + 1, lane, R)
        here = live[:, None] & there[None, :]
        starts = (lane == tl.minimum(now - slot, R).to(tl.int32))[:, None]
        if MASKED:
            live = tl.load(mask + place, mask=real, other=0) != 0
        counted = _slots(live[:, None], R, W, BD)
        place = (outer * steps + _position(now - slot - lane, begin, length, REVERSE)) * inner + i
        dx_at = _at(dx, place, column, width)
        df_at = _at(df, place, column, channels)
        gate, write, keep, drop = _gate(
            _load(f_at, full, WIDE, R, W, BD), counted, space, FUSED, PTX
        )
        g = _load(dh_at, full, WIDE, R, W, BD)
        # What passes from row to row of a slot is the gate of the row before: the first takes what enters as it is.
        if COMPLEX:
            g_im = _load(dh_at + channels, full, WIDE, R, W, BD)
            a = tl.where(counted, gate * c1, 1)
            a_im = tl.where(counted, gate * -s1, 0)
            b = _shifted(a, 1)
            b_im = _shifted(a_im, 0)
            count = counted.to(WIDE)
            b, b_im, g, g_im, count = tl.associative_scan((b, b_im, g, g_im, count), 0, _counted)
            by, by_im = _exact(a * b - a_im * b_im, a * b_im + a_im * b, count, c_rest, -s_rest)
            enters, enters_im, p, p_im = _cross(
                _last(by, R),
                _last(by_im, R),
                _last(a * g - a_im * g_im, R),
                _last(a * g_im + a_im * g, R),
                p,
                p_im,
                COMPLEX,
                W,
                BD,
            )
            g = g + b * enters[None] - b_im * enters_im[None]
            g_im = g_im + b * enters_im[None] + b_im * enters[None]
        else:
            b, g = tl.associative_scan((_shifted(gate, 1), g), 0, _real)
            enters, _, p, _ = _cross(
                _last(gate * b, R), none, _last(gate * g, R), none, p, none, COMPLEX, W, BD
            )
            g += b * enters[None]
        if CARRY:
            product *= tl.reduce(tl.reduce(gate, 0, _product), 0, _product)
            turned += tl.sum(live.to(tl.int64), 0)
        if WRITE:
            prev = _slots(
                tl.where(starts, first, tl.load(h_at, mask=has_before, other=0).to(WIDE)), R, W, BD
            )
            if COMPLEX:
                prev_im = _slots(
                    tl.where(
                        starts,
                        first_im,
                        tl.load(h_at + channels, mask=has_before, other=0).to(WIDE),
                    ),
                    R,
                    W,
                    BD,
                )
                prev, prev_im = c1 * prev - s1 * prev_im, s1 * prev + c1 * prev_im
                sum_theta += tl.sum(tl.where(counted, gate * (g_im * prev - g * prev_im), 0), 0)
            if FUSED:
                value = _clean(_load(x_at, full, WIDE, R, W, BD), counted, MASKED)
                on, off = _sigmoids(value, PTX)
                unit = value * on
                to_gate = g * (prev - unit)
                _store(dx_at, g * write * (on + unit * off), here)
                if COMPLEX:
                    value = _clean(_load(x_at + channels, full, WIDE, R, W, BD), counted, MASKED)
                    on, off = _sigmoids(value, PTX)
                    unit = value * on
                    to_gate += g_im * (prev_im - unit)
                    _store(dx_at + channels, g_im * write * (on + unit * off), here)
                to_gate *= drop
                sum_lower += tl.sum(to_gate, 0)
                found = to_gate * (space * keep)
            else:
                _store(dx_at, g, here)
                found = g * prev
                if COMPLEX:
                    _store(dx_at + channels, g_im, here)
                    found += g_im * prev_im
                found *= gate
                if MASKED:
                    found = tl.where(counted, found, 0)
            _store(df_at, found, here)
        now -= R * W
    tl.store(passed + at, _top(p, W), mask=there)
    if COMPLEX:
        tl.store(passed + at + channels, _top(p_im, W), mask=there)
    sums_at = (part * rows + row) * channels + column
    if CARRY:
        tl.store(decay + sums_at, product, mask=there)
        if COMPLEX:
            tl.store(turns + part * rows + row, turned)
    if WRITE:
        if FUSED:
            tl.store(dlower + sums_at, tl.sum(sum_lower, 0), mask=there)
        if COMPLEX:
            tl.store(dtheta + sums_at, tl.sum(sum_theta, 0), mask=there)


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
    """Follows the stretches of each row: `states [S, R, C]` is what enters each, the first of them `entering [R, C]`.

    BACKWARD goes from the last stretch to the first, and turns by the negative angle.
    """
    row, column, there = _place(channels, BD, 1)
    width: tl.constexpr = channels * 2 if COMPLEX else channels
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
            c = tl.cos(phase).to(WIDE)
            s = tl.sin(phase).to(WIDE)
            if BACKWARD:
                s = -s
            new = kept * (c * re - s * im) + tl.load(end + at, mask=there, other=0)
            im = kept * (s * re + c * im) + tl.load(end + at + channels, mask=there, other=0)
            re = new
        else:
            re = kept * re + tl.load(end + at, mask=there, other=0)
