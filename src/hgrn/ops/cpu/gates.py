"""The arithmetic of gates: exponential, sigmoid and SiLU, in float32 for a float32.

These functions are inlined into the loops that call them, where they become vector code. None of
them assumes that numbers are finite: NaN stays NaN, and gates far in saturation are exactly 0 or 1.
"""

import math

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from hgrn.ops.cpu.language import OPTIONS, arithmetic
from hgrn.ops.cpu.rows import number


@intrinsic
def select(typing, condition, yes, no):
    """`yes if condition else no` without a branch."""

    def generate(context, builder, signature, arguments):
        return builder.select(*arguments)

    return yes(types.boolean, yes, yes), generate


@intrinsic
def inverse(typing, x):
    """`1 / x` for x between 1 and 2, or NaN.

    In float32, where the processor has it, this is an estimate and a Newton step. They are wrong
    only at 0 and at infinity. The flags permit that, and the range of x excludes it.
    """

    def generate(context, builder, signature, arguments):
        flags = ("arcp", "ninf", "contract") if x == types.float32 else ()
        return builder.fdiv(context.get_constant(x, 1), arguments[0], flags=flags)

    return x(x), generate


# --------------------------------------------------------------------------------------------------
# The exponential

_LOG2E = np.float32(1 / math.log(2))
_SHIFT = np.float32(1.5 * 2**23)
_LOWEST = np.float32(-87.33)
_ZERO = np.float32(0)
_ONE = np.float32(1)
# 2^r = 1 + C1 r + ... + C5 r^5 for |r| <= 1/2, fitted for the smallest relative error: 1.1e-7.
_C1 = np.float32(0.6931470036506653)
_C2 = np.float32(0.24022242426872253)
_C3 = np.float32(0.05550733581185341)
_C4 = np.float32(0.009671512991189957)
_C5 = np.float32(0.001326472731307149)


@intrinsic
def _power_of_two(typing, shifted):
    """`2^n` for a float32 that holds `n + 1.5 * 2^23`.

    The low bits of such a number are n itself. Moved into the place of the exponent they make 2^n.
    """

    def generate(context, builder, signature, arguments):
        i32 = ir.IntType(32)
        bits = builder.shl(builder.bitcast(arguments[0], i32), ir.Constant(i32, 23))
        return builder.bitcast(builder.add(bits, ir.Constant(i32, 0x3F800000)), ir.FloatType())

    return types.float32(types.float32), generate


def exp_nonpositive(x):
    """`exp(x)` for x <= 0. Results below the smallest normal number are 0; NaN stays NaN."""
    return math.exp(x)


@overload(exp_nonpositive, inline="always", jit_options=OPTIONS)
def _exp_nonpositive(x):
    if x == types.float64:
        return lambda x: math.exp(x)

    def single(x):
        # exp(x) = 2^n 2^r with n the integer nearest to x log2(e). Adding 1.5 * 2^23 leaves no bits
        # for a fraction, so the addition rounds to n, and subtracting it again gives n as a
        # float32.
        shifted = x * _LOG2E + _SHIFT
        # Product and subtraction contract to one operation, so the product is not rounded before.
        r = x * _LOG2E - (shifted - _SHIFT)
        series = _ONE + r * (_C1 + r * (_C2 + r * (_C3 + r * (_C4 + r * _C5))))
        return select(x < _LOWEST, _ZERO, series * _power_of_two(shifted))

    return single


# --------------------------------------------------------------------------------------------------
# Sigmoid and SiLU


@arithmetic
def one_minus(x):
    """`1 - x`."""
    return number(x, 1) - x


@arithmetic
def sigmoid(x):
    """`sigmoid(x)`, to full precision where it is close to 0 too; exactly 0 or 1 in saturation."""
    e = exp_nonpositive(-abs(x))
    small = e * inverse(number(x, 1) + e)
    return select(x >= 0, one_minus(small), small)


@arithmetic
def sigmoid_pair(x):
    """`sigmoid(x)` and `sigmoid(-x)`. The smaller of them is never a difference."""
    e = exp_nonpositive(-abs(x))
    small = e * inverse(number(x, 1) + e)
    large = one_minus(small)
    positive = x >= 0
    return select(positive, large, small), select(positive, small, large)


@arithmetic
def silu(x):
    """`x sigmoid(x)`."""
    return x * sigmoid(x)


@arithmetic
def silu_pair(x):
    """`x sigmoid(x)` and its derivative."""
    on, off = sigmoid_pair(x)
    return x * on, on + x * on * off


# The activations by name, and the number of each that a kernel is compiled for.
IDENTITY = 0
SILU = 1
SIGMOID = 2
ACTIVATIONS = {"identity": IDENTITY, "silu": SILU, "sigmoid": SIGMOID}


@arithmetic
def activated(activation, x):
    """The activation with that number."""
    if activation == SILU:
        return silu(x)
    if activation == SIGMOID:
        return sigmoid(x)
    return x


@arithmetic
def activated_pair(activation, x):
    """The activation with that number, and its derivative."""
    if activation == SILU:
        return silu_pair(x)
    on, off = sigmoid_pair(x)
    if activation == SIGMOID:
        return on, on * off
    return x, number(x, 1)


# --------------------------------------------------------------------------------------------------
# The logarithm

_TINY = np.float32(np.finfo(np.float32).tiny)
_HALF = np.float32(0.5)
_ROOT_HALF = np.float32(math.sqrt(0.5))
_LN2 = np.float32(math.log(2))
# log(1 + r) = r - r^2 / 2 + r^3 (L0 + L1 r + ... + L8 r^8) for 1 + r between the roots of 1/2 and
# of 2, fitted for the smallest relative error: 7.5e-10.
_L0 = np.float32(0.3333331260388067)
_L1 = np.float32(-0.25000009601361484)
_L2 = np.float32(0.20002118671386027)
_L3 = np.float32(-0.1666799576319491)
_L4 = np.float32(0.14219552053207166)
_L5 = np.float32(-0.12405590234803066)
_L6 = np.float32(0.118881656810922)
_L7 = np.float32(-0.11675645691231991)
_L8 = np.float32(0.06746625977511554)


@intrinsic
def _exponent(typing, x):
    """The integer n of a positive float32 `x = m 2^n` with m in [1/2, 1), as a float32."""

    def generate(context, builder, signature, arguments):
        i32 = ir.IntType(32)
        bits = builder.lshr(builder.bitcast(arguments[0], i32), ir.Constant(i32, 23))
        return builder.sitofp(builder.sub(bits, ir.Constant(i32, 126)), ir.FloatType())

    return types.float32(types.float32), generate


@intrinsic
def _fraction(typing, x):
    """The m of a positive float32 `x = m 2^n` with m in [1/2, 1)."""

    def generate(context, builder, signature, arguments):
        i32 = ir.IntType(32)
        bits = builder.and_(builder.bitcast(arguments[0], i32), ir.Constant(i32, 0x007FFFFF))
        return builder.bitcast(builder.or_(bits, ir.Constant(i32, 0x3F000000)), ir.FloatType())

    return types.float32(types.float32), generate


def log_of_gate(x):
    """`log(x)` for x in [0, 1]; below the smallest normal number it is that number's logarithm."""
    return math.log(max(x, np.finfo(np.float64).tiny))


@overload(log_of_gate, inline="always", jit_options=OPTIONS)
def _log_of_gate(x):
    if x == types.float64:
        tiny = np.finfo(np.float64).tiny
        return lambda x: math.log(select(x < tiny, tiny, x))

    def single(x):
        # x = m 2^n with m between the roots of 1/2 and 2, so that the series is short.
        normal = select(x < _TINY, _TINY, x)
        half = _fraction(normal)
        small = half < _ROOT_HALF
        r = select(small, half + half, half) - _ONE
        n = _exponent(normal)
        n = select(small, n - _ONE, n)
        high = _L4 + r * (_L5 + r * (_L6 + r * (_L7 + r * _L8)))
        series = _L0 + r * (_L1 + r * (_L2 + r * (_L3 + r * high)))
        # The last term is 0, or NaN where x is.
        return n * _LN2 + (r - r * r * (_HALF - r * series)) + (x - x)

    return single
