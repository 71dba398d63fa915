"""What the GPU kernels of both directions are made of: places, loads and stores, gates, scans.

A tile is `[R, W, BD]`: BD channels, and W slots of R consecutive positions each. Memory is read and
written as `[R * W, BD]`, where row `r * W + w` is position r of slot w. docs/gpu.md says why.
"""

import triton
import triton.language as tl

# What two neighbouring runs of positions do to a state, joined into one: `state -> a * state + x`,
# then `state -> b * state + y`.


@triton.jit
def join_real(a, x, b, y):
    return a * b, x * b + y


@triton.jit
def join_complex(a, a_im, x, x_im, b, b_im, y, y_im):
    return (
        a * b - a_im * b_im,
        a * b_im + a_im * b,
        x * b - x_im * b_im + y,
        x * b_im + x_im * b + y_im,
    )


@triton.jit
def join_counting(a, a_im, x, x_im, m, b, b_im, y, y_im, n):
    """Like `join_complex`, and adds up the numbers of active positions.

    Counting outside the scan would make Triton recompute the positions in another layout.
    """
    a, a_im, x, x_im = join_complex(a, a_im, x, x_im, b, b_im, y, y_im)
    return a, a_im, x, x_im, m + n


@triton.jit
def multiply(x, y):
    return x * y


@triton.jit
def newest_two(x, before_x, count_x, y, before_y, count_y):
    """Joins two runs: the last value, the one before it, and how many values there are."""
    return y, tl.where(count_y > 1, before_y, x), count_x + count_y


# Tiles. Moving along axis 0, inside a slot, costs nothing: one thread's registers hold its R rows.


@triton.jit
def shifted(x, first: tl.constexpr):
    """The value before each along axis 0, `first` in front."""
    ones = tl.full(x.shape, 1, tl.int32)
    return tl.associative_scan((x, tl.full(x.shape, first, x.dtype), ones), 0, newest_two)[1]


@triton.jit
def as_tile(x, R: tl.constexpr, W: tl.constexpr, BD: tl.constexpr):
    """`[R * W, BD or 1]`, as memory is read, -> `[R, W, BD]`, without an instruction."""
    return tl.reshape(tl.broadcast_to(x, [R * W, BD]), [R, W, BD])


@triton.jit
def load_tile(at, exists, WIDE: tl.constexpr, R: tl.constexpr, W: tl.constexpr, BD: tl.constexpr):
    """A tile `[R, W, BD]` from the addresses `at [R * W, BD]`; 0 where nothing exists."""
    return as_tile(tl.load(at, mask=exists, other=0).to(WIDE), R, W, BD)


@triton.jit
def store_tile(at, x, exists):
    """Writes a tile `[R, W, BD]` to the addresses `at [R * W, BD]`."""
    tl.store(at, tl.reshape(x, at.shape).to(at.dtype.element_ty), mask=exists)


@triton.jit
def last_of_slot(x, R: tl.constexpr):
    """The last row of each slot, `[R, W, BD]` -> `[W, BD]`."""
    return tl.sum(tl.where(tl.arange(0, R)[:, None, None] == R - 1, x, 0), 0)


@triton.jit
def first_row(x, W: tl.constexpr):
    """One of W equal rows, `[W, BD]` -> `[BD]`."""
    return tl.sum(tl.where(tl.arange(0, W)[:, None] == 0, x, 0), 0)


# Places: which row and channels a program owns, and where they lie.


@triton.jit
def own_row(channels: tl.constexpr, BD: tl.constexpr, V: tl.constexpr):
    """A program's row, its channels `[BD]`, and which of them exist; a thread loads V at once.

    Rows and blocks of channels share the one axis of the grid that is not limited to 65535.
    Neighbouring programs share lines of memory.
    """
    blocks: tl.constexpr = (channels + BD - 1) // BD
    row = (tl.program_id(0) // blocks).to(tl.int64)
    block = tl.program_id(0) % blocks
    column = tl.max_contiguous(block * BD + tl.arange(0, BD), V)
    return row, column, (column < channels if channels % BD else tl.full([BD], 1, tl.int1))


@triton.jit
def sequence_of(boundaries, row, inner, steps, PACKED: tl.constexpr):
    """Outer index, first position and number of positions of a row's sequence.

    Packed boundaries are clamped into the tensor, because nobody reads their values before.
    """
    sequence = row // inner
    if PACKED:
        begin = tl.minimum(tl.maximum(tl.load(boundaries + sequence).to(tl.int64), 0), steps)
        end = tl.load(boundaries + sequence + 1).to(tl.int64)
        end = tl.minimum(tl.maximum(end, begin), steps)
        return sequence * 0, begin, end - begin
    return sequence, sequence * 0, sequence * 0 + steps


@triton.jit
def position(k, begin, length, REVERSE: tl.constexpr):
    """Where the k-th position of a scan lies in the tensor."""
    return begin + length - 1 - k if REVERSE else begin + k


@triton.jit
def rows_below(count, lane, R: tl.constexpr):
    """Which rows of a tile are among the first `count` of their slot; `lane` is the place in it."""
    return lane < tl.minimum(count, R).to(tl.int32)


@triton.jit
def address(base, place, column, stride: tl.constexpr):
    """Addresses of the rows of a tile, `[R * W, BD]`, at `place [R * W]` times `stride`."""
    return base + place[:, None] * stride + column[None, :]


# Activations. PTX replaces an operation by one instruction of NVIDIA's that is nearly as exact.


@triton.jit
def exp2(x, PTX: tl.constexpr):
    """PTX: flushes results below 2^-126 to 0. They are added to 1 here, so nothing is lost."""
    if PTX:
        return tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    return tl.exp2(x)


@triton.jit
def inverse(x, PTX: tl.constexpr):
    """1 / x for x in [1, 2^126] or infinite. PTX: a division would test for other x first."""
    if PTX:
        return tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    return 1 / x


@triton.jit
def sigmoids(x, PTX: tl.constexpr):
    """`sigmoid(x)` and `sigmoid(-x)`, neither by a difference; the first is at least 2^-120."""
    e = exp2(tl.minimum(x * -1.4426950408889634, 120.0, propagate_nan=tl.PropagateNan.ALL), PTX)
    on = inverse(1 + e, PTX)
    return on, e * on


@triton.jit
def silu(x, PTX: tl.constexpr):
    return x * inverse(1 + exp2(x * -1.4426950408889634, PTX), PTX)


@triton.jit
def gates(gate, active, complement, FUSED: tl.constexpr, PTX: tl.constexpr):
    """lambda, 1 - lambda, and the sigmoids of gate and -gate; from log gates lambda alone counts.

    An inactive position has lambda exactly 1 and 1 - lambda exactly 0, whatever its memory holds:
    its gate is replaced by one that is fully open.
    """
    gate = tl.where(active, gate, 1e4 if FUSED else 0)
    if FUSED:
        on, off = sigmoids(gate, PTX)
        write = complement * off
        # Of the two equal forms the one that adds numbers of like size.
        keep = tl.where(gate < 0, (1 - complement) + complement * on, 1 - write)
        return keep, write, on, off
    keep = tl.exp(gate)
    return keep, keep, keep, keep


@triton.jit
def without_masked(x, active, MASKED: tl.constexpr):
    """0 at masked positions, whose memory may hold NaN; they then add `0 * silu(0)` to a state."""
    return tl.where(active, x, 0) if MASKED else x


# Rotations.


@triton.jit
def turn(theta, column, channel_exists, WIDE: tl.constexpr):
    """Cosine and sine of theta, and what rounding them left out.

    The second pair is `exp(i theta)` divided by the first, less 1.
    """
    angle = tl.load(theta + column, mask=channel_exists, other=0).to(tl.float64)[None, None, :]
    cos64 = tl.cos(angle)
    sin64 = tl.sin(angle)
    cos = cos64.to(WIDE)
    sin = sin64.to(WIDE)
    cos_off = (cos64 - cos).to(WIDE)
    sin_off = (sin64 - sin).to(WIDE)
    return cos, sin, cos_off * cos + sin_off * sin, sin_off * cos - cos_off * sin


@triton.jit
def corrected(a, a_im, count, rest, rest_im):
    """Products of gates, with what rounding cosine and sine left out at `count` active positions.

    The rounding turns every step the same way, so over thousands of positions it would add up.
    """
    rest = count * rest
    rest_im = count * rest_im
    return a + (a * rest - a_im * rest_im), a_im + (a * rest_im + a_im * rest)


@triton.jit
def across_slots(
    a, a_im, b, b_im, state, state_im, COMPLEX: tl.constexpr, W: tl.constexpr, BD: tl.constexpr
):
    """Follows a state through the slots of a tile, each of which makes `a * state + b` of it.

    Everything is `[W, BD]`. Returns the state that enters each slot, and in every row the state
    that leaves the last slot; of both the real and the imaginary part.
    """
    if COMPLEX:
        a, a_im, b, b_im = tl.associative_scan((a, a_im, b, b_im), 0, join_complex)
        end = b + a * state - a_im * state_im
        end_im = b_im + a * state_im + a_im * state
    else:
        a, b = tl.associative_scan((a, b), 0, join_real)
        end = b + a * state
        end_im = end
    # A slot is entered by what leaves the slot before it, the first slot by the given state.
    slot = tl.arange(0, W)[:, None]
    before = tl.broadcast_to(tl.maximum(slot - 1, 0), [W, BD])
    last = tl.full([W, BD], W - 1, tl.int32)
    enters = tl.where(slot == 0, state, tl.gather(end, before, 0))
    leaves = tl.gather(end, last, 0)
    if COMPLEX:
        enters_im = tl.where(slot == 0, state_im, tl.gather(end_im, before, 0))
        return enters, enters_im, leaves, tl.gather(end_im, last, 0)
    return enters, enters, leaves, leaves
