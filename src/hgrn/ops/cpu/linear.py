"""The CPU kernels of linear maps for few rows of x, with weights as they are or in 8 bits.

At a batch of one, a step of a language model is the reading of its weights. So each row of the
weight is read once, from end to end, for all rows of x, which are few and stay in the cache. A task
is a block of rows of the weight.
"""

from hgrn.ops.cpu.language import Kernel, summing
from hgrn.ops.cpu.rows import number, prefetch

# How many bytes ahead of a row of the weight to prefetch: the processor's own prefetcher stops at
# the border of a page, and this is the size of a page.
_AHEAD = 4096


@summing
def _dot(width, weight, x):
    total = number(x, 0)
    for j in range(width):
        total += weight[j] * x[j]
    return total


@Kernel(
    numbers="rows block width batch x_row",
    tensors="x weight bias add y",
    overlapping="add y",
)
def linear(call, task):
    """`y[n, o] = sum_i weight[o, i] x[n, i] + bias[o] + add[n, o]`.

    bias and add may be absent, and add may be y.
    """
    for o in range(task * call.block, min((task + 1) * call.block, call.rows)):
        weight = call.weight + o * call.width
        bias = call.bias[o] if call.bias else number(call.bias, 0)
        prefetch(weight, call.width, after=_AHEAD)
        for n in range(call.batch):
            y = _dot(call.width, weight, call.x + n * call.x_row) + bias
            if call.add:
                y += call.add[n * call.rows + o]
            call.y[n * call.rows + o] = y


@Kernel(
    numbers="rows block width batch x_row",
    states="x scale bias add y",
    bytes="weight",
    overlapping="add y",
)
def int8_linear(call, task):
    """Like `linear` with the weight `scale[o] weight[o, i]`; all else has the dtype of states."""
    for o in range(task * call.block, min((task + 1) * call.block, call.rows)):
        weight = call.weight + o * call.width
        scale = call.scale[o]
        bias = call.bias[o] if call.bias else number(call.bias, 0)
        prefetch(weight, call.width, after=_AHEAD)
        for n in range(call.batch):
            y = scale * _dot(call.width, weight, call.x + n * call.x_row) + bias
            if call.add:
                y += call.add[n * call.rows + o]
            call.y[n * call.rows + o] = y
