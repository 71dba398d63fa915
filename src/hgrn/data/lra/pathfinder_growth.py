"""Grows Pathfinder contours, in code that Numba compiles: hundreds are begun for one that fits.

A zone is the map of what paddles claim, float64 [size + 2r, size + 2r]; its frame is as wide as a
stamp reaches, so that no stamp is cut. A contour is int64 [P + 1, 5]: y, x and orientation of each
paddle (the last row has none), and y, x of the turns, which are start, pivots and end.
"""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np

TRIALS = 3  # places tried for one paddle
DISTRACTOR_TRIALS = 5
FULL = 1.8  # the greatest sum of two claims on a pixel: zones may share their faded edges only
CLAIMED = 0.3  # from here on a pixel counts as claimed
FREE_SHARE = 0.01  # with less of the image free, no distractor is begun


class Tables(NamedTuple):
    """What growing looks up, for one margin.

    O orientations are numbered: first the 360 of a first paddle, then the K of later ones.

    circle: int [K, 2], where a later paddle may end, from its pivot. weights: [O, K], how likely
    each end is after a paddle of orientation o. zones: [O, S, S], the claim of a paddle. disc: int
    [M, 2], the pixels around an end that must be free. ahead: [O, 2], the step from pivot to pivot.
    head, back: [360, 2], the steps from the start of a first paddle to its end, and from there to
    its pivot; the ends of steps are rounded up. keep_out: int [sum, 2], the pixels that must be
    free for a first paddle, those of orientation o before keep_out_ends[o]. usable: bool [360], the
    orientations in which a contour may begin.
    """

    circle: np.ndarray
    weights: np.ndarray
    zones: np.ndarray
    disc: np.ndarray
    ahead: np.ndarray
    head: np.ndarray
    back: np.ndarray
    keep_out: np.ndarray
    keep_out_ends: np.ndarray
    usable: np.ndarray


@cache
def growth() -> tuple[Callable, Callable]:
    """The functions `_grow_targets` and `_grow_distractors`, compiled; Numba keeps them on disk."""
    from numba import njit

    # Numba is slow to import, and readers of images need none of this, so there are no decorators.
    # Compiled functions find each other by their global names, so those must be the compiled ones.
    for name in (
        *("_random_below", "_claim", "_collides", "_moved", "_inside", "_extend", "_begin"),
        *("_free_start", "_begin_somewhere", "_begin_beside", "_grow_targets", "_grow_distractors"),
    ):
        plain = globals()[name]
        try:
            globals()[name] = njit(nogil=True, cache=True)(plain)
        except RuntimeError:  # Numba finds no folder that it can write to
            globals()[name] = njit(nogil=True)(plain)
    return _grow_targets, _grow_distractors


def _random_below(state, limit):
    """SplitMix64 (Steele, Lea and Flood, 2014), as a float in [0, limit)."""
    state[0] += np.uint64(0x9E3779B97F4A7C15)
    value = state[0]
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    value ^= value >> np.uint64(31)
    return (value >> np.uint64(11)) * (limit / 9007199254740992.0)


def _claim(zone, stamp, y, x):
    """Put the stamp of a paddle at (y, x) into a zone."""
    for row in range(stamp.shape[0]):
        for column in range(stamp.shape[1]):
            if stamp[row, column] > zone[y + row, x + column]:
                zone[y + row, x + column] = stamp[row, column]


def _collides(zone, stamp, y, x):
    """Whether a stamp at (y, x) overlaps with a claim."""
    for row in range(stamp.shape[0]):
        for column in range(stamp.shape[1]):
            if zone[y + row, x + column] + stamp[row, column] >= FULL:
                return True
    return False


def _moved(coordinate, step):
    """Where a step ends, rounded up."""
    return int(np.ceil(coordinate + step))


def _inside(y, x, size):
    return 0 <= y < size and 0 <= x < size


def _extend(state, tables, zone, size, rows, number):
    """Add paddle `number` to a contour; return whether there was room.

    Claims the zone of the paddle before it.
    """
    reach = tables.zones.shape[1] // 2
    before = rows[number - 1, 2]
    pivot_y = rows[number, 3] = _moved(rows[number - 1, 3], tables.ahead[before, 0])
    pivot_x = rows[number, 4] = _moved(rows[number - 1, 4], tables.ahead[before, 1])
    # Ends that go straight on are likely, and those near a claim are not; shares are cumulative.
    choices = tables.circle.shape[0]
    shares = np.zeros(choices)
    total = 0.0
    for choice in range(choices):
        y = pivot_y + tables.circle[choice, 0]
        x = pivot_x + tables.circle[choice, 1]
        if _inside(y, x, size) and tables.weights[before, choice] > 0:
            claimed = 0.0
            for place in range(tables.disc.shape[0]):
                near_y = y + tables.disc[place, 0] + reach
                near_x = x + tables.disc[place, 1] + reach
                claimed = max(claimed, zone[near_y, near_x])
            total += tables.weights[before, choice] * (1 - claimed)
        shares[choice] = total
    if total < 1e-4:
        return False
    # Draw an end until its paddle collides with nothing.
    for _ in range(TRIALS):
        wanted = _random_below(state, total)
        choice = 0
        while shares[choice] <= wanted:
            choice += 1
        y = pivot_y + tables.circle[choice, 0]
        x = pivot_x + tables.circle[choice, 1]
        orientation = tables.head.shape[0] + choice
        if not _collides(zone, tables.zones[orientation], y, x):
            _claim(zone, tables.zones[before], rows[number - 1, 0], rows[number - 1, 1])
            rows[number, 0] = y
            rows[number, 1] = x
            rows[number, 2] = orientation
            # The end, until a next paddle puts its pivot there.
            rows[number + 1, 3] = y
            rows[number + 1, 4] = x
            return True
    return False


def _begin(tables, size, rows, y, x, orientation):
    """Put the first paddle at (y, x); return whether its end and pivot are inside the image.

    Row 0 holds the pivot, which the second paddle needs. The start, which is the first turn, takes
    its place when the contour is complete.
    """
    head_y = _moved(y, tables.head[orientation, 0])
    head_x = _moved(x, tables.head[orientation, 1])
    pivot_y = _moved(head_y, tables.back[orientation, 0])
    pivot_x = _moved(head_x, tables.back[orientation, 1])
    rows[0, 0] = y
    rows[0, 1] = x
    rows[0, 2] = orientation
    rows[0, 3] = pivot_y
    rows[0, 4] = pivot_x
    return _inside(head_y, head_x, size) and _inside(pivot_y, pivot_x, size)


def _free_start(state, tables, zone, size, border, orientation):
    """A random free place for a first paddle, as y * size + x; -1 if there is none.

    border: pixels along the image's edge that the paddle keeps out of.
    """
    reach = tables.zones.shape[1] // 2
    start = tables.keep_out_ends[orientation - 1] if orientation > 0 else 0
    stop = tables.keep_out_ends[orientation]
    least_y = least_x = size
    most_y = most_x = -size
    for place in range(start, stop):
        least_y = min(least_y, tables.keep_out[place, 0])
        most_y = max(most_y, tables.keep_out[place, 0])
        least_x = min(least_x, tables.keep_out[place, 1])
        most_x = max(most_x, tables.keep_out[place, 1])
    free = np.empty(size * size, np.int64)
    count = 0
    # From places outside this range, all that must be free is in the border or outside the image.
    # In a usable orientation some of it is inside the image, so in the border: not free.
    for y in range(max(0, border - most_y), min(size, size - border - least_y)):
        for x in range(max(0, border - most_x), min(size, size - border - least_x)):
            good = True
            for place in range(start, stop):
                near_y = y + tables.keep_out[place, 0]
                near_x = x + tables.keep_out[place, 1]
                if _inside(near_y, near_x, size):
                    lined = (
                        near_y < border
                        or near_y >= size - border
                        or near_x < border
                        or near_x >= size - border
                    )
                    if lined or zone[near_y + reach, near_x + reach] > CLAIMED:
                        good = False
                        break
            if good:
                free[count] = y * size + x
                count += 1
    return free[int(_random_below(state, count))] if count else -1


def _begin_somewhere(state, tables, zone, size, border, rows):
    """Begin a contour at a random free place; return whether there was one."""
    for _ in range(TRIALS):
        orientation = int(_random_below(state, tables.head.shape[0]))
        if not tables.usable[orientation]:
            return False
        place = _free_start(state, tables, zone, size, border, orientation)
        if place < 0:
            return False
        if _begin(tables, size, rows, place // size, place % size, orientation):
            return True
    return False


def _begin_beside(state, tables, size, distance, other, rows):
    """Begin a contour at a distance from the start of another; return whether it is inside."""
    for _ in range(TRIALS):
        orientation = int(_random_below(state, tables.head.shape[0]))
        angle = int(_random_below(state, 360)) * (np.pi / 180)
        y = int(np.rint(other[0, 0] + distance * np.sin(angle)))
        x = int(np.rint(other[0, 1] + distance * np.cos(angle)))
        if _begin(tables, size, rows, y, x, orientation):
            return True
    return False


def _grow_targets(state, tables, size, padding, distance, length, limit):
    """Two long contours: their zone, the contours, and how many pairs were begun.

    limit: how many pairs are begun at most; limit + 1 is returned if none fitted.
    """
    reach = tables.zones.shape[1] // 2
    zone = np.zeros((size + 2 * reach, size + 2 * reach), np.float64)
    contours = np.zeros((2, length + 1, 5), np.int64)
    for begun in range(1, limit + 1):
        # Everything is claimed but the image without its padding.
        zone[:] = 0
        zone[reach : reach + size, reach : reach + size] = 1
        zone[reach + padding : reach + size - padding, reach + padding : reach + size - padding] = 0
        good = _begin_somewhere(
            state, tables, zone, size, 2 * distance, contours[0]
        ) and _begin_beside(state, tables, size, distance, contours[0], contours[1])
        # Both grow in turns, a paddle each.
        number = 1
        while good and number < length:
            good = _extend(state, tables, zone, size, contours[0], number) and _extend(
                state, tables, zone, size, contours[1], number
            )
            number += 1
        if good:
            # As in the original, the zone of the last paddle of the first contour is never claimed.
            last = contours[1, length - 1]
            _claim(zone, tables.zones[last[2]], last[0], last[1])
            for contour in contours:
                contour[0, 3] = contour[0, 0]
                contour[0, 4] = contour[0, 1]
            return zone, contours, begun
    return zone, contours, limit + 1


def _grow_distractors(state, tables, zone, number, length):
    """Try `number` short contours; return those that found room, [found, length + 1, 5].

    Claims their zones.
    """
    reach = tables.zones.shape[1] // 2
    size = zone.shape[0] - 2 * reach
    contours = np.zeros((number, length + 1, 5), np.int64)
    found = 0
    for _ in range(number):
        for _ in range(DISTRACTOR_TRIALS):
            free = 0
            for y in range(reach, reach + size):
                for x in range(reach, reach + size):
                    free += zone[y, x] <= CLAIMED
            if free < FREE_SHARE * size * size:
                break
            # Claims go into a copy, which replaces the zone if the whole contour finds room.
            trial = zone.copy()
            rows = contours[found]
            good = _begin_somewhere(state, tables, trial, size, 1, rows)
            for paddle in range(1, length):
                good = good and _extend(state, tables, trial, size, rows, paddle)
            if good:
                last = rows[length - 1]
                _claim(trial, tables.zones[last[2]], last[0], last[1])
                zone[:] = trial
                rows[0, 3] = rows[0, 0]
                rows[0, 4] = rows[0, 1]
                found += 1
                break
    return contours[:found]
