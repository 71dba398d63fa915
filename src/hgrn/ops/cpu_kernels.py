"""The CPU kernels: typed memory access, gate arithmetic, a row of channels at one time step, the walk over tasks and time.

A task is one sequence, one inner index and one block of channels with all of its time steps. Running states live in
their output tensors (the final state in the forward, the gradient of the initial state in the backward), where they stay
in the first-level cache.

Kernels get addresses and strides instead of arrays. An access names its stream, a small constant: different streams never
overlap, which LLVM could otherwise only find out by more run-time checks than it is willing to make, and would then give
up on vector code. A dtype is given by a token, a scalar of a Numba type: float32, float64, uint16 for bfloat16, int16 for
float16. Values are float32 in registers, float64 for float64. `token` is the dtype of the tensors; `one` is the number 1
in the dtype of the state, and the token of that dtype.

Letters in the formulas: f forget and a (a + i b) candidate before their activations, s (re + i im) the state, g the
gradient that arrives at h_t from everything after it, `keep` lambda_t, `write` 1 - lambda_t.

All of it is one file because Numba's cache on disk looks at the age of the kernel's own file only.
"""

import math
import warnings

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, overload


def _probe():
    """Compiled by nobody: only asked whether its compiled form could be kept on disk."""


def _cache_works() -> bool:
    try:
        njit(cache=True)(_probe)
    except RuntimeError:
        warnings.warn(
            "no folder for compiled CPU kernels is writable, so each process compiles them again (some seconds); "
            "set NUMBA_CACHE_DIR to a writable folder",
            stacklevel=2,
        )
        return False
    return True


# Contraction into fused multiply-adds is the only liberty: NaN and infinity keep their meaning.
FLAGS = {"fastmath": {"contract"}, "error_model": "numpy", "nogil": True, "cache": _cache_works()}
helper = njit(fastmath={"contract"}, error_model="numpy", nogil=True)
# Inlined before LLVM sees it: LLVM's own inliner runs too late for the loop around the call to become vector code.
arithmetic = njit(inline="always", fastmath={"contract"}, error_model="numpy")

TOKENS = {"float32": np.float32(0), "float64": np.float64(0), "bfloat16": np.uint16(0), "float16": np.int16(0)}
_STREAMS = 16
_MEMORY_TYPE = {
    types.float32: ir.FloatType(), types.float64: ir.DoubleType(), types.uint16: ir.IntType(16), types.int16: ir.HalfType()
}  # fmt: skip
_SIZE = {types.float32: 4, types.float64: 8, types.uint16: 2, types.int16: 2}


def _value_type(token):
    return types.float64 if token == types.float64 else types.float32


def _element(context, builder, token, address, index):
    pointer = builder.inttoptr(address, _MEMORY_TYPE[token].as_pointer())
    return builder.gep(pointer, [index])


def _mark(module, instruction, stream: int) -> None:
    """Tells LLVM that the access belongs to `stream` and overlaps no other one."""
    domain = module.add_metadata(["hgrn"])
    scopes = [module.add_metadata([f"hgrn.{k}", domain]) for k in range(_STREAMS)]
    instruction.set_metadata("alias.scope", module.add_metadata([scopes[stream]]))
    instruction.set_metadata("noalias", module.add_metadata([s for k, s in enumerate(scopes) if k != stream]))


@intrinsic(prefer_literal=True)
def load(typing, token, address, index, stream):
    """The value at `address[index]`, widened to the type in which it is computed with."""
    number = stream.literal_value

    def generate(context, builder, signature, arguments):
        value = builder.load(_element(context, builder, token, arguments[1], arguments[2]), align=_SIZE[token])
        _mark(builder.module, value, number)
        if token == types.uint16:  # bfloat16 is the upper half of a float32
            wide = builder.shl(builder.zext(value, ir.IntType(32)), ir.Constant(ir.IntType(32), 16))
            return builder.bitcast(wide, ir.FloatType())
        return builder.fpext(value, ir.FloatType()) if token == types.int16 else value

    return _value_type(token)(token, types.int64, types.int64, stream), generate


@intrinsic(prefer_literal=True)
def store(typing, token, address, index, value, stream):
    """Writes `address[index] = value`, rounded once to the nearest (ties to even)."""
    number = stream.literal_value

    def generate(context, builder, signature, arguments):
        _, address, index, value, _ = arguments
        if token == types.uint16:
            i32 = ir.IntType(32)
            bits = builder.bitcast(value, i32)
            odd = builder.and_(builder.lshr(bits, ir.Constant(i32, 16)), ir.Constant(i32, 1))
            rounded = builder.add(bits, builder.add(odd, ir.Constant(i32, 0x7FFF)))
            quiet = builder.or_(bits, ir.Constant(i32, 0x400000))  # rounding up must not turn a NaN into infinity
            bits = builder.select(builder.fcmp_unordered("uno", value, value), quiet, rounded)
            value = builder.trunc(builder.lshr(bits, ir.Constant(i32, 16)), ir.IntType(16))
        elif token == types.int16:
            value = builder.fptrunc(value, ir.HalfType())
        written = builder.store(value, _element(context, builder, token, address, index), align=_SIZE[token])
        _mark(builder.module, written, number)
        return context.get_dummy_value()

    return types.void(token, types.int64, types.int64, _value_type(token), stream), generate


@intrinsic
def load_index(typing, address, index):
    """The int64 at `address[index]`."""

    def generate(context, builder, signature, arguments):
        pointer = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
        return builder.load(builder.gep(pointer, [arguments[1]]))

    return types.int64(types.int64, types.int64), generate


@intrinsic
def load_flag(typing, address, index):
    """The byte of a bool tensor at `address[index]`, as a truth value."""

    def generate(context, builder, signature, arguments):
        pointer = builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())
        return cgutils.is_not_null(builder, builder.load(builder.gep(pointer, [arguments[1]])))

    return types.boolean(types.int64, types.int64), generate


@intrinsic
def itemsize(typing, token):
    """Bytes of one element in memory."""
    size = _SIZE[token]
    return types.int64(token), lambda context, builder, signature, arguments: ir.Constant(ir.IntType(64), size)


@intrinsic
def _power_of_two(typing, shifted):
    """`2^n` for a float32 that holds `n + 1.5 * 2^23`: its low bits are n, moved into the place of the exponent."""

    def generate(context, builder, signature, arguments):
        i32 = ir.IntType(32)
        bits = builder.shl(builder.bitcast(arguments[0], i32), ir.Constant(i32, 23))
        return builder.bitcast(builder.add(bits, ir.Constant(i32, 0x3F800000)), ir.FloatType())

    return types.float32(types.float32), generate


@intrinsic
def select(typing, condition, yes, no):
    """`yes if condition else no` without a branch."""

    def generate(context, builder, signature, arguments):
        return builder.select(*arguments)

    return yes(types.boolean, yes, yes), generate


def exp_nonpositive(x):
    """`exp(x)` for x <= 0; 0 below the smallest normal result; NaN stays NaN."""
    return math.exp(x)


_LOG2E, _SHIFT = np.float32(1 / math.log(2)), np.float32(1.5 * 2**23)
_LN2_HIGH = np.float32(0.693359375)  # few bits, so that n * _LN2_HIGH is exact
_LN2_LOW = np.float32(math.log(2) - 0.693359375)
_LOWEST, _ZERO, _ONE = np.float32(-87.33), np.float32(0), np.float32(1)
# (exp(r) - 1 - r) / r^2 on |r| <= ln(2) / 2, interpolated at Chebyshev nodes; exp(r) is then good to 1.1e-8.
_C0, _C1, _C2, _C3, _C4 = (
    np.float32(c) for c in (0.5, 0.16666576266288757, 0.041666463017463684, 0.008363205008208752, 0.001393368816934526)
)


@overload(exp_nonpositive, inline="always", jit_options={"fastmath": {"contract"}, "error_model": "numpy"})
def _(x):
    if x == types.float64:
        return lambda x: math.exp(x)

    def single(x):
        shifted = x * _LOG2E + _SHIFT
        n = shifted - _SHIFT
        r = (x - n * _LN2_HIGH) - n * _LN2_LOW
        series = _ONE + (r + r * r * (_C0 + r * (_C1 + r * (_C2 + r * (_C3 + r * _C4)))))
        return select(x < _LOWEST, _ZERO, series * _power_of_two(shifted))

    return single


@arithmetic
def sigmoid_pair(x, e, inverse):
    """`sigmoid(x)` and `sigmoid(-x)` from `e = exp(-|x|)` and `inverse = 1 / (1 + e)`, neither by cancellation."""
    small, positive = e * inverse, x >= 0
    return select(positive, inverse, small), select(positive, small, inverse)


# ---------------------------------------------------------------------------------------------------------------------
# Tasks and gates


@helper
def _task(task, inner, blocks, block, channels, steps, bounds):
    """Which sequence, outer and inner index, first channel, number of channels and range of time a task covers."""
    sequence, rest = task // (inner * blocks), task % (inner * blocks)
    i, start = rest // blocks, (rest % blocks) * block
    outer, begin, end = sequence, 0, steps
    if bounds != 0:
        outer, begin, end = 0, load_index(bounds, sequence), load_index(bounds, sequence + 1)
    return sequence, outer, i, start, min(block, channels - start), begin, end


@arithmetic
def _real_gates(one, f, a, gamma):
    """lambda, 1 - lambda, sigmoid(f), sigmoid(-f), sigmoid(a), sigmoid(-a); one division serves both sigmoids."""
    ef, ea = exp_nonpositive(-abs(f)), exp_nonpositive(-abs(a))
    df, da = one + ef, one + ea
    inverse = one / (df * da)
    keep, drop = sigmoid_pair(f, ef, inverse * da)
    on, off = sigmoid_pair(a, ea, inverse * df)
    room = one - gamma
    return gamma + room * keep, room * drop, keep, drop, on, off


@arithmetic
def _complex_gates(one, f, a, b, gamma):
    """As `_real_gates`, for a candidate `a + i b`: lambda, 1 - lambda, and three pairs of sigmoids from one division."""
    ef, ea, eb = exp_nonpositive(-abs(f)), exp_nonpositive(-abs(a)), exp_nonpositive(-abs(b))
    df, da, db = one + ef, one + ea, one + eb
    inverse = one / (df * da * db)
    keep, drop = sigmoid_pair(f, ef, inverse * (da * db))
    on_a, off_a = sigmoid_pair(a, ea, inverse * (df * db))
    on_b, off_b = sigmoid_pair(b, eb, inverse * (df * da))
    room = one - gamma
    return gamma + room * keep, room * drop, keep, drop, on_a, off_a, on_b, off_b


# ---------------------------------------------------------------------------------------------------------------------
# hgru_scan and hgru_carry, forward


@arithmetic
def _real_step(one, f, a, gamma, s):
    """lambda_t and the new state."""
    keep, write, _, _, on, _ = _real_gates(one, f, a, gamma)
    return keep, keep * s + write * (a * on)


@arithmetic
def _complex_step(one, f, a, b, gamma, cos, sin, re, im):
    """lambda_t and the two parts of the new state."""
    keep, write, _, _, on_a, _, on_b, _ = _complex_gates(one, f, a, b, gamma)
    new_re = keep * (cos * re - sin * im) + write * (a * on_a)
    new_im = keep * (sin * re + cos * im) + write * (b * on_b)
    return keep, new_re, new_im


@helper
def _scan_row_real(token, one, width, candidate, forget, lower, state, h):
    for j in range(width):
        f, a = load(token, forget, j, 1), load(token, candidate, j, 0)
        _, s = _real_step(one, f, a, load(one, lower, j, 2), load(one, state, j, 3))
        store(one, state, j, s, 3)
        store(token, h, j, s, 4)


@helper
def _carry_row_real(token, one, width, candidate, forget, lower, state, decay):
    for j in range(width):
        f, a = load(token, forget, j, 1), load(token, candidate, j, 0)
        keep, s = _real_step(one, f, a, load(one, lower, j, 2), load(one, state, j, 3))
        store(one, state, j, s, 3)
        store(one, decay, j, keep * load(one, decay, j, 4), 4)


@helper
def _scan_row_complex(token, one, width, size, wide, candidate, forget, lower, cos, sin, state, h):
    """`size` and `wide` are the distances from real to imaginary parts, in bytes, of tensors and of states."""
    for j in range(width):
        f, a, b = load(token, forget, j, 1), load(token, candidate, j, 0), load(token, candidate + size, j, 0)
        gamma, c, s = load(one, lower, j, 2), load(one, cos, j, 2), load(one, sin, j, 2)
        _, re, im = _complex_step(one, f, a, b, gamma, c, s, load(one, state, j, 3), load(one, state + wide, j, 5))
        store(one, state, j, re, 3)
        store(one, state + wide, j, im, 5)
        store(token, h, j, re, 4)
        store(token, h + size, j, im, 6)


@helper
def _carry_row_complex(token, one, width, size, wide, candidate, forget, lower, cos, sin, state, decay):
    for j in range(width):
        f, a, b = load(token, forget, j, 1), load(token, candidate, j, 0), load(token, candidate + size, j, 0)
        gamma, c, s = load(one, lower, j, 2), load(one, cos, j, 2), load(one, sin, j, 2)
        keep, re, im = _complex_step(one, f, a, b, gamma, c, s, load(one, state, j, 3), load(one, state + wide, j, 5))
        store(one, state, j, re, 3)
        store(one, state + wide, j, im, 5)
        store(one, decay, j, keep * load(one, decay, j, 4), 4)


@helper
def _copy_row(token, one, width, state, h):
    for j in range(width):
        store(token, h, j, load(one, state, j, 3), 4)


@njit(**FLAGS)
def hgru_scan(
    token, one, complex_state, first, last, inner, blocks, block, channels, steps, bounds, reverse,
    candidate, candidate_strides, forget, forget_strides, lower, cos, sin, mask, state, h, decay,
):  # fmt: skip
    """Forward of tasks `first` to `last`; `state` holds the initial states and is left with the final ones.

    With an address of `decay` instead of `h` (the other one is 0) no state is written, and the product of the gates is.
    """
    size, wide = itemsize(token), itemsize(one)
    parts = 2 if complex_state else 1
    for task in range(first, last):
        sequence, outer, i, start, width, begin, end = _task(task, inner, blocks, block, channels, steps, bounds)
        row = (sequence * inner + i) * channels
        s, d = state + wide * (row * parts + start), decay + wide * (row + start)
        gamma, c, sn = lower + wide * start, cos + wide * start, sin + wide * start
        for step in range(end - begin):
            t = end - 1 - step if reverse else begin + step
            place = (outer * steps + t) * inner + i
            h_row = h + size * (place * channels * parts + start)
            if mask != 0 and not load_flag(mask, place):
                if h != 0:
                    for part in range(parts):
                        _copy_row(token, one, width, s + wide * channels * part, h_row + size * channels * part)
                continue
            c_row = candidate + size * (
                outer * candidate_strides[0] + t * candidate_strides[1] + i * candidate_strides[2] + start
            )
            f_row = forget + size * (outer * forget_strides[0] + t * forget_strides[1] + i * forget_strides[2] + start)
            if complex_state and h != 0:
                _scan_row_complex(token, one, width, size * channels, wide * channels, c_row, f_row, gamma, c, sn, s, h_row)
            elif complex_state:
                _carry_row_complex(token, one, width, size * channels, wide * channels, c_row, f_row, gamma, c, sn, s, d)
            elif h != 0:
                _scan_row_real(token, one, width, c_row, f_row, gamma, s, h_row)
            else:
                _carry_row_real(token, one, width, c_row, f_row, gamma, s, d)


# ---------------------------------------------------------------------------------------------------------------------
# hgru_scan, backward


@helper
def _back_row_real(token, past, one, width, candidate, forget, lower, before, grad_h, g_row, grad_c, grad_f, grad_lower):
    """`past` is the dtype of the row `before` that holds h_{t-1}: the initial state's is the state dtype."""
    for j in range(width):
        f, a = load(token, forget, j, 1), load(token, candidate, j, 0)
        gamma = load(one, lower, j, 2)
        keep_all, write, keep, drop, on, off = _real_gates(one, f, a, gamma)
        g = load(one, g_row, j, 5) + load(token, grad_h, j, 4)
        to_gate = g * (load(past, before, j, 3) - a * on)
        store(one, g_row, j, keep_all * g, 5)
        store(token, grad_c, j, g * write * (on * (one + a * off)), 6)
        store(token, grad_f, j, to_gate * (write * keep), 7)
        store(one, grad_lower, j, load(one, grad_lower, j, 8) + to_gate * drop, 8)


@helper
def _back_row_complex(
    token, past, one, width, size, past_size, wide, candidate, forget, lower, cos, sin, before, grad_h, g_row, grad_c,
    grad_f, grad_lower, grad_theta,
):  # fmt: skip
    for j in range(width):
        f = load(token, forget, j, 1)
        a, b = load(token, candidate, j, 0), load(token, candidate + size, j, 0)
        gamma, c, s = load(one, lower, j, 2), load(one, cos, j, 2), load(one, sin, j, 2)
        keep_all, write, keep, drop, on_a, off_a, on_b, off_b = _complex_gates(one, f, a, b, gamma)
        g_re = load(one, g_row, j, 5) + load(token, grad_h, j, 4)
        g_im = load(one, g_row + wide, j, 9) + load(token, grad_h + size, j, 4)
        re, im = load(past, before, j, 3), load(past, before + past_size, j, 3)
        turned_re, turned_im = c * re - s * im, s * re + c * im
        to_gate = g_re * (turned_re - a * on_a) + g_im * (turned_im - b * on_b)
        store(one, g_row, j, keep_all * (c * g_re + s * g_im), 5)
        store(one, g_row + wide, j, keep_all * (c * g_im - s * g_re), 9)
        store(token, grad_c, j, g_re * write * (on_a * (one + a * off_a)), 6)
        store(token, grad_c + size, j, g_im * write * (on_b * (one + b * off_b)), 10)
        store(token, grad_f, j, to_gate * (write * keep), 7)
        store(one, grad_lower, j, load(one, grad_lower, j, 8) + to_gate * drop, 8)
        to_angle = keep_all * (g_im * turned_re - g_re * turned_im)
        store(one, grad_theta, j, load(one, grad_theta, j, 11) + to_angle, 11)


@helper
def _hold_row(token, one, width, grad_h, g_row):
    """A masked position: the gradient passes to the position before as it is."""
    for j in range(width):
        store(one, g_row, j, load(one, g_row, j, 5) + load(token, grad_h, j, 4), 5)


@helper
def _zero_row(token, one, width, row):
    for j in range(width):
        store(token, row, j, one - one, 6)


@njit(**FLAGS)
def hgru_scan_backward(
    token, one, complex_state, first, last, inner, blocks, block, channels, steps, bounds, reverse,
    candidate, candidate_strides, forget, forget_strides, lower, cos, sin, mask, initial, h, grad_h, grad_h_strides,
    g, grad_c, grad_f, grad_lower, grad_theta,
):  # fmt: skip
    """Backward of tasks `first` to `last`; `g` holds the final states' gradients and is left with the initial states'.

    grad_lower and grad_theta are sums over time for each sequence and inner index, `[N, I, D]`, and start at 0.
    """
    size, wide = itemsize(token), itemsize(one)
    parts = 2 if complex_state else 1
    for task in range(first, last):
        sequence, outer, i, start, width, begin, end = _task(task, inner, blocks, block, channels, steps, bounds)
        row = (sequence * inner + i) * channels
        s0, g_row = initial + wide * (row * parts + start), g + wide * (row * parts + start)
        gl, gt = grad_lower + wide * (row + start), grad_theta + wide * (row + start)
        gamma, c, sn = lower + wide * start, cos + wide * start, sin + wide * start
        for step in range(end - begin):
            t = begin + step if reverse else end - 1 - step
            place = (outer * steps + t) * inner + i
            dh = grad_h + size * (outer * grad_h_strides[0] + t * grad_h_strides[1] + i * grad_h_strides[2] + start)
            dc = grad_c + size * (place * channels * parts + start)
            df = grad_f + size * (place * channels + start)
            if mask != 0 and not load_flag(mask, place):
                for part in range(parts):
                    _hold_row(token, one, width, dh + size * channels * part, g_row + wide * channels * part)
                    _zero_row(token, one, width, dc + size * channels * part)
                _zero_row(token, one, width, df)
                continue
            c_row = candidate + size * (
                outer * candidate_strides[0] + t * candidate_strides[1] + i * candidate_strides[2] + start
            )
            f_row = forget + size * (outer * forget_strides[0] + t * forget_strides[1] + i * forget_strides[2] + start)
            before_t = t + 1 if reverse else t - 1
            before = h + size * (((outer * steps + before_t) * inner + i) * channels * parts + start)
            entering = step == end - begin - 1
            if complex_state and entering:
                _back_row_complex(
                    token, one, one, width, size * channels, wide * channels, wide * channels, c_row, f_row, gamma,
                    c, sn, s0, dh, g_row, dc, df, gl, gt,
                )  # fmt: skip
            elif complex_state:
                _back_row_complex(
                    token, token, one, width, size * channels, size * channels, wide * channels, c_row, f_row, gamma,
                    c, sn, before, dh, g_row, dc, df, gl, gt,
                )  # fmt: skip
            elif entering:
                _back_row_real(token, one, one, width, c_row, f_row, gamma, s0, dh, g_row, dc, df, gl)
            else:
                _back_row_real(token, token, one, width, c_row, f_row, gamma, before, dh, g_row, dc, df, gl)


# ---------------------------------------------------------------------------------------------------------------------
# gated_scan


@helper
def _gated_row_real(token, one, width, x, log_f, state, h):
    for j in range(width):
        s = exp_nonpositive(load(token, log_f, j, 1)) * load(one, state, j, 3) + load(token, x, j, 0)
        store(one, state, j, s, 3)
        store(token, h, j, s, 4)


@helper
def _gated_row_complex(token, one, width, size, wide, x, log_f, cos, sin, state, h):
    for j in range(width):
        decay, c, s = exp_nonpositive(load(token, log_f, j, 1)), load(one, cos, j, 2), load(one, sin, j, 2)
        re, im = load(one, state, j, 3), load(one, state + wide, j, 5)
        new_re = decay * (c * re - s * im) + load(token, x, j, 0)
        new_im = decay * (s * re + c * im) + load(token, x + size, j, 0)
        store(one, state, j, new_re, 3)
        store(one, state + wide, j, new_im, 5)
        store(token, h, j, new_re, 4)
        store(token, h + size, j, new_im, 6)


@helper
def _held_row(token, one, width, x, state, h):
    """A masked position: the state is held, and what the caller left in x is added."""
    for j in range(width):
        s = load(one, state, j, 3) + load(token, x, j, 0)
        store(one, state, j, s, 3)
        store(token, h, j, s, 4)


@njit(**FLAGS)
def gated_scan(
    token, one, complex_state, first, last, inner, blocks, block, channels, steps, bounds, reverse,
    x, x_strides, log_f, log_f_strides, cos, sin, mask, state, h,
):  # fmt: skip
    """Forward of tasks `first` to `last`; `state` holds the initial states and is left with the final ones."""
    size, wide = itemsize(token), itemsize(one)
    parts = 2 if complex_state else 1
    for task in range(first, last):
        sequence, outer, i, start, width, begin, end = _task(task, inner, blocks, block, channels, steps, bounds)
        s = state + wide * ((sequence * inner + i) * channels * parts + start)
        c, sn = cos + wide * start, sin + wide * start
        for step in range(end - begin):
            t = end - 1 - step if reverse else begin + step
            place = (outer * steps + t) * inner + i
            x_row = x + size * (outer * x_strides[0] + t * x_strides[1] + i * x_strides[2] + start)
            f_row = log_f + size * (outer * log_f_strides[0] + t * log_f_strides[1] + i * log_f_strides[2] + start)
            h_row = h + size * (place * channels * parts + start)
            if mask != 0 and not load_flag(mask, place):
                for part in range(parts):
                    _held_row(token, one, width, x_row + size * channels * part, s + wide * channels * part,
                              h_row + size * channels * part)  # fmt: skip
            elif complex_state:
                _gated_row_complex(token, one, width, size * channels, wide * channels, x_row, f_row, c, sn, s, h_row)
            else:
                _gated_row_real(token, one, width, x_row, f_row, s, h_row)
