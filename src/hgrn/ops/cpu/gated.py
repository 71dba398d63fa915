"""The CPU kernels of `gated_scan` and of its backward; tasks and letters as in `cpu_scan`."""

from hgrn.ops.cpu.language import (
    Kernel,
    exp_nonpositive,
    helper,
    itemsize,
    load,
    load_flag,
    next_task,
    prefetch,
    store,
)
from hgrn.ops.cpu.scan import LAYOUT, PIECE, clear, scan_task

_INPUTS = " log_f log_f_outer log_f_time log_f_inner cos sin"


@helper
def _gated_real(token, one, width, x, log_f, state, h):
    for j in range(width):
        s = exp_nonpositive(load(token, log_f, j, 1)) * load(one, state, j, 3) + load(
            token, x, j, 0
        )
        store(one, state, j, s, 3)
        store(token, h, j, s, 4)


@helper
def _gated_complex(token, one, width, size, wide, x, log_f, cos, sin, state, h):
    for j in range(width):
        decay = exp_nonpositive(load(token, log_f, j, 1))
        c = load(one, cos, j, 2)
        s = load(one, sin, j, 2)
        re = load(one, state, j, 3)
        im = load(one, state + wide, j, 5)
        new_re = decay * (c * re - s * im) + load(token, x, j, 0)
        new_im = decay * (s * re + c * im) + load(token, x + size, j, 0)
        store(one, state, j, new_re, 3)
        store(one, state + wide, j, new_im, 5)
        store(token, h, j, new_re, 4)
        store(token, h + size, j, new_im, 6)


@helper
def _held(token, one, width, x, state, h):
    """A masked position: the state is held, and what the caller left in x is added."""
    for j in range(width):
        s = load(one, state, j, 3) + load(token, x, j, 0)
        store(one, state, j, s, 3)
        store(token, h, j, s, 4)


@Kernel(LAYOUT + " x x_outer x_time x_inner state h" + _INPUTS)
def gated_scan(call):
    """`state` holds the initial states and is left with the final ones."""
    token = call.token
    one = call.one
    parts = call.variant
    size = itemsize(token)
    wide = itemsize(one)
    inner = call.inner
    reverse = call.reverse != 0
    part = size * call.channels
    wide_part = wide * call.channels
    task = next_task(call)
    while task < call.tasks:
        sequence, outer, i, start, width, begin, end = scan_task(call, task)
        s = call.state + wide * ((sequence * inner + i) * call.channels * parts + start)
        cos = call.cos + wide * start
        sin = call.sin + wide * start
        first = outer * call.steps * inner + i
        x = call.x + outer * call.x_outer + i * call.x_inner + size * start
        log_f = call.log_f + outer * call.log_f_outer + i * call.log_f_inner + size * start
        ahead = -1 if reverse else 1
        for step in range(end - begin):
            t = end - 1 - step if reverse else begin + step
            x_row = x + t * call.x_time
            f_row = log_f + t * call.log_f_time
            h_row = call.h + part * parts * (first + t * inner) + size * start
            if call.mask != 0 and not load_flag(call.mask, first + t * inner):
                for k in range(parts):
                    _held(token, one, width, x_row + k * part, s + k * wide_part, h_row + k * part)
                continue
            x_next = x_row + ahead * call.x_time
            f_next = f_row + ahead * call.log_f_time
            for j in range(0, width, PIECE):
                n = min(PIECE, width - j)
                at = j * size
                y = j * wide
                prefetch(f_next + at, n * size)
                for k in range(parts):
                    prefetch(x_next + k * part + at, n * size)
                if parts == 1:
                    _gated_real(token, one, n, x_row + at, f_row + at, s + y, h_row + at)
                else:
                    _gated_complex(
                        token,
                        one,
                        n,
                        part,
                        wide_part,
                        x_row + at,
                        f_row + at,
                        cos + y,
                        sin + y,
                        s + y,
                        h_row + at,
                    )
        task = next_task(call)


# ---------------------------------------------------------------------------------------------------------------------
# Backward


@helper
def _back_real(token, past, one, width, log_f, before, grad_h, g_row, grad_x, grad_f):
    """`past` is the dtype of the row `before` that holds h_{t-1}: the initial state's is the state dtype."""
    for j in range(width):
        decay = exp_nonpositive(load(token, log_f, j, 1))
        g = load(one, g_row, j, 5) + load(token, grad_h, j, 4)
        through = decay * g
        store(one, g_row, j, through, 5)
        store(token, grad_x, j, g, 6)
        store(token, grad_f, j, through * load(past, before, j, 3), 7)


@helper
def _back_complex(
    token,
    past,
    one,
    width,
    size,
    past_size,
    wide,
    log_f,
    cos,
    sin,
    before,
    grad_h,
    g_row,
    grad_x,
    grad_f,
    grad_theta,
):
    for j in range(width):
        decay = exp_nonpositive(load(token, log_f, j, 1))
        c = load(one, cos, j, 2)
        s = load(one, sin, j, 2)
        g_re = load(one, g_row, j, 5) + load(token, grad_h, j, 4)
        g_im = load(one, g_row + wide, j, 9) + load(token, grad_h + size, j, 4)
        re = load(past, before, j, 3)
        im = load(past, before + past_size, j, 3)
        turned_re = c * re - s * im
        turned_im = s * re + c * im
        store(one, g_row, j, decay * (c * g_re + s * g_im), 5)
        store(one, g_row + wide, j, decay * (c * g_im - s * g_re), 9)
        store(token, grad_x, j, g_re, 6)
        store(token, grad_x + size, j, g_im, 10)
        store(token, grad_f, j, decay * (g_re * turned_re + g_im * turned_im), 7)
        to_angle = decay * (g_im * turned_re - g_re * turned_im)
        store(one, grad_theta, j, load(one, grad_theta, j, 11) + to_angle, 11)


@helper
def _back_held(token, one, width, grad_h, g_row, grad_x):
    """A masked position: the gradient passes to x and to the position before as it is."""
    for j in range(width):
        g = load(one, g_row, j, 5) + load(token, grad_h, j, 4)
        store(one, g_row, j, g, 5)
        store(token, grad_x, j, g, 6)


@Kernel(
    LAYOUT
    + _INPUTS
    + " initial h grad_h grad_h_outer grad_h_time grad_h_inner g grad_x grad_log_f grad_theta"
)
def gated_scan_backward(call):
    """`g` holds the final states' gradients and is left with the initial states'.

    grad_theta is the sum over time for each sequence and inner index, `[N, I, D]`, and starts at 0.
    """
    token = call.token
    one = call.one
    parts = call.variant
    size = itemsize(token)
    wide = itemsize(one)
    inner = call.inner
    reverse = call.reverse != 0
    part = size * call.channels
    wide_part = wide * call.channels
    task = next_task(call)
    while task < call.tasks:
        sequence, outer, i, start, width, begin, end = scan_task(call, task)
        row = (sequence * inner + i) * call.channels
        s0 = call.initial + wide * (row * parts + start)
        g_row = call.g + wide * (row * parts + start)
        gt = call.grad_theta + wide * (row + start)
        cos = call.cos + wide * start
        sin = call.sin + wide * start
        log_f = call.log_f + outer * call.log_f_outer + i * call.log_f_inner + size * start
        grad_h = call.grad_h + outer * call.grad_h_outer + i * call.grad_h_inner + size * start
        first = outer * call.steps * inner + i
        h = call.h + part * parts * first + size * start
        grad_x = call.grad_x + part * parts * first + size * start
        grad_f = call.grad_log_f + part * first + size * start
        back = 1 if reverse else -1
        for step in range(end - begin):
            t = begin + step if reverse else end - 1 - step
            dh = grad_h + t * call.grad_h_time
            dx = grad_x + t * inner * part * parts
            df = grad_f + t * inner * part
            if call.mask != 0 and not load_flag(call.mask, first + t * inner):
                for k in range(parts):
                    _back_held(
                        token, one, width, dh + k * part, g_row + k * wide_part, dx + k * part
                    )
                clear(token, one, width, df)
                continue
            f_row = log_f + t * call.log_f_time
            before = h + (t + back) * inner * part * parts
            f_next = f_row + back * call.log_f_time
            dh_next = dh + back * call.grad_h_time
            before_next = before + back * inner * part * parts
            entering = step == end - begin - 1
            for j in range(0, width, PIECE):
                n = min(PIECE, width - j)
                x = j * size
                y = j * wide
                prefetch(f_next + x, n * size)
                for k in range(parts):
                    prefetch(dh_next + k * part + x, n * size)
                    prefetch(before_next + k * part + x, n * size)
                if parts == 2 and entering:
                    _back_complex(
                        token,
                        one,
                        one,
                        n,
                        part,
                        wide_part,
                        wide_part,
                        f_row + x,
                        cos + y,
                        sin + y,
                        s0 + y,
                        dh + x,
                        g_row + y,
                        dx + x,
                        df + x,
                        gt + y,
                    )
                elif parts == 2:
                    _back_complex(
                        token,
                        token,
                        one,
                        n,
                        part,
                        part,
                        wide_part,
                        f_row + x,
                        cos + y,
                        sin + y,
                        before + x,
                        dh + x,
                        g_row + y,
                        dx + x,
                        df + x,
                        gt + y,
                    )
                elif entering:
                    _back_real(
                        token, one, one, n, f_row + x, s0 + y, dh + x, g_row + y, dx + x, df + x
                    )
                else:
                    _back_real(
                        token,
                        token,
                        one,
                        n,
                        f_row + x,
                        before + x,
                        dh + x,
                        g_row + y,
                        dx + x,
                        df + x,
                    )
        task = next_task(call)
