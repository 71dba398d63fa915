"""A new option of a mixer is known wherever it changes numbers: no list of options forgets one."""

import inspect

import pytest

from hgrn.models.published.layouts import LAYOUTS
from hgrn.models.session import _MEANING
from hgrn.modules import HGRU, HGRN2Mixer
from hgrn.modules.watch import _OPTIONS


def options_of(mixer):
    return [name for name in inspect.signature(mixer).parameters if name != "dim"]


OPTIONS = options_of(HGRU)
# What the tensors of a model, their names and sizes tell; a fingerprint holds those as well.
TOLD_BY_TENSORS = {"bias", "gate_rank", "conv_size", "complex_state", "shared_theta"}


def test_a_session_belongs_to_a_model_with_the_same_options():
    # A bidirectional model has no sessions.
    forgotten = set(OPTIONS) - set(_MEANING) - TOLD_BY_TENSORS - {"bidirectional"}
    assert not forgotten, "add them to _MEANING (models/session.py)"


def test_compiled_steps_notice_a_changed_option():
    # Others change the tensors or modules, which are watched themselves.
    noticed = {*_OPTIONS, *TOLD_BY_TENSORS, "norm_type", "bidirectional"}
    noticed.add("norm_eps")  # "eps", as the norms call it
    assert "eps" in _OPTIONS
    assert not set(OPTIONS) - noticed, "add them to _OPTIONS (modules/watch.py)"
    noticed.add("head_dim")  # "heads"
    assert not set(options_of(HGRN2Mixer)) - noticed, "add them to _OPTIONS (modules/watch.py)"


@pytest.mark.parametrize(
    "layout", [x for x in LAYOUTS.values() if x.has], ids=lambda layout: layout.name
)
def test_a_published_layout_fixes_every_option_that_nothing_tells(layout):
    # The tensors of a norm tell its type, and a default of the configuration stands for the rest.
    told = TOLD_BY_TENSORS | {"norm_type", "norm_eps", "bidirectional", "head_dim"}
    mixer = {"hgru": HGRU, "hgrn2": HGRN2Mixer}[layout.fixed.get("mixer", "hgru")]
    known = {*layout.fixed, *layout.defaults, *layout.mixer_options} | told
    assert not set(options_of(mixer)) - known, (
        "add them to `fixed` of the layout (models/published/)"
    )
