"""Published checkpoint layouts, in and out.

A layout is a table of lines (published name, our name, change of the tensor), `{n}` standing for a layer
number, `{2n}` and `{2n+1}` for those of its halves where they are counted. Every change only moves numbers, so in and out
again gives the same bits, and a gradient converts like its parameter.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hgrn.errors import UserError
from hgrn.modules import sinusoids


class ConversionError(UserError):
    """A checkpoint has not the names, shapes or values that its layout or the model asks for."""


class Change(NamedTuple):
    """How a tensor changes on the way in and on the way out."""

    load: Callable[[Tensor], Tensor]
    save: Callable[[Tensor], Tensor]


SAME = Change(lambda x: x, lambda x: x)
# Rows (Re, Im, Re, Im, ...) become (all Re, all Im).
HALVES = Change(
    lambda x: torch.cat([x[0::2], x[1::2]]),
    lambda x: torch.stack(x.chunk(2), dim=1).flatten(0, 1),
)
ANGLES = Change(lambda x: x.flatten(), lambda x: x.flatten()[None, None])
ANGLES_OF_ONE = Change(lambda x: x.flatten()[None], lambda x: x.flatten()[None, None])
# gamma^k is P_2 + ... + P_k there and P_1 + ... + P_{k-1} here: the same bounds from rows moved by one
# (see docs/maths.md).
ROLL = Change(lambda x: x.roll(-1, 0), lambda x: x.roll(1, 0))
# A depthwise convolution's weight has an axis of one input channel there.
TAPS = Change(lambda x: x.flatten(1), lambda x: x[:, None])


def _check_sinusoids(table: Tensor) -> Tensor:
    """Authors make the table in float32, whose angles are off by up to 1e-3 radians at position 16384."""
    length, dim = table.shape
    expected = sinusoids(torch.arange(length, device=table.device), dim, torch.float64)
    if not torch.allclose(table.double(), expected, rtol=0, atol=5e-3):
        raise ConversionError(
            "is not the fixed table of sines and cosines that a model with sinusoidal_positions adds"
        )
    return table


SINUSOIDS = Change(_check_sinusoids, lambda x: x)


class Line(NamedTuple):
    """One tensor. `ours` is None if it holds no weights; `part` counts from 0 if it is only some of the rows of ours."""

    published: str
    ours: str | None
    change: Change = SAME
    part: int | None = None


def _linear(
    published: str, ours: str, change: Change = SAME, part: int | None = None
) -> list[Line]:
    """A linear map or a norm, with or without bias."""
    return [
        Line(f"{published}.{kind}", f"{ours}.{kind}", change, part) for kind in ("weight", "bias")
    ]


def _hgru(candidate: Change, *angles: Line, low_rank: bool = False) -> list[Line]:
    """A layer of the authors' hgru-pytorch; the three projections of its input are one of ours."""
    first = ".0" if low_rank else ""
    widened = (
        [*_linear("lambda_proj.1", "forget_up"), *_linear("gate.1", "gate_up")] if low_rank else []
    )
    return [
        *_linear("input_proj", "in_proj", candidate, 0),
        *_linear(f"lambda_proj{first}", "in_proj", part=1),
        *_linear(f"gate{first}", "in_proj", part=2),
        *widened,
        *_linear("out_proj", "out_proj"),
        *_linear("norm", "norm"),
        *angles,
    ]


def _under(published: str, ours: str, lines: Iterable[Line]) -> list[Line]:
    return [
        line._replace(published=published + line.published, ours=ours + line.ours) for line in lines
    ]


_COMPLEX = _hgru(HALVES, Line("theta", "theta", ANGLES))
_FLA = [
    Line("i_proj.weight", "in_proj.weight", part=0),
    Line("f_proj.weight", "in_proj.weight", part=1),
    Line("g_proj.weight", "in_proj.weight", part=2),
    Line("i_conv1d.weight", "short_conv.weight", TAPS, 0),
    Line("f_conv1d.weight", "short_conv.weight", TAPS, 1),
    Line("g_norm.weight", "norm.weight"),
    Line("o_proj.weight", "out_proj.weight"),
]

_BI = _hgru(
    HALVES,
    Line("theta_forward", "theta", ANGLES_OF_ONE, 0),
    Line("theta_reverse", "theta", ANGLES_OF_ONE, 1),
)


def _vit(hgru: list[Line]) -> list[Line]:
    """The authors' image models (OpenNLPLab/im); their table of bounds is ours as it is."""
    block = "model.stack.blocks.{n}."
    return [
        *_linear("to_patch_embedding.1", "model.embed_patches.proj"),
        Line("lower_bounds", "model.stack.bounds.logits"),
        *_under("layers.{n}.token_mixer.", f"{block}mixer.", hgru),
        *_linear("layers.{n}.token_norm", f"{block}mixer_norm"),
        *_linear("layers.{n}.feature_mixer.l1", f"{block}glu.gate_up_proj", part=0),
        *_linear("layers.{n}.feature_mixer.l2", f"{block}glu.gate_up_proj", part=1),
        *_linear("layers.{n}.feature_mixer.l3", f"{block}glu.down_proj"),
        *_linear("layers.{n}.feature_norm", f"{block}glu_norm"),
        *_linear("head.1", "score"),
    ]


def _norm(published: str, ours: str) -> list[Line]:
    """A norm that may be a batch norm."""
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    return [
        *_linear(published, ours),
        *(Line(f"{published}.{kind}", f"{ours}.{kind}") for kind in statistics),
    ]


def _lra(hgru: list[Line], is_image: bool, has_positions: bool) -> list[Line]:
    """The authors' Long Range Arena models (OpenNLPLab/lra), in which HGRU and GLU are layers each; their bounds are ours."""
    block = "model.stack.blocks.{n}."
    encoder = "encoder.0" if has_positions else "encoder"
    tokens = [Line(f"{encoder}.weight", "model.embed_tokens.weight")]
    return [
        *(_linear(encoder, "model.embed_patches.proj") if is_image else tokens),
        *([Line("encoder.1.pe", None, SINUSOIDS)] if has_positions else []),
        Line("model.lower_bounds", "model.stack.bounds.logits"),
        *_under("model.layers.{2n}.layer.hgru.", f"{block}mixer.", hgru),
        *_norm("model.layers.{2n}.norm.norm", f"{block}mixer_norm"),
        *_linear("model.layers.{2n+1}.layer.l1", f"{block}glu.gate_up_proj", part=0),
        *_linear("model.layers.{2n+1}.layer.l2", f"{block}glu.gate_up_proj", part=1),
        *_linear("model.layers.{2n+1}.layer.l3", f"{block}glu.down_proj"),
        *_norm("model.layers.{2n+1}.norm.norm", f"{block}glu_norm"),
        *_norm("model.norm.norm", "model.stack.norm"),
        *_linear("decoder.output_transform", "score"),
        *_linear("decoder.retrieval.classifier.0", "classifier.0"),
        *_linear("decoder.retrieval.classifier.2", "classifier.2"),
    ]


LAYOUTS: dict[str, list[Line]] = {
    # Hgru1d (causal or not), Hgru2d
    "hgru": _COMPLEX,
    # Hgru1dV2, Hgru1dV3
    "hgru-low-rank": _hgru(HALVES, Line("theta", "theta", ANGLES), low_rank=True),
    # BiHgru1d, BiHgru2d
    "bihgru": _BI,
    # HgruRealV6, HgruReal2d
    "hgru-real": _hgru(SAME),
    # the WikiText-103 language model in fairseq
    "fairseq-lm": [
        Line("decoder.version", None),
        Line("decoder.embed_tokens.weight", "model.embed_tokens.weight"),
        Line("decoder.lower_bounds", "model.stack.bounds.logits", ROLL),
        *_under("decoder.layers.{n}.self_attn.hgru.", "model.stack.blocks.{n}.mixer.", _COMPLEX),
        *_linear("decoder.layers.{n}.self_attn_layer_norm", "model.stack.blocks.{n}.mixer_norm"),
        *_linear("decoder.layers.{n}.glu.l1", "model.stack.blocks.{n}.glu.gate_up_proj", part=0),
        *_linear("decoder.layers.{n}.glu.l2", "model.stack.blocks.{n}.glu.gate_up_proj", part=1),
        *_linear("decoder.layers.{n}.glu.l3", "model.stack.blocks.{n}.glu.down_proj"),
        *_linear("decoder.layers.{n}.final_layer_norm", "model.stack.blocks.{n}.glu_norm"),
        *_linear("decoder.layer_norm", "model.stack.norm"),
        Line("decoder.output_projection.weight", "lm_head.weight"),
    ],
    # OpenNLPLab's models for transformers (HGRN-150M, -355M, -1B). Their exact names have not been seen: these are the ones of
    # the same authors' HGRN2 for transformers, with the layer of hgru-pytorch inside. Names that differ are reported.
    "opennlplab": [
        Line("model.embed_tokens.weight", "model.embed_tokens.weight"),
        Line("model.lower_bounds", "model.stack.bounds.logits", ROLL),
        *_under("model.layers.{n}.token_mixer.", "model.stack.blocks.{n}.mixer.", _COMPLEX),
        *_linear("model.layers.{n}.token_norm", "model.stack.blocks.{n}.mixer_norm"),
        *_linear(
            "model.layers.{n}.channel_mixer.l1", "model.stack.blocks.{n}.glu.gate_up_proj", part=0
        ),
        *_linear(
            "model.layers.{n}.channel_mixer.l2", "model.stack.blocks.{n}.glu.gate_up_proj", part=1
        ),
        *_linear("model.layers.{n}.channel_mixer.l3", "model.stack.blocks.{n}.glu.down_proj"),
        *_linear("model.layers.{n}.channel_norm", "model.stack.blocks.{n}.glu_norm"),
        *_linear("model.final_norm", "model.stack.norm"),
        Line("lm_head.weight", "lm_head.weight"),
    ],
    # classifiers; `published_classifiers` picks among the forms of each
    "vit": _vit(_BI),
    "vit-shared": _vit(_COMPLEX),
    **{
        f"lra-{kind}{shared}{position}": _lra(hgru, kind == "image", not position)
        for kind in ("text", "image")
        for shared, hgru in (("", _BI), ("-shared", _COMPLEX))
        for position in ("", "-nopos")
    },
    # flash-linear-attention's HGRNAttention
    "fla-layer": _FLA,
    # flash-linear-attention's HGRNForCausalLM
    "fla": [
        Line("model.embeddings.weight", "model.embed_tokens.weight"),
        Line("model.lower_bounds", "model.stack.bounds.logits", ROLL),
        *_under("model.layers.{n}.attn.", "model.stack.blocks.{n}.mixer.", _FLA),
        Line("model.layers.{n}.attn_norm.weight", "model.stack.blocks.{n}.mixer_norm.weight"),
        Line(
            "model.layers.{n}.mlp.gate_proj.weight",
            "model.stack.blocks.{n}.glu.gate_up_proj.weight",
            part=0,
        ),
        Line(
            "model.layers.{n}.mlp.up_proj.weight",
            "model.stack.blocks.{n}.glu.gate_up_proj.weight",
            part=1,
        ),
        Line(
            "model.layers.{n}.mlp.down_proj.weight", "model.stack.blocks.{n}.glu.down_proj.weight"
        ),
        Line("model.layers.{n}.mlp_norm.weight", "model.stack.blocks.{n}.glu_norm.weight"),
        Line("model.norm.weight", "model.stack.norm.weight"),
        Line("lm_head.weight", "lm_head.weight"),
    ],
}

_NUMBER = re.compile(r"\{(n|2n|2n\+1)\}")


def from_published(tensors: Mapping[str, Tensor], layout: str) -> dict[str, Tensor]:
    """Tensors under published names -> under ours.

    Raises:
        ConversionError: naming every tensor that the layout does not have, and every part without its others.
    """
    converted, problems = _read(tensors, layout)
    _raise(problems, layout)
    return converted


def fitted(
    parameters: Mapping[str, Tensor], tensors: Mapping[str, Tensor], layout: str
) -> dict[str, Tensor]:
    """`from_published`, for a model with these tensors (`named_tensors`; on any device, also "meta"; tied ones are one object).

    Raises:
        ConversionError: naming all that is unexpected, missing or of another shape.
    """
    converted, problems = _read(tensors, layout)
    given: dict[int, Tensor] = {}
    for name, value in converted.items():
        parameter = parameters.get(name)
        if parameter is None:
            problems.append(
                f"unexpected: {name} is not in the model; it comes from {sources(name, layout)}"
            )
        elif parameter.shape != value.shape:
            shapes = f"{tuple(value.shape)}, in the model {tuple(parameter.shape)}"
            problems.append(f"reshaped: {name} is {shapes}; it comes from {sources(name, layout)}")
        elif not torch.equal(given.setdefault(id(parameter), value), value):
            problems.append(f"untied: {name} differs from the tensor that the model ties it to")
    here = {id(parameters[name]) for name in converted if name in parameters}
    problems += [
        f"missing: {name}, which comes from {sources(name, layout)}"
        for name, parameter in parameters.items()
        if id(parameter) not in here
    ]
    _raise(problems, layout)
    return converted


def load_published(module: nn.Module, tensors: Mapping[str, Tensor], layout: str) -> None:
    """Copies a published checkpoint into `module` (its dtype stays the module's).

    Raises:
        ConversionError: as `fitted`; nothing is copied then.
    """
    parameters = named_tensors(module)
    with torch.no_grad():
        for name, value in fitted(parameters, tensors, layout).items():
            parameters[name].copy_(value)


def to_published(module: nn.Module, layout: str) -> dict[str, Tensor]:
    """The parameters of `module`, and the statistics of its batch norms, under published names; tied ones once.

    Raises:
        ConversionError: naming every one that the layout does not have.
    """
    published = {}
    problems = []
    seen = set()
    for name, tensor in named_tensors(module).items():
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        found = list(_matches(name, layout, "ours"))
        values = _parts(module, name) if len(found) > 1 else [tensor.detach()]
        for line, number in found:
            published[_numbered(line.published, number)] = line.change.save(
                values[line.part or 0]
            ).contiguous()
        if not found:
            problems.append(f"unexpected: {name}")
    _raise(problems, layout)
    return published


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The parameters and the saved buffers of `module` by their names; tied ones are one object."""
    return module.state_dict(keep_vars=True)


def sources(ours: str, layout: str) -> str:
    """The published names of what one of our parameters is made of."""
    return ", ".join(source_names(ours, layout)) or "nothing in this layout"


def source_names(ours: str, layout: str) -> list[str]:
    """As `sources`; empty if the layout has nothing for it."""
    return [_numbered(line.published, number) for line, number in _matches(ours, layout, "ours")]


def _parts(module: nn.Module, name: str) -> list[Tensor]:
    """A parameter cut into the rows that are tensors of their own elsewhere: those of joined linear maps, else single ones."""
    value = module.get_parameter(name).detach()
    owner, _, joined = name.rpartition(".")[0].rpartition(".")
    rows = getattr(module.get_submodule(owner), "joined_rows", {}).get(joined, 1)
    return list(value.split(rows))


def _read(tensors: Mapping[str, Tensor], layout: str) -> tuple[dict[str, Tensor], list[str]]:
    converted = {}
    parts = {}
    problems = []
    for name, tensor in tensors.items():
        found = next(_matches(name, layout, "published"), None)
        if found is None:
            problems.append(f"unexpected: {name} is not in the layout")
            continue
        line, number = found
        try:
            value = line.change.load(tensor)
        except ConversionError as problem:
            problems.append(f"other: {name} {problem}")
            continue
        except (RuntimeError, IndexError, ValueError):
            problems.append(
                f"reshaped: {name} has shape {tuple(tensor.shape)}, with other axes than the layout's"
            )
            continue
        if line.ours is None:
            continue
        ours = _numbered(line.ours, number)
        if line.part is None:
            converted[ours] = value
        else:
            parts.setdefault(ours, {})[line.part] = name, value
    for ours, found in parts.items():
        wanted = source_names(ours, layout)
        if len(found) < len(wanted):
            names = [name for name, _ in found.values()]
            here = ", ".join(names)
            absent = ", ".join(name for name in wanted if name not in names)
            problems.append(
                f"missing: {ours} is made of {len(wanted)} tensors, of which only {here} is there, not {absent}"
            )
            continue
        try:
            converted[ours] = torch.cat([found[part][1] for part in sorted(found)])
        except RuntimeError:
            shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in found.values())
            problems.append(f"reshaped: {ours} cannot be made of {shapes}")
    return converted, problems


def _matches(name: str, layout: str, column: str):
    """The lines whose column fits `name`, each with the layer number."""
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    for line in LAYOUTS[layout]:
        text = getattr(line, column) or ""
        mark = _NUMBER.search(text)
        pattern = (
            re.escape(text)
            if mark is None
            else re.escape(text[: mark.start()]) + r"(\d+)" + re.escape(text[mark.end() :])
        )
        if found := re.fullmatch(pattern, name):
            number, other_half = (
                (None, 0)
                if mark is None
                else divmod(int(found[1]) - (mark[0] == "{2n+1}"), 1 + ("2" in mark[0]))
            )
            if not other_half:
                yield line, number


def _numbered(name: str, number: int | None) -> str:
    """A name of a table with the numbers for layer `number` in it."""
    return (
        name
        if number is None
        else name.format_map({"n": number, "2n": 2 * number, "2n+1": 2 * number + 1})
    )


def _raise(problems: list[str], layout: str) -> None:
    if problems:
        raise ConversionError(
            f"the checkpoint does not fit (layout {layout!r}, {len(problems)} problem(s)):\n  "
            + "\n  ".join(problems)
        )
