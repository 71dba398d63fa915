"""The layouts of single layers, for `load_published`; whole models are built on them."""

from hgrn.models.published.record import (
    ANGLES,
    ANGLES_OF_ONE,
    HALVES,
    SAME,
    TAPS,
    Change,
    Layout,
    Line,
    linear,
)


def _hgru(candidate: Change, *angles: Line, low_rank: bool = False) -> tuple[Line, ...]:
    """A layer of the authors' hgru-pytorch. Its three input projections are one of ours."""
    first = ".0" if low_rank else ""
    second = [*linear("lambda_proj.1", "forget_up"), *linear("gate.1", "gate_up")]
    return (
        *linear("input_proj", "in_proj", candidate, 0),
        *linear(f"lambda_proj{first}", "in_proj", part=1),
        *linear(f"gate{first}", "in_proj", part=2),
        *(second if low_rank else ()),
        *linear("out_proj", "out_proj"),
        *linear("norm", "norm"),
        *angles,
    )


# Hgru1d (causal or not), Hgru2d
HGRU = Layout(name="hgru", lines=_hgru(HALVES, Line("theta", "theta", ANGLES)))
# Hgru1dV2, Hgru1dV3
HGRU_LOW_RANK = Layout(
    name="hgru-low-rank", lines=_hgru(HALVES, Line("theta", "theta", ANGLES), low_rank=True)
)
# BiHgru1d, BiHgru2d
BIHGRU = Layout(
    name="bihgru",
    lines=_hgru(
        HALVES,
        Line("theta_forward", "theta", ANGLES_OF_ONE, 0),
        Line("theta_reverse", "theta", ANGLES_OF_ONE, 1),
    ),
)
# HgruRealV6, HgruReal2d
HGRU_REAL = Layout(name="hgru-real", lines=_hgru(SAME))
# flash-linear-attention's HGRNAttention
FLA_LAYER = Layout(
    name="fla-layer",
    lines=(
        Line("i_proj.weight", "in_proj.weight", part=0),
        Line("f_proj.weight", "in_proj.weight", part=1),
        Line("g_proj.weight", "in_proj.weight", part=2),
        Line("i_conv1d.weight", "short_conv.weight", TAPS, 0),
        Line("f_conv1d.weight", "short_conv.weight", TAPS, 1),
        Line("g_norm.weight", "norm.weight"),
        Line("o_proj.weight", "out_proj.weight"),
    ),
)
# flash-linear-attention's HGRN2Attention
FLA_HGRN2_LAYER = Layout(
    name="fla-hgrn2-layer",
    lines=(
        Line("q_proj.weight", "in_proj.weight", part=0),
        Line("f_proj.weight", "in_proj.weight", part=1),
        Line("i_proj.weight", "in_proj.weight", part=2),
        Line("q_conv1d.weight", "short_conv.weight", TAPS, 0),
        Line("f_conv1d.weight", "short_conv.weight", TAPS, 1),
        Line("i_conv1d.weight", "short_conv.weight", TAPS, 2),
        Line("g_norm.weight", "norm.weight"),
        Line("o_proj.weight", "out_proj.weight"),
    ),
)

SINGLE_LAYERS = (HGRU, HGRU_LOW_RANK, BIHGRU, HGRU_REAL, FLA_LAYER, FLA_HGRN2_LAYER)
