"""Language models: next-token prediction, and bits per byte by the one rule."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hgrn.data.sampling import IGNORED, Batch, BlockSampler
from hgrn.data.text import TextData
from hgrn.data.tokenizer import load_tokenizer
from hgrn.data.tokens import TokenFile, prepare
from hgrn.errors import UserError
from hgrn.parallel import last_state, local_cu_seqlens, local_stretch, whole_sequences
from hgrn.progress import OnProgress
from hgrn.training.recipe import LanguageRecipe
from hgrn.training.tasks.base import Task, not_finite

if TYPE_CHECKING:
    from hgrn.models import HGRNCache, HGRNForCausalLM

# One chunk of an evaluation: long enough to keep the CPU busy (measured: longer is no faster), and
# with logits of at most 64 MiB in fp32 whatever the vocabulary.
CHUNK_TOKENS = 2**14
CHUNK_LOGITS = 2**24


@dataclass(frozen=True)
class Evaluation:
    """The cost of reading a split once: `nats` for `tokens` predicted tokens, which stand for
    `bytes` bytes."""

    bits_per_byte: float
    nats: float
    bytes: int
    tokens: int


class LanguageModelTask(Task):
    """Next-token prediction on the text of a recipe."""

    recipe: LanguageRecipe
    sampler: BlockSampler
    unit = "tokens"
    metric = "bits_per_byte"
    lower_is_better = True

    def _open(self, on_progress: OnProgress | None) -> None:
        recipe = self.recipe
        ranks = self.ranks
        self.processor = load_tokenizer(recipe.data.tokenizer)
        self.train = prepare(recipe.data, "train", on_progress)
        self.validation = (
            prepare(recipe.data, "validation", on_progress) if recipe.training.eval_every else None
        )
        self.sampler = BlockSampler(
            self.train,
            recipe.batch.block_size,
            recipe.batch.batch_size,
            recipe.batch.state,
            recipe.training.seed,
            ranks.data_rank,
            ranks.data_world,
        )
        self.fingerprint = self.train.fingerprint
        self.size = len(self.train)
        self.data_name = f"{_source(recipe.data)}; tokenizer {recipe.data.tokenizer}"
        # One cache per micro-batch, where the recipe carries the state from block to block.
        self.carried: list[Any] = [None] * recipe.batch.accumulation

    def figures(self, loss: float) -> dict[str, float]:
        return {"bits_per_byte": loss / math.log(2) * len(self.train) / self.train.num_bytes}

    def next_batches(self) -> tuple[list[Batch], int]:
        batch = self.sampler.next()
        if batch.restart:
            self.carried = [None] * len(self.carried)
        batches = [self._stretch(part) for part in batch.split(len(self.carried))]
        return batches, sum(int((part.labels != IGNORED).sum()) for part in batches)

    def loss(self, model: nn.Module, index: int, batch: Batch, counted: int) -> Tensor:
        batch = batch.to(self.ranks.device)
        carry = self.recipe.batch.state == "carry"
        with self._precision():
            output = model(
                input_ids=batch.input_ids,
                shift_labels=batch.labels,
                cu_seqlens=batch.cu_seqlens,
                past_key_values=self.carried[index],
                use_cache=carry,
                num_items_in_batch=counted,
            )
        if carry:
            cache = self.carried[index] = output.past_key_values.detach()
            if self.ranks.context is not None:
                cache.state = last_state(cache.state, self.ranks.context)
        return output.loss

    def state_dict(self) -> dict[str, Any]:
        carried = [cache and (cache.state, cache.seen_tokens) for cache in self.carried]
        return {"sampler": self.sampler.state_dict(), "carried": carried}

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        self.sampler.load_state_dict(states[0]["sampler"])
        # In the order of the rows of a step.
        caches = [cache for state in states for cache in state["carried"]]
        if caches[0] is None:
            return
        # Each share of a batch saved the states of its micro-batches. They are joined along the
        # batch, and cut again for the micro-batches and shares of today.
        parts = len(self.carried) * self.ranks.data_world
        index = len(self.carried) * self.ranks.data_rank
        whole = [
            [torch.cat(same).chunk(parts) for same in zip(*layer)]
            for layer in zip(*(state for state, _ in caches))
        ]
        for micro in range(len(self.carried)):
            state = tuple(tuple(part[index + micro] for part in layer) for layer in whole)
            self.carried[micro] = self._cache(state, caches[0][1])

    @property
    def validated(self) -> dict[str, int]:
        """The first `training.eval_tokens` tokens, unless these are all."""
        limit = self.recipe.training.eval_tokens
        if limit is None or self.validation is None or limit >= len(self.validation):
            return {}
        return {"read_tokens": limit, "split_tokens": len(self.validation)}

    def validate(self) -> dict[str, float]:
        """Bits per byte of the validation split, or of its first `training.eval_tokens` tokens."""
        assert self.validation is not None  # only a run with training.eval_every validates
        with self._validating(), whole_sequences(self.model):
            result = evaluate(
                self.model, self.validation, limit_tokens=self.recipe.training.eval_tokens
            )
        return {
            "bits_per_byte": result.bits_per_byte,
            "nats_per_token": result.nats / result.tokens,
        }

    def _stretch(self, batch: Batch) -> Batch:
        """The stretch of a micro-batch that this rank reads, if it shares sequences with others."""
        group = self.ranks.context
        if group is None:
            return batch
        part = local_stretch(batch.input_ids.shape[1], group)
        borders = None if batch.cu_seqlens is None else local_cu_seqlens(batch.cu_seqlens, group)
        return replace(
            batch,
            input_ids=batch.input_ids[:, part],
            labels=batch.labels[:, part],
            cu_seqlens=borders,
        )

    def _cache(self, state: tuple, seen_tokens: int) -> "HGRNCache":
        from hgrn.models import HGRNCache

        device = self.ranks.device
        return HGRNCache(
            tuple(tuple(part.to(device) for part in layer) for layer in state), seen_tokens
        )

    def _build_model(self) -> "HGRNForCausalLM":
        from hgrn.models import HGRNForCausalLM

        special = {
            name: getattr(self.processor, name)
            for name in ("bos_token_id", "eos_token_id", "pad_token_id")
        }
        try:
            config = self.recipe.model.config(vocab_size=self.train.vocab_size, **special)
        except ValueError as error:
            raise UserError(f"model: {error}") from error
        if config.vocab_size < self.train.vocab_size:
            raise UserError(
                f"model.vocab_size = {config.vocab_size}, but tokenizer "
                f"{self.recipe.data.tokenizer} has {self.train.vocab_size} tokens: raise it or "
                "choose another tokenizer"
            )
        return HGRNForCausalLM(config)


@torch.no_grad()
def evaluate(
    model: Any,
    tokens: TokenFile,
    *,
    chunk: int | None = None,
    limit_tokens: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Read a split once, in order, as one sequence with the state carried, and count the cost.

    Nats are summed over all tokens but the first, and bytes are those of the same tokens.

    chunk: tokens of one call, which does not change the result; None bounds the memory of the
    logits. limit_tokens: read only the first tokens, and estimate their bytes from the whole split.
    on_progress: gets (tokens read, tokens in all).

    Raises UserError if the model's vocabulary is too small or its output is not finite.
    """
    length = min(len(tokens), limit_tokens or len(tokens))
    if length < 2:
        raise UserError(
            f"cannot evaluate on {length} token(s): at least 2 are needed, one to predict the next "
            "from"
        )
    if tokens.vocab_size > model.config.vocab_size:
        raise UserError(
            f"the text has a vocabulary of {tokens.vocab_size} tokens and the model one of "
            f"{model.config.vocab_size}: use the tokenizer that was saved with the model"
        )
    device = next(model.parameters()).device
    chunk = chunk or min(CHUNK_TOKENS, max(1, CHUNK_LOGITS // model.config.vocab_size))
    was_training = model.training
    model.eval()
    nats = torch.zeros((), dtype=torch.float64, device=device)
    state = None
    for start in range(0, length - 1, chunk):
        ids = torch.from_numpy(tokens.read(start, min(chunk, length - 1 - start) + 1)).to(device)
        output = model(input_ids=ids[None, :-1], past_key_values=state, use_cache=True)
        nats += F.cross_entropy(output.logits[0].float(), ids[1:], reduction="sum")
        state = output.past_key_values
        if on_progress is not None:
            on_progress(start + len(ids), length)
    model.train(was_training)
    if not torch.isfinite(nats):
        raise not_finite(model, "this text")
    num_bytes = (tokens.num_bytes - tokens.first_token_bytes) * (length - 1) / (len(tokens) - 1)
    return Evaluation(
        nats.item() / math.log(2) / num_bytes, nats.item(), round(num_bytes), length - 1
    )


def _source(data: TextData) -> str:
    """Where the training text comes from, in words."""
    dataset = f"{data.dataset} {data.config or ''}".strip()
    return ", ".join(data.splits["train"].files or data.files or [dataset])


TASK = LanguageModelTask
