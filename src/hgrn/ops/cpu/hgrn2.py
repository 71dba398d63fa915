"""The CPU kernels of HGRN2 around its scan: from projections to gates, and one whole position.

A row of `projected` `[R, 3 D]` holds query, forget gate and candidate before their activations
(equations in `hgrn.ops.hgrn2`). `complement` `[D]` is 1 - lower bound.
"""

from hgrn.ops.cpu.gates import (
    activated,
    activated_pair,
    log_of_gate,
    one_minus,
    select,
    sigmoid,
    sigmoid_pair,
)
from hgrn.ops.cpu.gla import copy, step_of_state
from hgrn.ops.cpu.language import Kernel, arithmetic, helper
from hgrn.ops.cpu.rows import number


@arithmetic
def _gate_pair(complement, forget):
    """The gate and 1 - gate. Neither is a difference where it is small."""
    on, off = sigmoid_pair(forget)
    write = complement * off
    small = one_minus(complement) + complement * on
    return select(on < off, small, one_minus(write)), write


@helper
def _inputs_row(call, width, query, forget, candidate, q, k, v, log_f):
    scale = call.scale[0]
    complement = call.complement
    for j in range(width):
        keep, write = _gate_pair(complement[j], forget[j])
        q[j] = scale * activated(call.query_act, query[j])
        k[j] = write
        v[j] = activated(call.candidate_act, candidate[j])
        log_f[j] = log_of_gate(keep)


@Kernel(
    constants="query_act candidate_act",
    numbers="rows block width projected_row",
    tensors="projected q k v",
    states="complement scale log_f",
)
def hgrn2_inputs(call, task):
    """Writes q, k, v and log_f `[R, D]`."""
    width = call.width
    for row in range(task * call.block, min((task + 1) * call.block, call.rows)):
        query = call.projected + row * call.projected_row
        to = row * width
        _inputs_row(
            call,
            width,
            query,
            query + width,
            query + 2 * width,
            call.q + to,
            call.k + to,
            call.v + to,
            call.log_f + to,
        )


# Each loop of a row's gradient has few rows. With all of them in one loop, the compiler would have
# to compare too many places for overlaps, and would take one element at a time.
@helper
def _back_activation(activation, width, scale, x, grad, grad_x):
    for j in range(width):
        _, slope = activated_pair(activation, x[j])
        grad_x[j] = scale * slope * grad[j]


@helper
def _back_gates(call, width, forget, grad_k, grad_log_f, grad_forget, grad_lower):
    complement = call.complement
    smallest = call.smallest[0]
    for j in range(width):
        on, off = sigmoid_pair(forget[j])
        keep, _ = _gate_pair(complement[j], forget[j])
        # A gate of 0 passes nothing on, so its gradient is 0 as well.
        inverse = number(keep, 1) / select(keep < smallest, smallest, keep)
        both = off * (grad_log_f[j] * inverse - grad_k[j])
        grad_forget[j] = complement[j] * on * both
        grad_lower[j] += both


@Kernel(
    constants="query_act candidate_act",
    numbers="rows block width projected_row grad_q_row grad_k_row grad_v_row",
    tensors="projected grad_q grad_k grad_v grad_projected",
    states="complement scale smallest grad_log_f grad_lower",
)
def hgrn2_inputs_backward(call, task):
    """Writes the gradient of `projected`. `grad_lower` `[tasks, D]` is a sum, and starts at 0."""
    width = call.width
    for row in range(task * call.block, min((task + 1) * call.block, call.rows)):
        query = call.projected + row * call.projected_row
        grad_query = call.grad_projected + row * 3 * width
        grad_q = call.grad_q + row * call.grad_q_row
        grad_v = call.grad_v + row * call.grad_v_row
        scale = call.scale[0]
        one = number(scale, 1)
        _back_activation(call.query_act, width, scale, query, grad_q, grad_query)
        _back_activation(
            call.candidate_act, width, one, query + 2 * width, grad_v, grad_query + 2 * width
        )
        _back_gates(
            call,
            width,
            query + width,
            call.grad_k + row * call.grad_k_row,
            call.grad_log_f + row * width,
            grad_query + width,
            call.grad_lower + task * width,
        )


@Kernel(
    constants="values query_act candidate_act",
    numbers="heads keys projected_row",
    tensors="projected y",
    states="complement scale state keep key query value total",
)
def hgrn2_step(call, task):
    """One position of HGRN2 from its projections, for one sequence and one head.

    `projected` `[N, 3 D]` holds query, forget gate and candidate before their activations,
    `complement` `[D]` is 1 - lower bound. keep, key, query, value and total are memory for the
    work, `[N, H, K]` each, with as many keys as values.
    """
    width = call.values
    channels = call.heads * width
    head = task % call.heads
    row = call.projected + (task // call.heads) * call.projected_row + head * width
    complement = call.complement + head * width
    keep = call.keep + task * width
    key = call.key + task * width
    query = call.query + task * width
    value = call.value + task * width
    total = call.total + task * width
    scale = call.scale[0]
    forget = row + channels
    candidate = row + 2 * channels
    for j in range(width):
        write = complement[j] * sigmoid(-forget[j])
        keep[j] = one_minus(write)
        key[j] = write
        query[j] = scale * activated(call.query_act, row[j])
        value[j] = activated(call.candidate_act, candidate[j])
    step_of_state(call, keep, key, query, value, call.state + task * width * width, total)
    copy(width, total, call.y + task * width)
