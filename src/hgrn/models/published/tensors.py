"""Tensors: published names to ours and back, by the lines of a layout."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from hgrn.models.published.layouts import layout_named
from hgrn.models.published.record import ConversionError, Layout, name_in_layer, raise_problems


def from_published(tensors: Mapping[str, Tensor], layout: str) -> dict[str, Tensor]:
    """Tensors (or gradients) under the published names of a layout -> under ours.

    Raises:
        ConversionError: naming every tensor that the layout does not have, and every part without
            its others.
    """
    converted, problems = _convert(tensors, layout_named(layout))
    _raise(problems, layout)
    return converted


def state_dict_for(
    parameters: Mapping[str, Tensor], tensors: Mapping[str, Tensor], layout: str
) -> dict[str, Tensor]:
    """`from_published`, checked against the model that is to have these tensors.

    Args:
        parameters: the tensors of the model (`named_tensors`), on any device, also "meta".
        tensors: those of the checkpoint, under published names.
        layout: the name of its layout.

    Raises:
        ConversionError: naming all that is unexpected, missing or of another shape.
    """
    record = layout_named(layout)
    converted, problems = _convert(tensors, record)
    for name, parameter in parameters.items():
        if record.is_one(name):
            converted[name] = torch.ones(parameter.shape, dtype=parameter.dtype)
    first_value: dict[int, Tensor] = {}  # of each parameter, which may have several names
    for name, value in converted.items():
        parameter = parameters.get(name)
        origin = f"it comes from {_listed_names(name, layout)}"
        if parameter is None:
            problems.append(f"unexpected: {name} is not in the model; {origin}")
        elif parameter.shape != value.shape:
            shapes = f"{tuple(value.shape)}, in the model {tuple(parameter.shape)}"
            problems.append(f"reshaped: {name} is {shapes}; {origin}")
        # A tied tensor may come twice, under both names.
        elif not torch.equal(first_value.setdefault(id(parameter), value), value):
            problems.append(f"untied: {name} differs from the tensor that the model ties it to")
    found = {id(parameters[name]) for name in converted if name in parameters}
    problems += [
        f"missing: {name}, which comes from {_listed_names(name, layout)}"
        for name, parameter in parameters.items()
        if id(parameter) not in found
    ]
    _raise(problems, layout)
    return converted


def load_published(module: nn.Module, tensors: Mapping[str, Tensor], layout: str) -> None:
    """Copy a published checkpoint into `module`, whose dtype stays.

    A layout of a single layer wants the layer as the module.

    Raises:
        ConversionError: as `state_dict_for`; nothing is copied then.
    """
    parameters = named_tensors(module)
    with torch.no_grad():
        for name, value in state_dict_for(parameters, tensors, layout).items():
            parameters[name].copy_(value)


def to_published(module: nn.Module, layout: str) -> dict[str, Tensor]:
    """The parameters and statistics of `module` under published names; tied ones once.

    Raises:
        ConversionError: naming every one that the layout does not have, or has as ones only.
    """
    record = layout_named(layout)
    published = {}
    problems = []
    seen = set()
    for name, tensor in named_tensors(module).items():
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        if record.is_one(name):
            if not tensor.eq(1).all():
                problems.append(f"other: {name} must be all one, as norms have no weights there")
            continue
        lines = record.lines_of_ours(name)
        if not lines:
            problems.append(f"unexpected: {name}")
        values = _parts(module, name) if len(lines) > 1 else [tensor.detach()]
        for line, number in lines:
            value = line.change.save(values[line.part or 0])
            published[name_in_layer(line.published, number)] = value.contiguous()
    _raise(problems, layout)
    return published


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The parameters and the saved buffers of `module` by their names; tied ones are one object."""
    return module.state_dict(keep_vars=True)


def published_names(ours: str, layout: str) -> list[str]:
    """The published names of what our tensor is made of; none if the layout lacks it."""
    lines = layout_named(layout).lines_of_ours(ours)
    return [name_in_layer(line.published, number) for line, number in lines]


def _listed_names(ours: str, layout: str) -> str:
    return ", ".join(published_names(ours, layout)) or "nothing in this layout"


def _parts(module: nn.Module, name: str) -> list[Tensor]:
    """Cut a parameter into the rows that are tensors of their own elsewhere.

    Linear maps that we join into one say how (`joined_rows`). Everything else is cut into single
    rows.
    """
    value = module.get_parameter(name).detach()
    owner, _, joined = name.rpartition(".")[0].rpartition(".")
    rows = getattr(module.get_submodule(owner), "joined_rows", {}).get(joined, 1)
    return list(value.split(rows))


def _convert(tensors: Mapping[str, Tensor], layout: Layout) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors under our names, and what is wrong with the others."""
    converted: dict[str, Tensor] = {}
    parts: dict[str, dict[int, tuple[str, Tensor]]] = {}
    problems = []
    for name, tensor in tensors.items():
        found = layout.line_of_published(name)
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
            shape = tuple(tensor.shape)
            problems.append(
                f"reshaped: {name} has shape {shape}, with other axes than the layout's"
            )
            continue
        # What is a whole tensor of ours is done; a part waits for the others.
        if line.ours is None:
            continue
        ours = name_in_layer(line.ours, number)
        if line.part is None:
            converted[ours] = value
        else:
            parts.setdefault(ours, {})[line.part] = (name, value)
    for ours, pieces in parts.items():
        try:
            converted[ours] = _joined(ours, pieces, published_names(ours, layout.name))
        except ConversionError as problem:
            problems.append(str(problem))
    return converted, problems


def _joined(ours: str, pieces: dict[int, tuple[str, Tensor]], wanted: list[str]) -> Tensor:
    """Our tensor from its parts.

    Raises ConversionError if one is missing, or they do not go together.
    """
    if len(pieces) < len(wanted):
        names = [name for name, _ in pieces.values()]
        absent = ", ".join(name for name in wanted if name not in names)
        raise ConversionError(
            f"missing: {ours} is made of {len(wanted)} tensors, of which only {', '.join(names)} "
            f"is there, not {absent}"
        )
    try:
        return torch.cat([pieces[part][1] for part in sorted(pieces)])
    except RuntimeError:
        shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in pieces.values())
        raise ConversionError(f"reshaped: {ours} cannot be made of {shapes}") from None


def _raise(problems: list[str], layout: str) -> None:
    raise_problems(problems, f"the checkpoint does not fit the layout {layout!r}")
