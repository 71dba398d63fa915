"""The CPU kernels of the rest of a layer: layer norm with an output gate, and the gated linear unit.

A task is a block of rows; a row is one position with all of its channels, and stays in the first-level cache from one loop over it
to the next. The variant of a kernel is the activation of the gate.

Letters in the formulas: x the tensor that is normed, z the gate before its activation, u = (x - mean) / deviation, dy the gradient of
the output, `scale` and `shift` the norm's parameters.
"""

import math

from hgrn.ops.cpu.language import (
    Kernel,
    arithmetic,
    helper,
    itemsize,
    load,
    next_task,
    number,
    sigmoid,
    sigmoid_pair,
    store,
    summing,
)

IDENTITY = 0
SILU = 1
SIGMOID = 2
_ROWS = "rows block width"


@arithmetic
def _activation(variant, one, z):
    if variant == SILU:
        return z * sigmoid(one, z)
    if variant == SIGMOID:
        return sigmoid(one, z)
    return z


@arithmetic
def _activation_pair(variant, one, z):
    """The activation and its derivative."""
    on, off = sigmoid_pair(one, z)
    if variant == SILU:
        return z * on, on + z * on * off
    if variant == SIGMOID:
        return on, on * off
    return z, one


# ---------------------------------------------------------------------------------------------------------------------
# Layer norm with an output gate


@summing
def _sum(token, one, width, x):
    total = one - one
    for j in range(width):
        total += load(token, x, j, 0)
    return total


@summing
def _sum_of_squares(token, one, width, x, mean):
    total = one - one
    for j in range(width):
        away = load(token, x, j, 0) - mean
        total += away * away
    return total


@helper
def _gate(token, one, variant, width, x, z, gated):
    for j in range(width):
        store(
            one, gated, j, load(token, x, j, 0) * _activation(variant, one, load(token, z, j, 1)), 2
        )


@helper
def _norm(token, past, one, width, x, mean, inverse, scale, shift, y):
    """`past` is the dtype of x: what has been gated is of the state's dtype."""
    for j in range(width):
        u = (load(past, x, j, 0) - mean) * inverse
        store(token, y, j, u * load(one, scale, j, 1) + load(one, shift, j, 1), 2)


@helper
def _norm_and_gate(token, one, variant, width, x, z, mean, inverse, scale, shift, y):
    for j in range(width):
        u = (load(token, x, j, 0) - mean) * inverse
        normed = u * load(one, scale, j, 1) + load(one, shift, j, 1)
        store(token, y, j, normed * _activation(variant, one, load(token, z, j, 3)), 2)


@Kernel(_ROWS + " x x_row scale shift eps y")
def norm(call):
    """Layer norm alone, for inference: nothing is left for a backward."""
    token = call.token
    one = call.one
    width = call.width
    count = number(one, width)
    eps = load(one, call.eps, 0, 0)
    task = next_task(call)
    while task < call.tasks:
        for row in range(task * call.block, min((task + 1) * call.block, call.rows)):
            x = call.x + row * call.x_row
            mean = _sum(token, one, width, x) / count
            variance = _sum_of_squares(token, one, width, x, mean) / count
            inverse = one / math.sqrt(variance + eps)
            _norm(
                token,
                token,
                one,
                width,
                x,
                mean,
                inverse,
                call.scale,
                call.shift,
                call.y + row * width * itemsize(token),
            )
        task = next_task(call)


@Kernel(_ROWS + " gate_first x x_row z z_row scale shift eps y mean inverse scratch")
def gated_norm(call):
    """Leaves `[rows]` means and inverse deviations for the backward; `scratch` has a row for each task."""
    token = call.token
    one = call.one
    width = call.width
    size = itemsize(token)
    wide = itemsize(one)
    count = number(one, width)
    eps = load(one, call.eps, 0, 0)
    task = next_task(call)
    while task < call.tasks:
        gated = call.scratch + task * width * wide
        for row in range(task * call.block, min((task + 1) * call.block, call.rows)):
            x = call.x + row * call.x_row
            z = call.z + row * call.z_row
            y = call.y + row * width * size
            if call.gate_first:
                _gate(token, one, call.variant, width, x, z, gated)
                mean = _sum(one, one, width, gated) / count
                variance = _sum_of_squares(one, one, width, gated, mean) / count
                inverse = one / math.sqrt(variance + eps)
                _norm(token, one, one, width, gated, mean, inverse, call.scale, call.shift, y)
            else:
                mean = _sum(token, one, width, x) / count
                variance = _sum_of_squares(token, one, width, x, mean) / count
                inverse = one / math.sqrt(variance + eps)
                _norm_and_gate(
                    token, one, call.variant, width, x, z, mean, inverse, call.scale, call.shift, y
                )
            store(one, call.mean, row, mean, 0)
            store(one, call.inverse, row, inverse, 0)
        task = next_task(call)


@summing
def _back_after(
    token,
    one,
    variant,
    width,
    x,
    z,
    dy,
    mean,
    inverse,
    scale,
    shift,
    dz,
    dscale,
    dshift,
    slope,
    u_row,
):
    """For `y = norm(x) act(z)`: leaves `dL/du` and u in rows of their own, and returns the sums of both products."""
    first = second = one - one
    for j in range(width):
        a, da = _activation_pair(variant, one, load(token, z, j, 1))
        g = load(token, dy, j, 2)
        w = load(one, scale, j, 3)
        u = (load(token, x, j, 0) - mean) * inverse
        store(token, dz, j, g * da * (u * w + load(one, shift, j, 3)), 4)
        store(one, dscale, j, load(one, dscale, j, 5) + g * a * u, 5)
        store(one, dshift, j, load(one, dshift, j, 6) + g * a, 6)
        du = g * a * w
        store(one, slope, j, du, 7)
        store(one, u_row, j, u, 8)
        first += du
        second += du * u
    return first, second


@summing
def _back_before(
    token,
    one,
    variant,
    width,
    x,
    z,
    dy,
    mean,
    inverse,
    scale,
    dscale,
    dshift,
    slope,
    u_row,
    a_row,
    da_row,
):
    """For `y = norm(x act(z))`: as `_back_after`, and leaves the gate and its derivative too."""
    first = second = one - one
    for j in range(width):
        a, da = _activation_pair(variant, one, load(token, z, j, 1))
        g = load(token, dy, j, 2)
        u = (load(token, x, j, 0) * a - mean) * inverse
        store(one, dscale, j, load(one, dscale, j, 5) + g * u, 5)
        store(one, dshift, j, load(one, dshift, j, 6) + g, 6)
        du = g * load(one, scale, j, 3)
        store(one, slope, j, du, 7)
        store(one, u_row, j, u, 8)
        store(one, a_row, j, a, 9)
        store(one, da_row, j, da, 10)
        first += du
        second += du * u
    return first, second


@helper
def _finish_after(token, one, width, inverse, first, second, slope, u_row, dx):
    for j in range(width):
        store(
            token,
            dx,
            j,
            inverse * (load(one, slope, j, 0) - first - load(one, u_row, j, 1) * second),
            2,
        )


@helper
def _finish_before(
    token, one, width, inverse, first, second, slope, u_row, a_row, da_row, x, dx, dz
):
    for j in range(width):
        dv = inverse * (load(one, slope, j, 0) - first - load(one, u_row, j, 1) * second)
        store(token, dx, j, dv * load(one, a_row, j, 2), 5)
        store(token, dz, j, dv * load(one, da_row, j, 3) * load(token, x, j, 4), 6)


@Kernel(
    _ROWS
    + " gate_first x x_row z z_row dy dy_row scale shift mean inverse dx dz dscale dshift scratch"
)
def gated_norm_backward(call):
    """dscale and dshift have a row for each task and start at 0; `scratch` has four."""
    token = call.token
    one = call.one
    width = call.width
    size = itemsize(token)
    wide = itemsize(one)
    count = number(one, width)
    task = next_task(call)
    while task < call.tasks:
        dscale = call.dscale + task * width * wide
        dshift = call.dshift + task * width * wide
        slope = call.scratch + 4 * task * width * wide
        u = slope + width * wide
        a = slope + 2 * width * wide
        da = slope + 3 * width * wide
        for row in range(task * call.block, min((task + 1) * call.block, call.rows)):
            x = call.x + row * call.x_row
            z = call.z + row * call.z_row
            dy = call.dy + row * call.dy_row
            dx = call.dx + row * width * size
            dz = call.dz + row * width * size
            mean = load(one, call.mean, row, 0)
            inverse = load(one, call.inverse, row, 0)
            if call.gate_first:
                first, second = _back_before(
                    token,
                    one,
                    call.variant,
                    width,
                    x,
                    z,
                    dy,
                    mean,
                    inverse,
                    call.scale,
                    dscale,
                    dshift,
                    slope,
                    u,
                    a,
                    da,
                )
                _finish_before(
                    token,
                    one,
                    width,
                    inverse,
                    first / count,
                    second / count,
                    slope,
                    u,
                    a,
                    da,
                    x,
                    dx,
                    dz,
                )
            else:
                first, second = _back_after(
                    token,
                    one,
                    call.variant,
                    width,
                    x,
                    z,
                    dy,
                    mean,
                    inverse,
                    call.scale,
                    call.shift,
                    dz,
                    dscale,
                    dshift,
                    slope,
                    u,
                )
                _finish_after(
                    token, one, width, inverse, first / count, second / count, slope, u, dx
                )
        task = next_task(call)


# ---------------------------------------------------------------------------------------------------------------------
# The gated linear unit


@helper
def _unit(token, one, variant, width, z, x, y):
    for j in range(width):
        store(
            token, y, j, _activation(variant, one, load(token, z, j, 0)) * load(token, x, j, 1), 2
        )


@helper
def _unit_back(token, one, variant, width, z, x, dy, dz, dx):
    for j in range(width):
        a, da = _activation_pair(variant, one, load(token, z, j, 0))
        g = load(token, dy, j, 2)
        store(token, dz, j, g * load(token, x, j, 1) * da, 3)
        store(token, dx, j, g * a, 4)


@Kernel(_ROWS + " x x_row y")
def gated_unit(call):
    """`act(z) x` of rows `[z | x]`; `width` is that of a half."""
    width = call.width
    size = itemsize(call.token)
    task = next_task(call)
    while task < call.tasks:
        for row in range(task * call.block, min((task + 1) * call.block, call.rows)):
            z = call.x + row * call.x_row
            _unit(
                call.token,
                call.one,
                call.variant,
                width,
                z,
                z + width * size,
                call.y + row * width * size,
            )
        task = next_task(call)


@Kernel(_ROWS + " x x_row dy dy_row dx")
def gated_unit_backward(call):
    """The gradient of `[z | x]`, laid out like it."""
    width = call.width
    size = itemsize(call.token)
    task = next_task(call)
    while task < call.tasks:
        for row in range(task * call.block, min((task + 1) * call.block, call.rows)):
            z = call.x + row * call.x_row
            dy = call.dy + row * call.dy_row
            dz = call.dx + 2 * row * width * size
            _unit_back(
                call.token,
                call.one,
                call.variant,
                width,
                z,
                z + width * size,
                dy,
                dz,
                dz + width * size,
            )
        task = next_task(call)
