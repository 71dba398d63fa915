"""The CPU kernels of `gla_scan`: a matrix for a state in each head, read and written once a step.

    S_t = Diag(keep_t) S_{t-1} + key_t value_t^T,   y_t = query_t S_t,   keep_t = exp(log_f_t)

A state of 64 x 64 numbers stays in the first-level cache. So a step takes little more than the
arithmetic, and gates are multiplied as they come: none is ever divided out, or near 0 in a sum.

**Tasks.** A unit is one sequence and one head, with all time steps. A task carries out every
`call.tasks`-th unit, so that there are only as many tasks, with memory for their work, as keep all
threads busy.

**Shapes.** (N sequences, H heads, K keys, V values.) query, key and log_f are `[B, T, H, K]`, value
and y `[B, T, H, V]` with free strides of the first three axes; gradients and y are contiguous. The
forward holds states as `[N, H, K, V]` and walks along values. The backward holds them as
`[N, H, V, K]` and walks along keys, because three of its four sums run over values: so these add up
row by row, and only one sum runs along a row.
"""

from hgrn.ops.cpu.gates import exp_nonpositive
from hgrn.ops.cpu.language import Kernel, helper, summing
from hgrn.ops.cpu.rows import number, second

# The backward keeps the state before every so many steps, and computes those in between again:
CHUNK = 32
# for so many values at once, so that the states of a chunk fit into the second-level cache.
TILE = 32
_NUMBERS = (
    "steps heads units"
    " query_batch query_time query_head key_batch key_time key_head"
    " value_batch value_time value_head gate_batch gate_time gate_head"
)


@helper
def _place(call, unit):
    """What a unit covers: batch index, head, time range."""
    sequence = unit // call.heads
    head = unit % call.heads
    if call.bounds:
        return 0, head, call.bounds[sequence], call.bounds[sequence + 1]
    return sequence, head, 0, call.steps


@helper
def _query(call, batch, t, head):
    return call.query + (batch * call.query_batch + t * call.query_time + head * call.query_head)


@helper
def _key(call, batch, t, head):
    return call.key + (batch * call.key_batch + t * call.key_time + head * call.key_head)


@helper
def _value(call, batch, t, head):
    return call.value + (batch * call.value_batch + t * call.value_time + head * call.value_head)


@helper
def _gates(call, batch, t, head, keep):
    """Writes the gates of a step."""
    log_f = call.log_f + (batch * call.gate_batch + t * call.gate_time + head * call.gate_head)
    for j in range(call.keys):
        keep[j] = exp_nonpositive(log_f[j])


@helper
def _clear(width, row):
    for j in range(width):
        row[j] = 0


@helper
def copy(width, row, to):
    for j in range(width):
        to[j] = row[j]


# --------------------------------------------------------------------------------------------------
# Forward


@helper
def step_of_state(call, keep, key, query, value, state, total):
    """A step of the state `[K, V]`: each row decays, takes in its share of the value, is read."""
    for j in range(call.values):
        total[j] = 0
    for k in range(call.keys):
        keep_k = keep[k]
        key_k = key[k]
        query_k = query[k]
        row = state + k * call.values
        for j in range(call.values):
            new = keep_k * row[j] + key_k * value[j]
            row[j] = new
            total[j] += query_k * new


@Kernel(
    constants="values",
    numbers=_NUMBERS + " keys",
    tensors="query key value y",
    states="log_f state keep total",
    integers="bounds",
)
def gla_forward(call, task):
    """Writes y; `state` holds the initial states and is left with the final ones.

    Memory for the work: `keep` `[tasks, K]` and `total` `[tasks, V]`.
    """
    keep = call.keep + task * call.keys
    total = call.total + task * call.values
    for unit in range(task, call.units, call.tasks):
        batch, head, begin, end = _place(call, unit)
        state = call.state + unit * call.keys * call.values
        for t in range(begin, end):
            query = _query(call, batch, t, head)
            key = _key(call, batch, t, head)
            value = _value(call, batch, t, head)
            _gates(call, batch, t, head, keep)
            step_of_state(call, keep, key, query, value, state, total)
            y = call.y + ((batch * call.steps + t) * call.heads + head) * call.values
            copy(call.values, total, y)


# --------------------------------------------------------------------------------------------------
# Backward


@helper
def _advance(call, count, keep, key, value, state, after):
    """`count` rows of the state `[V, K]` after a step."""
    for v in range(count):
        given = value[v]
        row = state + v * call.keys
        new = after + v * call.keys
        for j in range(call.keys):
            new[j] = keep[j] * row[j] + key[j] * given


@helper
def _advance_here(call, keep, key, value, state):
    """Like `_advance` of all rows, in the place of the state before."""
    for v in range(call.values):
        given = value[v]
        row = state + v * call.keys
        for j in range(call.keys):
            row[j] = keep[j] * row[j] + key[j] * given


@summing
def _back(call, count, given, history, grad_state, grad_value, sums):
    """`count` rows of the state one step back.

    `grad_state` is the gradient of the state after the step, from later steps, and is left with
    that of the state before the step. `history` has the state before the step, and after it.
    """
    query, key, keep, value, grad_y = given
    sum_query, sum_key, sum_log_f = sums
    for v in range(count):
        given_value = value[v]
        given_grad = grad_y[v]
        before = history + v * call.keys
        after = before + TILE * call.keys
        row = grad_state + v * call.keys
        total = number(keep, 0)
        for j in range(call.keys):
            grad = row[j] + query[j] * given_grad
            passed = keep[j] * grad
            sum_query[j] += after[j] * given_grad
            sum_key[j] += grad * given_value
            total += grad * key[j]
            sum_log_f[j] += passed * before[j]
            row[j] = passed
        grad_value[v] = total


@helper
def _keep_points(call, unit, points, keep):
    """Writes the state before every chunk of a unit."""
    batch, head, begin, end = _place(call, unit)
    size = call.keys * call.values
    if call.initial:
        copy(size, call.initial + unit * size, points)
    else:
        _clear(size, points)
    for low in range(begin, end - CHUNK, CHUNK):
        copy(size, points, points + size)
        points = points + size
        for t in range(low, low + CHUNK):
            key = _key(call, batch, t, head)
            value = _value(call, batch, t, head)
            _gates(call, batch, t, head, keep)
            _advance_here(call, keep, key, value, points)


@helper
def _back_tile(call, batch, head, low, steps, v, width, point, grad_state, work):
    """The steps of a chunk back, for `width` values from number v on."""
    keys = call.keys
    history, keep, sum_query, sum_key = work
    rows = TILE * keys
    copy(width * keys, point + v * keys, history)
    for step in range(steps):
        key = _key(call, batch, low + step, head)
        value = _value(call, batch, low + step, head) + v
        before = history + step * rows
        _advance(call, width, keep + step * keys, key, value, before, before + rows)

    for step in range(steps - 1, -1, -1):
        t = low + step
        query = _query(call, batch, t, head)
        key = _key(call, batch, t, head)
        value = _value(call, batch, t, head) + v
        grad_y = call.grad_y + (
            batch * call.grad_y_batch + t * call.grad_y_time + head * call.grad_y_head + v
        )
        place = (batch * call.steps + t) * call.heads + head
        _back(
            call,
            width,
            (query, key, keep + step * keys, value, grad_y),
            history + step * rows,
            grad_state + v * keys,
            call.grad_value + (place * call.values + v),
            (sum_query + step * keys, sum_key + step * keys, call.grad_log_f + place * keys),
        )


@Kernel(
    constants="keys",
    numbers=_NUMBERS + " values grad_y_batch grad_y_time grad_y_head most",
    tensors="query key value grad_y grad_query grad_key grad_value",
    states="log_f initial grad_state grad_log_f points history keep sums",
    integers="bounds",
)
def gla_backward(call, task):
    """Writes gradients. `grad_state` holds the final states' and is left with the initial states'.

    Memory for the work: `points` `[tasks, most, V, K]`, where `most` is the largest number of
    chunks of a sequence, `history` `[tasks, CHUNK + 1, TILE, K]`, `keep` `[tasks, CHUNK, K]` and
    `sums` `[tasks, 2, CHUNK, K]`.
    """
    keys = call.keys
    size = keys * call.values
    points = call.points + task * call.most * size
    history = call.history + task * (CHUNK + 1) * TILE * keys
    keep = call.keep + task * CHUNK * keys
    sum_query = call.sums + task * 2 * CHUNK * keys
    sum_key = second(sum_query, CHUNK * keys)
    for unit in range(task, call.units, call.tasks):
        batch, head, begin, end = _place(call, unit)
        grad_state = call.grad_state + unit * size
        _keep_points(call, unit, points, keep)
        chunks = (end - begin + CHUNK - 1) // CHUNK
        for chunk in range(chunks - 1, -1, -1):
            low = begin + chunk * CHUNK
            steps = min(CHUNK, end - low)
            for step in range(steps):
                _gates(call, batch, low + step, head, keep + step * keys)
                place = (batch * call.steps + low + step) * call.heads + head
                _clear(keys, call.grad_log_f + place * keys)
            _clear(steps * keys, sum_query)
            _clear(steps * keys, sum_key)

            work = (history, keep, sum_query, sum_key)
            for v in range(0, call.values, TILE):
                width = min(TILE, call.values - v)
                point = points + chunk * size
                _back_tile(call, batch, head, low, steps, v, width, point, grad_state, work)

            for step in range(steps):
                place = (batch * call.steps + low + step) * call.heads + head
                copy(keys, sum_query + step * keys, call.grad_query + place * keys)
                copy(keys, sum_key + step * keys, call.grad_key + place * keys)
