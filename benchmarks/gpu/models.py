"""Language models: gates of ours, training steps and decoding beside flash-linear-attention's HGRN and a Transformer."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from hgrn.bench.results import Row
from hgrn.bench.scan_cases import TOLERANCES
from torch import Tensor, nn

from benchmarks.gpu.clock import OURS, Bench, interpreted, label
from hgrn.errors import UserError

FLA = "flash-linear-attention"
TRANSFORMER = "Transformer"
STEP_TARGET = 1.3  # times the tokens a second of flash-linear-attention
_PEER_LOSS = {
    torch.float32: 1e-4,
    torch.bfloat16: 2e-2,
}  # the same of a peer, which may round the loss itself
_COMPILES = 4  # seconds that a layer takes to be compiled, forward and backward: a guess, so that --minutes is kept
_LOSS = {
    torch.float32: 2e-5,
    torch.bfloat16: 5e-3,
}  # relative, of a loss whose logits were rounded to the dtype
_GRADIENT = {
    torch.float32: 1e-4,
    torch.bfloat16: 5e-2,
}  # of all parameters as one vector: the norm of the difference


@dataclass(frozen=True)
class Size:
    """width D, layers, vocabulary; sequences of a training step, tokens of each, tokens of a prompt."""

    name: str
    width: int
    depth: int
    vocabulary: int
    batch: int
    length: int
    prompt: int


SIZES = (Size("150M", 768, 14, 50272, 8, 2048, 1024), Size("1B", 2048, 16, 50272, 4, 2048, 1024))
SMALL = Size("small", 256, 3, 512, 2, 600, 16)  # of the gates
TINY = Size("tiny", 64, 2, 64, 1, 12, 4)


def sizes(bench: Bench) -> tuple[Size, ...]:
    return (TINY,) if bench.rehearse else SIZES


def announce(bench: Bench) -> None:
    for size in sizes(bench):
        bench.target(f"training {size.name}, times {FLA}'s tokens/s", STEP_TARGET)


def ours(size: Size) -> nn.Module:
    from hgrn.models import HGRNConfig, HGRNForCausalLM

    return HGRNForCausalLM(
        HGRNConfig(
            vocab_size=size.vocabulary,
            hidden_size=size.width,
            num_hidden_layers=size.depth,
            intermediate_size=2 * size.width,
            complex_state=False,
            norm_type="rms",
            norm_eps=1e-6,
            bias=False,
            scale_embeddings=False,
            tie_word_embeddings=False,
            initialization="normal",
        )
    )


def of_fla(size: Size) -> nn.Module:
    from fla.models import HGRNConfig, HGRNForCausalLM

    return HGRNForCausalLM(
        HGRNConfig(
            attn_mode="chunk",
            vocab_size=size.vocabulary,
            hidden_size=size.width,
            num_hidden_layers=size.depth,
            intermediate_size=2 * size.width,
            norm_eps=1e-6,
            bos_token_id=None,
            eos_token_id=None,
        )
    )


def transformer(size: Size) -> nn.Module:
    """A block of ours has 10 D^2 parameters, one of these 12 D^2, so there are fewer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=size.vocabulary,
            hidden_size=size.width,
            num_hidden_layers=round(size.depth * 10 / 12),
            intermediate_size=8 * size.width // 3,
            num_attention_heads=max(1, size.width // 64),
            max_position_embeddings=2 * size.length,
            attn_implementation="sdpa",
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
        )
    )


PEERS: dict[str, Callable[[Size], nn.Module]] = {OURS: ours, FLA: of_fla, TRANSFORMER: transformer}


def built(bench: Bench, build: Callable[[Size], nn.Module], size: Size) -> nn.Module:
    """With weights drawn where they are used: a billion of them take long on a CPU."""
    torch.manual_seed(0)
    with torch.device(bench.device):
        return build(size).to(torch.bfloat16)


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


# ---------------------------------------------------------------------------------------------------------------------
# Gates


def loss_of(model: nn.Module, ids: Tensor) -> Tensor:
    return model(input_ids=ids, labels=ids, use_cache=False).loss


def refuse(what: str, found: float, allowed: float) -> None:
    if not found <= allowed:  # NaN is not
        raise UserError(
            f"{what} differs by {found:.2g}, {allowed:.0e} is allowed; no time of it is reported"
        )


def gates(bench: Bench) -> set[str]:
    """Which peers may be measured: their small models give the loss that ours has in float64."""
    # the Transformer is no HGRN
    size = TINY if bench.rehearse else SMALL
    passed = {TRANSFORMER}
    torch.manual_seed(0)
    model = ours(size)
    with torch.no_grad():
        model.lm_head.weight.mul_(
            20
        )  # or all losses were those of even odds, whatever the layers do
    ids = torch.randint(size.vocabulary, (size.batch, size.length))
    with interpreted(False):
        exact = copy.deepcopy(model).double()
        wanted = loss_of(exact, ids)
        wanted.backward()
        with torch.no_grad():
            logits = exact.eval()(input_ids=ids, use_cache=False).logits
    failures = len(bench.failures)
    for dtype in TOLERANCES.keys() & _LOSS.keys():
        with bench.guarded(name="check of the model", shape=size.name, dtype=label(dtype)):
            check_ours(
                bench,
                copy.deepcopy(model).to(bench.device, dtype),
                ids.to(bench.device),
                exact,
                wanted,
                logits,
            )
    if len(bench.failures) == failures:
        passed.add(OURS)
    with bench.guarded(name="check of the model", peer=FLA, shape=size.name):
        from hgrn.models.convert import to_published

        other = of_fla(size)
        other.load_state_dict(to_published(model, "fla"))
        for dtype, allowed in _PEER_LOSS.items():
            found = loss_of(other.to(bench.device, dtype), ids.to(bench.device))
            refuse(
                f"the loss with the same weights in {label(dtype)}",
                relative(found, wanted),
                allowed,
            )
        passed.add(FLA)
    return passed


def relative(found: Tensor, wanted: Tensor) -> float:
    return (
        found.detach().cpu().double() - wanted.detach()
    ).norm().item() / wanted.detach().norm().item()


def check_ours(
    bench: Bench, model: nn.Module, ids: Tensor, exact: nn.Module, wanted: Tensor, logits: Tensor
) -> None:
    """Loss, gradients, and logits that a prompt and single steps give, against the float64 model."""
    dtype = next(model.parameters()).dtype
    loss = loss_of(model, ids)
    refuse(f"the loss in {label(dtype)}", relative(loss, wanted), _LOSS[dtype])
    loss.backward()
    found, true = (
        torch.cat([p.grad.flatten().cpu().double() for p in m.parameters()]) for m in (model, exact)
    )
    refuse(f"the gradient in {label(dtype)}", relative(found, true), _GRADIENT[dtype])
    prompt = ids.shape[1] - 3
    with torch.no_grad():
        out = model.eval()(input_ids=ids[:, :prompt], use_cache=True)
        found = [out.logits[:, -1]]
        for t in range(prompt, ids.shape[1]):
            out = model(
                input_ids=ids[:, t : t + 1], past_key_values=out.past_key_values, use_cache=True
            )
            found.append(out.logits[:, 0])
    difference = relative(torch.stack(found, 1), logits[:, prompt - 1 :])
    refuse(f"logits of single steps in {label(dtype)}", difference, _GRADIENT[dtype])


# ---------------------------------------------------------------------------------------------------------------------
# Training steps


def train(
    bench: Bench, size: Size, peers: set[str], compiled: bool, rates: dict[tuple[str, str], float]
) -> None:
    """Adds rows, and to `rates` the best of each size and peer."""
    for peer, build in PEERS.items():
        name = f"training step, {'compiled' if compiled else 'eager'}"
        cells = {
            "name": name,
            "peer": peer,
            "shape": f"{size.name}, T={size.length}, B={size.batch}",
            "dtype": "bfloat16",
        }
        if bench.late(_COMPILES * size.depth if compiled and not bench.rehearse else 0, **cells):
            continue
        if peer not in peers:
            bench.left_out("its check did not pass", **cells)
            continue
        with bench.guarded(**cells):
            bench.forget()
            row = bench.add(training_step(bench, build, size, compiled, cells))
            rates[size.name, peer] = max(rates.get((size.name, peer), 0.0), row.tokens_per_s)
    ratio = [rates.get((size.name, peer)) for peer in (OURS, FLA)]
    if None not in ratio:
        bench.reached(f"training {size.name}, times {FLA}'s tokens/s", ratio[0] / ratio[1])


def training_step(bench: Bench, build, size: Size, compiled: bool, cells: dict) -> Row:
    torch.compiler.reset()
    model = built(bench, build, size)
    ids = torch.randint(size.vocabulary, (size.batch, size.length), device=bench.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    call = (
        torch.compile(model, backend="aot_eager" if bench.rehearse else "inductor")
        if compiled
        else model
    )

    def forward_backward() -> Tensor:
        loss = loss_of(call, ids)
        loss.backward()
        return loss.detach()

    def step() -> None:
        forward_backward()
        optimizer.step()
        optimizer.zero_grad()

    with torch.no_grad():
        plain = loss_of(model, ids).cpu().double()
    loss = bench.first(forward_backward, **cells)
    optimizer.zero_grad()
    refuse(
        "the loss of the timed call from that of the plain one",
        relative(loss, plain),
        _LOSS[torch.bfloat16],
    )
    times = bench.time({"step": step}, 10)["step"]
    return Row.timed(
        times,
        parameters=parameters(model),
        tokens_per_s=1e3 * size.batch * size.length / times.median,
        memory_mb=bench.peak_mb(),
        note="weights in bfloat16, fused AdamW",
        **cells,
    )


# ---------------------------------------------------------------------------------------------------------------------
# Decoding


def decode(bench: Bench, size: Size, peers: set[str]) -> None:
    for peer, build in PEERS.items():
        cells = {"name": "decoding step", "peer": peer, "shape": size.name, "dtype": "bfloat16"}
        if bench.late(**cells):
            continue
        if peer not in peers:
            bench.left_out("its check did not pass", **cells)
            continue
        with bench.guarded(**cells):
            bench.forget()
            model = built(bench, build, size).eval()
            for batch in (1, 2) if bench.rehearse else (1, 64):
                cells["shape"] = f"{size.name}, B={batch}, after {size.prompt}"
                with bench.guarded(**cells), torch.no_grad():
                    decoding_step(bench, model, size, batch, cells)


def states(cache) -> list[Tensor]:
    """The recurrent states that a cache of ours or of flash-linear-attention holds."""
    if hasattr(cache, "state"):
        return [part for layer in cache.state for part in layer]
    return [layer["recurrent_state"] for layer in cache]


def decoding_step(bench: Bench, model: nn.Module, size: Size, batch: int, cells: dict) -> None:
    """One token more for each sequence, as called, and from a CUDA graph, whose states stay in the same memory."""
    ids = torch.randint(size.vocabulary, (batch, size.prompt), device=bench.device)
    token = ids[:, :1].clone()
    cache = model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values
    start = copy.deepcopy(cache)

    def step() -> Tensor:
        nonlocal cache
        out = model(input_ids=token, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        return out.logits

    plain = bench.first(step, **cells)
    functions = {"": step}
    graphed = cells | {"name": f"{cells['name']}, CUDA graph"}
    if cells["peer"] == TRANSFORMER:
        bench.left_out("its keys and values grow, so no step is like another", **graphed)
    else:
        with bench.guarded(**graphed):
            kept = states(start)

            def static_step() -> Tensor:
                out = model(input_ids=token, past_key_values=start, use_cache=True)
                for memory, new in zip(kept, states(out.past_key_values), strict=True):
                    memory.copy_(new)
                return out.logits

            replay = bench.capture(static_step)
            again = replay().clone()
            bench.wait()
            difference = relative(again, plain.cpu().double())
            refuse(
                "logits from a CUDA graph from those of the call",
                difference,
                _GRADIENT[torch.bfloat16],
            )
            functions[", CUDA graph"] = replay
    for suffix, times in bench.time(functions, 20).items():
        bench.add(
            Row.timed(
                times,
                parameters=parameters(model),
                tokens_per_s=1e3 * batch / times.median,
                **cells | {"name": cells["name"] + suffix, "kind": "kernel" if suffix else "op"},
            )
        )
