"""The CPU kernels of linear maps for few rows: with weights as they are, and with 8-bit weights that have a scale for each row.

A task is a block of rows of the weight. At a batch of one, a language model's step is the reading of its weights, so each row of
the weight is read once, end to end, for all rows of x, whose few rows stay in the cache.
"""

from hgrn.ops.cpu.language import (
    Kernel,
    itemsize,
    load,
    load_byte,
    next_task,
    prefetch,
    store,
    summing,
)

_AHEAD = 4096  # bytes: the processor's own prefetcher stops at the border of a page


@summing
def _dot(token, one, width, weight, x):
    total = one - one
    for j in range(width):
        total += load(token, weight, j, 1) * load(token, x, j, 0)
    return total


@summing
def _dot_int8(one, width, weight, x):
    total = one - one
    for j in range(width):
        total += load_byte(one, weight, j) * load(one, x, j, 0)
    return total


@Kernel("rows block width batch x x_row weight bias add y")
def linear(call):
    """`y[n, o] = sum_i weight[o, i] x[n, i] + bias[o] + add[n, o]`, all of one dtype; bias and add may be absent, add may be y."""
    token = call.token
    one = call.one
    width = call.width
    row_size = width * itemsize(token)
    task = next_task(call)
    while task < call.tasks:
        for row in range(task * call.block, min((task + 1) * call.block, call.rows)):
            shift = load(token, call.bias, row, 0) if call.bias != 0 else one - one
            prefetch(call.weight + row * row_size + _AHEAD, row_size)
            for n in range(call.batch):
                y = (
                    _dot(token, one, width, call.weight + row * row_size, call.x + n * call.x_row)
                    + shift
                )
                if call.add != 0:
                    y += load(token, call.add, n * call.rows + row, 2)
                store(token, call.y, n * call.rows + row, y, 2)
        task = next_task(call)


@Kernel("rows block width batch x x_row weight scale bias add y")
def int8_linear(call):
    """As `linear` with `scale[o] weight[o, i]` for the weight; all else is of the state's dtype."""
    one = call.one
    width = call.width
    task = next_task(call)
    while task < call.tasks:
        for row in range(task * call.block, min((task + 1) * call.block, call.rows)):
            weight = call.weight + row * width
            scale = load(one, call.scale, row, 0)
            prefetch(weight + _AHEAD, width)
            shift = load(one, call.bias, row, 0) if call.bias != 0 else one - one
            for n in range(call.batch):
                y = scale * _dot_int8(one, width, weight, call.x + n * call.x_row) + shift
                if call.add != 0:
                    y += load(one, call.add, n * call.rows + row, 1)
                store(one, call.y, n * call.rows + row, y, 1)
        task = next_task(call)
