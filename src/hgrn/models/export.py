"""Language models as ONNX files: the whole sequence at once, or a single step from state to state.

Shape letters: B batch, T time, V vocabulary, C channels of a state (hidden_size, or twice that if
complex).
"""

import importlib
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from hgrn.errors import UserError
from hgrn.files import finish_folder, reading, writing
from hgrn.models.cache import HGRNCache
from hgrn.models.causal_lm import HGRNForCausalLM
from hgrn.modules import Int8Linear, Mixer
from hgrn.ops.decompositions import DECOMPOSITIONS, refuse_packed
from hgrn.ops.gla import gla_scan_operator

_OPSET = 20


def export_onnx(model: HGRNForCausalLM, path: str | Path, *, attention_mask: bool = False) -> None:
    """Write the forward of `model` as one ONNX graph, for any batch and any length of 1 or more.

    Inputs: input_ids int64 `[B, T]`; if wanted attention_mask int64 `[B, T]`, 0 where there is
    padding, on either side or inside, which is skipped exactly. Outputs: logits float32 `[B, T,
    V]`, and for each layer the state after the last position, `final_state.0`, ... float32 `[B,
    C]`, for HGRN2 `[B, H, K, K]`, from which a graph of `export_onnx_step` goes on. A layer with a
    convolution has a second tensor in its state, `final_state.0.1`, its last inputs.

    The recurrence of each layer is one Scan of ONNX; for HGRN2 it is one LinearAttention of the
    domain com.microsoft, which onnxruntime has since 1.32. All other nodes are plain ones of opset
    20. Runtimes compute the numbers of the model to the rounding of float32.

    Args:
        model: in eval mode, float32, on the CPU, without 8-bit weights or adapters.
        path: the file to write, which must not exist. One file of the format cannot hold more than
            1.5 GiB of weights; they go into a second file beside it then, `<name>.data`. The file
            itself appears when all is written.
        attention_mask: whether the graph has that input.

    Raises:
        UserError: the model or the path breaks a rule above, or the file cannot be written; the
            message names it.
        TypeError: the model is something else.
        ImportError: the packages of the extra `onnx` are not installed.
    """
    ids = torch.zeros(2, 3, dtype=torch.int64, device="cpu")
    free = {0: "batch", 1: "length"}
    inputs = {"input_ids": (ids, free)}
    if attention_mask and model.config.conv_size is not None:
        raise UserError(
            "attention_mask=True does not go with a convolution (conv_size), whose windows over "
            "padding have no form with a free batch; export without it, and give no padding"
        )
    if attention_mask:
        inputs["attention_mask"] = (torch.ones_like(ids), free)
    _export(model, Path(path), inputs)


def export_onnx_step(model: HGRNForCausalLM, path: str | Path) -> None:
    """Write one step of decoding as an ONNX graph without loops, for any batch.

    Inputs: input_ids int64 `[B, 1]`, and for each layer `initial_state.0`, ... float32 `[B, C]`,
    zeros before the first token. Outputs: logits float32 `[B, 1, V]`, and `final_state.0`, ..., the
    initial states of the next step.

    Arguments and errors as `export_onnx`.
    """
    _check_model(model)
    inputs = {"input_ids": (torch.zeros(2, 1, dtype=torch.int64, device="cpu"), {0: "batch"})}
    for name, part in zip(
        _state_names(model, "initial_state"), _parts(model.model.initial_state(2))
    ):
        inputs[name] = (part, {0: "batch"})
    _export(model, Path(path), inputs)


def _parts(state: tuple[tuple[Tensor, ...], ...]) -> list[Tensor]:
    """The tensors of a state, layer after layer."""
    return [part for layer in state for part in layer]


def _state_names(model: HGRNForCausalLM, kind: str) -> list[str]:
    """Names of the tensors of a state, as a graph has them: `kind.0`, `kind.0.1`, `kind.1`, ..."""
    return [
        f"{kind}.{layer}.{number}" if number else f"{kind}.{layer}"
        for layer, parts in enumerate(model.model.initial_state(1))
        for number, _ in enumerate(parts)
    ]


class _Traced(nn.Module):
    """The model as a function from tensors to tensors, as an exporter wants it."""

    def __init__(self, model: HGRNForCausalLM, names: list[str]):
        super().__init__()
        self.model = model
        self._names = names

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(self._names, inputs))
        # The second word of a state's name is the number of its layer.
        layers: dict[str, list[Tensor]] = {}
        for name, tensor in given.items():
            if name.startswith("initial_state"):
                layers.setdefault(name.split(".")[1], []).append(tensor)
        states = tuple(map(tuple, layers.values()))
        output = self.model(
            input_ids=given["input_ids"],
            attention_mask=given.get("attention_mask"),
            past_key_values=HGRNCache(states or None),
            use_cache=True,
        )
        return output.logits, *_parts(output.past_key_values.state)


def _linear_attention(q, k, v, log_f, initial_state, cu_seqlens, engine) -> tuple[Tensor, Tensor]:
    """`gla_scan` as one node of onnxruntime, which lays heads side by side, `[B, T, H * K]`."""
    refuse_packed("gla_scan", cu_seqlens)
    batch, length, heads, keys = q.shape
    values = v.shape[3]
    y, final = torch.onnx.ops.symbolic_multi_out(
        "com.microsoft::LinearAttention",
        [q.flatten(2), k.flatten(2), v.flatten(2), initial_state, log_f.flatten(2)],
        attrs={
            "q_num_heads": heads,
            "kv_num_heads": heads,
            "update_rule": "gated",
            "scale": 1.0,
        },
        dtypes=(v.dtype, log_f.dtype),
        shapes=((batch, length, heads * values), (batch, heads, keys, values)),
        version=1,
    )
    return y.unflatten(2, (heads, values)), final


def _export(
    model: HGRNForCausalLM, path: Path, inputs: dict[str, tuple[Tensor, dict[int, str]]]
) -> None:
    """Write the graph with these inputs: an example for each name, and its free axes."""
    _check_model(model)
    _check_path(path)
    _check_packages()
    names = list(inputs)
    examples = tuple(example for example, _ in inputs.values())
    axes = [named for _, named in inputs.values()]
    dims = {name: torch.export.Dim(name, min=1) for name in ("batch", "length")}
    free = [{axis: dims[name] for axis, name in named.items()} for named in axes]
    states = _state_names(model, "final_state")
    with torch.no_grad(), warnings.catch_warnings():
        # PyTorch 2.13 uses something here that it has itself deprecated.
        warnings.filterwarnings("ignore", ".*LeafSpec.*is deprecated", FutureWarning)
        program = torch.export.export(
            _Traced(model, names), examples, dynamic_shapes=(tuple(free),)
        )
        program = program.run_decompositions(
            cast(Any, DECOMPOSITIONS | {gla_scan_operator.overload: _linear_attention})
        )
        written: Any = torch.onnx.export(
            program,
            dynamo=True,
            verbose=False,
            opset_version=_OPSET,
            input_names=names,
            output_names=["logits", *states],
            # The axes are named once; the other inputs share them.
            dynamic_shapes=((axes[0], *[None] * (len(names) - 1)),),
        )
    # There may be two files, and the graph refers to the one with its weights by name. So both are
    # written in a folder under their final names and then moved, the graph last.
    with writing(path), tempfile.TemporaryDirectory(prefix=".onnx-", dir=path.parent) as folder:
        part = Path(folder, path.name)
        written.save(part)
        finish_folder(Path(folder))
        if _data(part).exists():
            os.replace(_data(part), _data(path))
        os.replace(part, path)


def _data(path: Path) -> Path:
    """Where the weights of a large model go. The graph refers to them by this name."""
    return path.with_name(f"{path.name}.data")


def _check_model(model: nn.Module) -> None:
    if not isinstance(model, HGRNForCausalLM):
        raise TypeError(
            f"model must be an HGRNForCausalLM, got {type(model).__name__}; merge adapters first "
            "(merge_and_unload of peft)"
        )
    if model.training:
        raise UserError(
            "the model is in training mode, in which dropout acts; call model.eval() first"
        )
    for name, part in model.named_modules():
        if isinstance(part, Mixer) and (reason := part.why_not("export")):
            raise UserError(f"{name} cannot be exported: {reason}")
        if isinstance(part, Int8Linear):
            raise UserError(
                f"{name} has 8-bit weights, which are for decoding here; export the model before "
                "quantize_int8, and have the tools of your runtime quantize the file"
            )
    for name, tensor in model.named_parameters():
        if tensor.dtype != torch.float32 or tensor.device.type != "cpu":
            raise UserError(
                f"{name} is {tensor.dtype} on {tensor.device}, but a model is exported in float32 "
                "from the CPU; use model.float().cpu()"
            )


def _check_path(path: Path) -> None:
    with reading(path, "choose another name"):
        if not path.parent.is_dir():
            raise UserError(
                f"path {path}: the folder {path.parent} does not exist; create it first"
            )
        for file in (path, _data(path)):
            if file.exists():
                raise UserError(
                    f"path {path}: {file} exists and is not overwritten; remove it, or choose "
                    "another name"
                )


def _check_packages() -> None:
    # Without numba the loop of the reference engine would be traced, position by position.
    for name in ("onnx", "onnxscript", "numba"):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ImportError(
                f"the export to ONNX needs the package {name}; pip install onnx onnxscript "
                "onnxruntime"
            ) from error
