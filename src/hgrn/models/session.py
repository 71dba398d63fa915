"""Conversations as states: read, branch, join, save and load them, without their texts.

Shape letters: N conversations, T new tokens, V vocabulary.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

import torch
from safetensors.torch import save_file
from torch import Tensor

from hgrn.errors import UserError
from hgrn.files import whole_file
from hgrn.models import session_file
from hgrn.models.cache import HGRNCache
from hgrn.models.causal_lm import HGRNForCausalLM
from hgrn.models.stepping import CompiledSteps

_CHUNK = 4096  # tokens that are read at once
# The fields that decide, with the tensors of the model, what a state means.
_MEANING = (
    "glu_act",
    "norm_eps",
    "norm_type",
    "complex_state",
    "gate_position",
    "gate_act",
    "gate_rank",
    "conv_size",
    "scale_embeddings",
)


def fingerprint(model: HGRNForCausalLM) -> str:
    """A number that tells backbones apart: all tensors, and the fields that give them meaning."""
    meaning = {name: getattr(model.config, name) for name in _MEANING}
    if model.config.mixer != "hgru":
        names = ("mixer", "mixer_options", "mixer_record")
        meaning |= {name: getattr(model.config, name, None) for name in names}
    digest = hashlib.sha256(json.dumps(meaning, default=repr).encode())
    tensors = {**dict(model.model.named_parameters()), **dict(model.model.named_buffers())}
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    if custom := model.custom_modules():
        digest.update(json.dumps(custom, sort_keys=True).encode())
    return digest.hexdigest()


class Session:
    """N conversations with one model, which reads a piece of each in every call.

    A conversation is a state whose size does not grow: `4 * num_hidden_layers * hidden_size` bytes,
    twice that for a complex state, head_dim times that for HGRN2, and the last inputs of the
    convolution if there is one.
    `branch`, `pick` and `join` make new sessions and leave the old ones as they are.

    Args:
        model: in eval mode, and trained no further, because a state means nothing to other weights.
        cache: as returned by a call of the model or of `generate`; None is one new conversation.

    Example:
        >>> import torch >>> from hgrn.models import HGRNConfig, HGRNForCausalLM, Session >>> model
        = HGRNForCausalLM(HGRNConfig(vocab_size=259, hidden_size=32, num_hidden_layers=2)).eval()
        >>> told = Session(model) >>> logits = told.read(torch.randint(256, (1, 500)))          #
        [1, 259]: what may come next >>> answers = told.branch(1000)                               #
        the prompt is not read again >>> for _ in range(5): ...     logits =
        answers.read(logits.softmax(-1).expand(1000, -1).multinomial(1)) >>> answers.nbytes
        # a thousand conversations 512000
    """

    def __init__(self, model: HGRNForCausalLM, cache: HGRNCache | None = None):
        self.model = model
        self._state = None if cache is None else cache.detach().state
        seen = 0 if cache is None else cache.seen_tokens
        self.lengths = [seen] * (1 if self._state is None else self._state[0][0].shape[0])
        self._steps = CompiledSteps()

    def __len__(self) -> int:
        """N."""
        return len(self.lengths)

    def __repr__(self) -> str:
        lengths = f"{min(self.lengths)} to {max(self.lengths)} tokens"
        return f"Session({len(self)} conversations of {lengths}, {self.nbytes} bytes)"

    @property
    def nbytes(self) -> int:
        """Bytes of the states."""
        return (
            0
            if self._state is None
            else sum(part.nbytes for layer in self._state for part in layer)
        )

    @property
    def cache(self) -> HGRNCache:
        """A cache for the model or `generate`. Give them new ids only; the session stays as it is.

        Its length is 0, so `generate` treats every id that you pass as new.
        """
        return HGRNCache(self._state)

    @torch.no_grad()
    def read(self, tokens: Tensor | Sequence[Sequence[int]]) -> Tensor:
        """Read new tokens, and predict the next one.

        Args:
            tokens: `[N, T]`, or N lists of one or more tokens, whose lengths may differ.

        Returns:
            logits `[N, V]` after the last token of each conversation.

        Raises:
            ValueError: not one row for each conversation, or a row without tokens.
        """
        ids, mask = self._batch(tokens)
        cache = self.cache
        # Piece by piece, so that a long text takes no more memory than a piece.
        with self.model.stepping(self._steps):
            for start in range(0, ids.shape[1], _CHUNK):
                part = slice(start, start + _CHUNK)
                output = self.model(
                    input_ids=ids[:, part],
                    attention_mask=None if mask is None else mask[:, part],
                    past_key_values=cache,
                    use_cache=True,
                    logits_to_keep=1,
                )
        self._state = cache.detach().state
        new = [ids.shape[1]] * len(self) if mask is None else mask.sum(1).tolist()
        self.lengths = [old + more for old, more in zip(self.lengths, new)]
        return output.logits[:, -1]

    def branch(self, times: int) -> "Session":
        """Each conversation `times` times, copies side by side."""
        if times < 1:
            raise ValueError(f"times must be at least 1, got {times}")
        return self.pick([n for n in range(len(self)) for _ in range(times)])

    def pick(self, indices: Sequence[int]) -> "Session":
        """The conversations with these numbers, in this order; a number may come several times."""
        picked = Session(self.model)
        picked.lengths = [self.lengths[n] for n in indices]
        if not picked.lengths:
            raise ValueError("indices must name at least one conversation")
        order = torch.tensor([range(len(self))[n] for n in indices], device="cpu")
        picked._state = tuple(
            tuple(part.index_select(0, order.to(part.device)) for part in layer)
            for layer in self._begin()
        )
        return picked

    @classmethod
    def join(cls, sessions: Iterable["Session"]) -> Self:
        """The conversations of several sessions with one model, to be read together, in order."""
        sessions = list(sessions)
        if not sessions or any(session.model is not sessions[0].model for session in sessions):
            raise ValueError("sessions must be one or more with the same model object")
        joined = cls(sessions[0].model)
        states = [session._begin() for session in sessions]
        joined.lengths = [length for session in sessions for length in session.lengths]
        joined._state = tuple(
            tuple(torch.cat(parts) for parts in zip(*layers, strict=True))
            for layers in zip(*states, strict=True)
        )
        return joined

    def save(self, path: str | Path) -> None:
        """Write the states and the fingerprint of the model; an old file is replaced whole.

        Raises:
            UserError: the file cannot be written; an old one is still there then.
        """
        tensors = {
            f"{layer}.{part}": tensor.contiguous()
            for layer, parts in enumerate(self._begin())
            for part, tensor in enumerate(parts)
        }
        about = session_file.metadata(fingerprint(self.model), self.lengths)
        with whole_file(path) as draft:
            save_file(tensors, draft, about)
            session_file.seal(draft)

    @classmethod
    def load(cls, path: str | Path, model: HGRNForCausalLM) -> Self:
        """The session that `save` wrote.

        Raises:
            UserError: the file is something else, is damaged, or belongs to another model.
        """
        about, tensors = session_file.read(path)
        if about.get("fingerprint") != fingerprint(model):
            raise UserError(
                f"{path} belongs to another model: a state means nothing to weights that did not "
                "make it; load the model that was there when it was saved, or read the texts again"
            )
        lengths = session_file.lengths(path, about)
        loaded = cls(model)
        loaded.lengths = lengths
        loaded._state = session_file.states(
            path, tensors, model.model.initial_state(1), len(lengths)
        )
        return loaded

    def _begin(self) -> tuple[tuple[Tensor, ...], ...]:
        """The states; zeros if nothing has been read yet."""
        if self._state is None:
            self._state = self.model.model.initial_state(len(self))
        return self._state

    def _batch(self, tokens: Tensor | Sequence[Sequence[int]]) -> tuple[Tensor, Tensor | None]:
        """Ids `[N, T]`, padded on the left, and the mask if there is padding."""
        if len(tokens) != len(self):
            raise ValueError(
                f"tokens must have a row for each of the {len(self)} conversations, got "
                f"{len(tokens)}"
            )
        if isinstance(tokens, Tensor):
            if tokens.ndim != 2 or tokens.shape[1] == 0:
                raise ValueError(
                    f"tokens must have shape [N, T] with T of 1 or more, got {tuple(tokens.shape)}"
                )
            return tokens.to(self.model.device), None
        lengths = [len(row) for row in tokens]
        if min(lengths) == 0:
            raise ValueError(
                f"tokens must give every conversation one or more, but row {lengths.index(0)} is "
                "empty"
            )
        # Padding goes to the left, so that the last column is the last token of every conversation.
        longest = max(lengths)
        ids = torch.tensor(
            [[0] * (longest - len(row)) + list(row) for row in tokens], device=self.model.device
        )
        if min(lengths) == longest:
            return ids, None
        columns = torch.arange(longest, device=ids.device)
        return ids, columns >= longest - torch.tensor(lengths, device=ids.device)[:, None]
