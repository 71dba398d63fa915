"""The language models that run on a GPU, and what is checked before they are timed."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.gpu.session import OURS, Session, interpreted
from benchmarks.scan_cases import label
from hgrn.errors import UserError
from hgrn.models import HGRNConfig, HGRNForCausalLM

FLA = "flash-linear-attention"
TRANSFORMER = "Transformer"
_FUSED: dict[str, Any] = {"attn_implementation": "sdpa"}
# Relative errors that are allowed. Of our loss, whose logits were rounded to the dtype:
LOSS = {torch.float32: 2e-5, torch.bfloat16: 5e-3}
# of the loss of a peer, which may be rounded itself:
_PEER_LOSS = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
# and of the gradients of all parameters as one vector: the norm of the difference.
GRADIENT = {torch.float32: 1e-4, torch.bfloat16: 5e-2}


@dataclass(frozen=True)
class Size:
    """Width D, layers and vocabulary; sequences of a step, tokens of each, tokens of a prompt."""

    name: str
    width: int
    depth: int
    vocabulary: int
    batch: int
    length: int
    prompt: int


SIZES = (Size("150M", 768, 14, 50272, 8, 2048, 1024), Size("1B", 2048, 16, 50272, 4, 2048, 1024))
SMALL = Size("small", 256, 3, 512, 2, 600, 16)  # of the checks
TINY = Size("tiny", 64, 2, 64, 1, 12, 4)


def sizes(rehearse: bool) -> tuple[Size, ...]:
    """What is timed; in a rehearsal, something tiny."""
    return (TINY,) if rehearse else SIZES


def ours(size: Size) -> nn.Module:
    """HGRN with what flash-linear-attention's has: a real state, no biases, RMSNorm."""
    config = HGRNConfig(
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
    return HGRNForCausalLM(config)


def of_fla(size: Size) -> nn.Module:
    """flash-linear-attention's HGRN. Raises ImportError if it is not installed."""
    from fla.models import HGRNConfig, HGRNForCausalLM

    config = HGRNConfig(
        attn_mode="chunk",
        vocab_size=size.vocabulary,
        hidden_size=size.width,
        num_hidden_layers=size.depth,
        intermediate_size=2 * size.width,
        norm_eps=1e-6,
        bos_token_id=None,
        eos_token_id=None,
    )
    return HGRNForCausalLM(config)


def transformer(size: Size) -> nn.Module:
    """A Transformer with fewer layers: one of its has 12 D^2 parameters, one of ours 10 D^2."""
    config = LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.width,
        num_hidden_layers=round(size.depth * 10 / 12),
        intermediate_size=8 * size.width // 3,
        num_attention_heads=max(1, size.width // 64),
        max_position_embeddings=2 * size.length,
        **_FUSED,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    return LlamaForCausalLM(config)


PEERS: dict[str, Callable[[Size], nn.Module]] = {OURS: ours, FLA: of_fla, TRANSFORMER: transformer}


def built(session: Session, build: Callable[[Size], nn.Module], size: Size) -> nn.Module:
    """A model in bfloat16 with weights drawn on its device: a billion take long on a CPU."""
    torch.manual_seed(0)
    with torch.device(session.device):
        return build(size).to(torch.bfloat16)


def parameters(model: nn.Module) -> int:
    """How many parameters a model has; tied ones count once."""
    return sum(parameter.numel() for parameter in model.parameters())


def loss_of(model: Any, ids: Tensor) -> Tensor:
    """The mean loss of ids `[B, T]`, each token predicted from those before it."""
    return model(input_ids=ids, labels=ids, use_cache=False).loss


def relative(found: Tensor, wanted: Tensor) -> float:
    """The norm of the difference over the norm of `wanted`, which is on the CPU in float64."""
    difference = found.detach().cpu().double() - wanted.detach()
    return difference.norm().item() / wanted.detach().norm().item()


def refuse(what: str, found: float, allowed: float) -> None:
    """Raise UserError if a relative error is larger than allowed."""
    if not found <= allowed:  # this also refuses NaN
        raise UserError(
            f"{what} differs by {found:.2g}, {allowed:.0e} is allowed; no time of it is reported"
        )


@dataclass(frozen=True)
class _Exact:
    """Our small model in float64 with its gradients, its loss, and its logits `[B, T, V]`."""

    model: Any
    loss: Tensor
    logits: Tensor

    @classmethod
    def of(cls, model: nn.Module, ids: Tensor) -> "_Exact":
        """A copy of `model`, run on the CPU."""
        with interpreted(False):
            exact = copy.deepcopy(model).double()
            loss = loss_of(exact, ids)
            loss.backward()
            with torch.no_grad():
                logits = exact.eval()(input_ids=ids, use_cache=False).logits
        return cls(exact, loss, logits)


def passing(session: Session) -> set[str]:
    """The peers that may be timed: their small models give the loss that ours has in float64.

    The Transformer is no HGRN, so nothing is asked of it.
    """
    size = TINY if session.rehearse else SMALL
    passed = {TRANSFORMER}
    torch.manual_seed(0)
    model: Any = ours(size)
    # Or all losses would be those of even odds, whatever the layers do.
    with torch.no_grad():
        model.lm_head.weight.mul_(20)
    ids = torch.randint(size.vocabulary, (size.batch, size.length))
    exact = _Exact.of(model, ids)
    failures = len(session.failures)
    for dtype in LOSS:
        with session.guarded(name="check of the model", shape=size.name, dtype=label(dtype)):
            there = copy.deepcopy(model).to(session.device, dtype)
            _check_ours(there, ids.to(session.device), exact)
    if len(session.failures) == failures:
        passed.add(OURS)
    with session.guarded(name="check of the model", peer=FLA, shape=size.name):
        from hgrn.models.published.tensors import to_published

        other: Any = of_fla(size)
        other.load_state_dict(to_published(model, "fla"))
        for dtype, allowed in _PEER_LOSS.items():
            found = loss_of(other.to(session.device, dtype), ids.to(session.device))
            what = f"the loss with the same weights in {label(dtype)}"
            refuse(what, relative(found, exact.loss), allowed)
        passed.add(FLA)
    return passed


def _check_ours(model: Any, ids: Tensor, exact: _Exact) -> None:
    """Loss, gradients, and the logits that a prompt and single steps give, against float64."""
    dtype = next(model.parameters()).dtype
    loss = loss_of(model, ids)
    refuse(f"the loss in {label(dtype)}", relative(loss, exact.loss), LOSS[dtype])
    loss.backward()
    found, true = (
        torch.cat([each.grad.flatten().cpu().double() for each in one.parameters()])
        for one in (model, exact.model)
    )
    refuse(f"the gradient in {label(dtype)}", relative(found, true), GRADIENT[dtype])

    prompt = ids.shape[1] - 3
    with torch.no_grad():
        out = model.eval()(input_ids=ids[:, :prompt], use_cache=True)
        logits = [out.logits[:, -1]]
        for t in range(prompt, ids.shape[1]):
            token = ids[:, t : t + 1]
            out = model(input_ids=token, past_key_values=out.past_key_values, use_cache=True)
            logits.append(out.logits[:, 0])
    difference = relative(torch.stack(logits, 1), exact.logits[:, prompt - 1 :])
    refuse(f"logits of single steps in {label(dtype)}", difference, GRADIENT[dtype])
