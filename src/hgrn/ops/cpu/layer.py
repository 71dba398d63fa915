"""The CPU kernels for the rest of a layer: layer norm with an output gate, gated linear unit.

A task is a block of rows. A row is one position with all of its channels. It stays in the
first-level cache from one loop over it to the next, so that norm, activation and product cost one
pass over memory. The constant `activation` says which function the gate goes through.

With `normed = (x - mean) / deviation` per row, the norm is one of two, as `gate_first` says:

    y = act(gate) (normed weight + bias)                           x itself is normed
    y = normed weight + bias                                       act(gate) x is normed

**Backward of a norm.** With `slope` the gradient of `normed` the gradient of what is normed is

    (slope - mean(slope) - normed mean(slope normed)) / deviation

The two means need the whole row. So a first loop leaves `slope` and `normed` in rows of their own
and returns both sums, and a second loop finishes.
"""

import math

from hgrn.ops.cpu.gates import activated, activated_pair
from hgrn.ops.cpu.language import Kernel, helper, summing
from hgrn.ops.cpu.rows import number, second

# --------------------------------------------------------------------------------------------------
# Layer norm with an output gate, forward


@summing
def _sum(width, x):
    total = number(x, 0)
    for j in range(width):
        total += x[j]
    return total


@summing
def _sum_of_squares(width, x, mean):
    total = number(x, 0)
    for j in range(width):
        away = x[j] - mean
        total += away * away
    return total


@helper
def _statistics(width, x, eps):
    """The mean of a row, and 1 / its standard deviation."""
    count = number(x, width)
    mean = _sum(width, x) / count
    variance = _sum_of_squares(width, x, mean) / count
    return mean, number(x, 1) / math.sqrt(variance + eps)


@helper
def _gate(call, width, x, gate, gated):
    for j in range(width):
        gated[j] = x[j] * activated(call.activation, gate[j])


@helper
def _norm(width, x, mean, inverse, weight, bias, y):
    for j in range(width):
        normed = (x[j] - mean) * inverse
        y[j] = normed * weight[j] + bias[j]


@helper
def _norm_and_gate(call, width, x, gate, mean, inverse, weight, bias, y):
    for j in range(width):
        normed = (x[j] - mean) * inverse
        y[j] = (normed * weight[j] + bias[j]) * activated(call.activation, gate[j])


@helper
def _inverse_root(width, x, eps):
    """1 / the root of the mean square of a row."""
    count = number(x, width)
    return number(x, 1) / math.sqrt(_sum_of_squares(width, x, number(x, 0)) / count + eps)


@Kernel(numbers="rows block width centred x_row", tensors="x y", states="weight bias eps")
def norm(call, task):
    """Layer norm alone, or RMS norm if not `centred`, for inference: nothing for a backward."""
    width = call.width
    for row in range(task * call.block, min((task + 1) * call.block, call.rows)):
        x = call.x + row * call.x_row
        if call.centred:
            mean, inverse = _statistics(width, x, call.eps[0])
        else:
            mean = number(x, 0)
            inverse = _inverse_root(width, x, call.eps[0])
        _norm(width, x, mean, inverse, call.weight, call.bias, call.y + row * width)


@Kernel(
    constants="activation",
    numbers="rows block width gate_first x_row gate_row",
    tensors="x gate y",
    states="weight bias eps mean inverse gated",
)
def gated_norm(call, task):
    """Leaves `mean` and `inverse` `[rows]` for the backward. `gated` has a row for each task."""
    width = call.width
    gated = call.gated + task * width
    for row in range(task * call.block, min((task + 1) * call.block, call.rows)):
        x = call.x + row * call.x_row
        gate = call.gate + row * call.gate_row
        y = call.y + row * width
        if call.gate_first:
            # The product stays in the dtype of states: it is read three times, and never rounded.
            _gate(call, width, x, gate, gated)
            mean, inverse = _statistics(width, gated, call.eps[0])
            _norm(width, gated, mean, inverse, call.weight, call.bias, y)
        else:
            mean, inverse = _statistics(width, x, call.eps[0])
            _norm_and_gate(call, width, x, gate, mean, inverse, call.weight, call.bias, y)
        call.mean[row] = mean
        call.inverse[row] = inverse


# --------------------------------------------------------------------------------------------------
# Layer norm with an output gate, backward


@summing
def _back_after(
    call,
    width,
    x,
    gate,
    grad,
    mean,
    inverse,
    grad_gate,
    grad_weight,
    grad_bias,
    slope,
    normed,
):
    """The first loop where the gate comes after the norm. It finishes the gradient of the gate."""
    weight = call.weight
    bias = call.bias
    total = total_of_products = number(slope, 0)
    for j in range(width):
        act, act_slope = activated_pair(call.activation, gate[j])
        g = grad[j]
        w = weight[j]
        u = (x[j] - mean) * inverse
        grad_gate[j] = g * act_slope * (u * w + bias[j])
        grad_weight[j] += g * act * u
        grad_bias[j] += g * act
        du = g * act * w
        slope[j] = du
        normed[j] = u
        total += du
        total_of_products += du * u
    return total, total_of_products


@summing
def _back_before(
    call,
    width,
    x,
    gate,
    grad,
    mean,
    inverse,
    grad_weight,
    grad_bias,
    slope,
    normed,
    act_row,
    act_slope_row,
):
    """The first loop where `act(gate) x` is normed. It keeps the activation and its derivative."""
    weight = call.weight
    total = total_of_products = number(slope, 0)
    for j in range(width):
        act, act_slope = activated_pair(call.activation, gate[j])
        g = grad[j]
        u = (x[j] * act - mean) * inverse
        grad_weight[j] += g * u
        grad_bias[j] += g
        du = g * weight[j]
        slope[j] = du
        normed[j] = u
        act_row[j] = act
        act_slope_row[j] = act_slope
        total += du
        total_of_products += du * u
    return total, total_of_products


@helper
def _finish_after(width, inverse, mean_slope, mean_product, slope, normed, grad_x):
    for j in range(width):
        grad_x[j] = inverse * (slope[j] - mean_slope - normed[j] * mean_product)


@helper
def _finish_before(
    width,
    inverse,
    mean_slope,
    mean_product,
    slope,
    normed,
    act,
    act_slope,
    x,
    grad_x,
    grad_gate,
):
    for j in range(width):
        grad_gated = inverse * (slope[j] - mean_slope - normed[j] * mean_product)
        grad_x[j] = grad_gated * act[j]
        grad_gate[j] = grad_gated * act_slope[j] * x[j]


@Kernel(
    constants="activation",
    numbers="rows block width gate_first x_row gate_row grad_row",
    tensors="x gate grad grad_x grad_gate",
    states="weight bias mean inverse grad_weight grad_bias slope normed act act_slope",
)
def gated_norm_backward(call, task):
    """`grad_weight` and `grad_bias` have a row for each task and start at 0.

    So have `slope`, `normed`, `act` and `act_slope`, which pass values from the first loop to the
    second.
    """
    width = call.width
    count = number(call.slope, width)
    grad_weight = call.grad_weight + task * width
    grad_bias = call.grad_bias + task * width
    slope = call.slope + task * width
    normed = call.normed + task * width
    act = call.act + task * width
    act_slope = call.act_slope + task * width
    for row in range(task * call.block, min((task + 1) * call.block, call.rows)):
        x = call.x + row * call.x_row
        gate = call.gate + row * call.gate_row
        grad = call.grad + row * call.grad_row
        grad_x = call.grad_x + row * width
        grad_gate = call.grad_gate + row * width
        mean = call.mean[row]
        inverse = call.inverse[row]
        if call.gate_first:
            total, products = _back_before(
                call,
                width,
                x,
                gate,
                grad,
                mean,
                inverse,
                grad_weight,
                grad_bias,
                slope,
                normed,
                act,
                act_slope,
            )
            _finish_before(
                width,
                inverse,
                total / count,
                products / count,
                slope,
                normed,
                act,
                act_slope,
                x,
                grad_x,
                grad_gate,
            )
        else:
            total, products = _back_after(
                call,
                width,
                x,
                gate,
                grad,
                mean,
                inverse,
                grad_gate,
                grad_weight,
                grad_bias,
                slope,
                normed,
            )
            _finish_after(width, inverse, total / count, products / count, slope, normed, grad_x)


# --------------------------------------------------------------------------------------------------
# The gated linear unit


@helper
def _unit(call, width, gate, up, y):
    for j in range(width):
        y[j] = activated(call.activation, gate[j]) * up[j]


@helper
def _unit_back(call, width, gate, up, grad, grad_gate, grad_up):
    for j in range(width):
        act, act_slope = activated_pair(call.activation, gate[j])
        g = grad[j]
        grad_gate[j] = g * up[j] * act_slope
        grad_up[j] = g * act


@Kernel(constants="activation", numbers="rows block width x_row", tensors="x y")
def gated_unit(call, task):
    """`act(gate) up` of rows `[gate | up]`; `width` is that of a half."""
    width = call.width
    for row in range(task * call.block, min((task + 1) * call.block, call.rows)):
        gate = call.x + row * call.x_row
        _unit(call, width, gate, second(gate, width), call.y + row * width)


@Kernel(constants="activation", numbers="rows block width x_row grad_row", tensors="x grad grad_x")
def gated_unit_backward(call, task):
    """The gradient of `[gate | up]`, laid out like it."""
    width = call.width
    for row in range(task * call.block, min((task + 1) * call.block, call.rows)):
        gate = call.x + row * call.x_row
        grad_gate = call.grad_x + 2 * row * width
        up = second(gate, width)
        grad = call.grad + row * call.grad_row
        _unit_back(call, width, gate, up, grad, grad_gate, second(grad_gate, width))
