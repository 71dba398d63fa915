"""HGRNModel with a head that classifies: one sequence, or two against each other.

Shape letters: B sequences of T positions; packed, N sequences in `[1, total]`; D channels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import ModelOutput, SequenceClassifierOutput
from transformers.utils import can_return_tuple

from hgrn.models.backbone import HGRNModel, HGRNPreTrainedModel
from hgrn.models.configuration import HGRNConfig
from hgrn.models.documents import FLASH_ATTENTION, boundaries, end_to_end, refuse_unknown
from hgrn.modules import Linear, SimpleRMSNorm
from hgrn.ops.arguments import at_least_float32
from hgrn.ops.packing import sequence_ids


def pool(
    x: Tensor, pooling: str, mask: Tensor | None = None, cu_seqlens: Tensor | None = None
) -> Tensor:
    """One vector a sequence: the mean of its positions, or the last; zeros for a sequence without any.

    Args:
        x: `[B, T, D]`; with cu_seqlens `[1, total, D]`.
        pooling: "mean" (summed in float32 at least) or "last".
        mask: bool `[B, T]`, False where there is padding, on either side or inside: such positions do not count.
        cu_seqlens: boundaries `[N + 1]` of sequences packed end to end.

    Returns:
        `[B, D]`, or `[N, D]` if packed.
    """
    filled = (
        x if mask is None else x.masked_fill(~mask[..., None], 0)
    )  # what stands at padding may be anything
    if mask is None:
        mask = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
    packed = (
        None
        if cu_seqlens is None
        else (sequence_ids(cu_seqlens, x.shape[1]), cu_seqlens.shape[0] - 1)
    )
    if pooling == "mean":
        total = _total(filled, packed, at_least_float32(x.dtype))
        return (total / _total(mask, packed, torch.long).clamp(min=1)[:, None]).to(x.dtype)
    positions = torch.arange(mask.numel(), device=x.device).view(mask.shape).masked_fill(~mask, -1)
    if packed is None:
        last = positions.amax(1)
    else:
        sequence, count = packed
        last = positions.new_full((count,), -1).scatter_reduce(0, sequence, positions[0], "amax")
    return filled.flatten(0, 1)[last.clamp(min=0)].masked_fill((last < 0)[:, None], 0)


def _total(x: Tensor, packed: tuple[Tensor, int] | None, dtype: torch.dtype) -> Tensor:
    """The sum over the positions `[B, T, ...]` of each sequence."""
    if packed is None:
        return x.sum(1, dtype=dtype)
    sequence, count = packed
    return x.new_zeros(count, *x.shape[2:], dtype=dtype).index_add(0, sequence, x[0].to(dtype))


class Classifier(HGRNPreTrainedModel):
    """What all heads share: encoding, and the loss.

    Raises:
        ValueError: the configuration is one of images and the head is not, or the other way round.
    """

    # The heads take num_items_in_batch, though no arbitrary keyword arguments (see HGRNForCausalLM).
    accepts_loss_kwargs = True
    reads_images = False

    def __init__(self, config: HGRNConfig):
        if self.reads_images != (config.patch_size is not None):
            what, wanted = (
                ("images", "a positive integer; 1 is pixel by pixel")
                if self.reads_images
                else ("tokens", "None")
            )
            raise ValueError(
                f"{type(self).__name__} reads {what}, so patch_size in its configuration must be {wanted}, got {config.patch_size!r}"
            )
        super().__init__(config)
        self.model = HGRNModel(config)
        self.pooled_norm = SimpleRMSNorm() if config.final_norm == "pooled" else nn.Identity()
        self.loss_type = "ForSequenceClassification"  # transformers finds it by the name of the class, but not for pairs

    def _encode(
        self,
        ids,
        attention_mask,
        embeds,
        cu_seqlens,
        use_cache,
        output_hidden_states,
        output_attentions,
        pixel_values=None,
        **packing,
    ):
        """The pooled sequences `[B, D]` (`[N, D]` if packed), and the hidden states if asked for."""
        if use_cache:
            raise ValueError(
                "use_cache=True: classification reads whole sequences and returns no cache; leave it out"
            )
        outputs = self.model(
            input_ids=ids,
            attention_mask=attention_mask,
            inputs_embeds=embeds,
            cu_seqlens=cu_seqlens,
            use_cache=False,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            return_dict=True,
            pixel_values=pixel_values,
            **packing,
        )
        x = outputs.last_hidden_state
        mask = self.model.mask(attention_mask, x)
        cu_seqlens = boundaries(x, mask, cu_seqlens, **packing)
        if cu_seqlens is not None:
            x = end_to_end(x)
            mask = end_to_end(mask)
        pooled = pool(x, self.config.pooling, mask, cu_seqlens)
        return self.pooled_norm(pooled), outputs.hidden_states

    def _loss(
        self, logits: Tensor, labels: Tensor | None, num_items_in_batch: int | Tensor | None
    ) -> Tensor | None:
        """transformers' own for `config.problem_type`, or for what the labels say if that is None; made in float32 at least."""
        if labels is None:
            return None
        problem = self.config.problem_type
        count = self.config.num_labels
        classes = problem == "single_label_classification" or (
            problem is None and count > 1 and labels.dtype in (torch.long, torch.int)
        )
        one_each = classes or count == 1
        if labels.numel() != len(logits) if one_each else labels.shape != logits.shape:
            shape = [len(logits)] if one_each else list(logits.shape)
            kind = "integers, one class each" if classes else "numbers"
            raise ValueError(
                f"labels must have shape {shape} ({kind}) with problem_type={problem!r} and num_labels={count}, got "
                f"{tuple(labels.shape)} of {labels.dtype}; set problem_type in the configuration if another is meant"
            )
        if classes and labels.device.type == "cpu" and not torch.compiler.is_compiling():
            wrong = labels[((labels < 0) | (labels >= count)) & (labels != -100)]
            if wrong.numel():
                raise ValueError(
                    f"labels must be class numbers from 0 to {count - 1} (num_labels={count}), or -100 where there is none, got "
                    f"{wrong.flatten()[0].item()}; correct them, or set num_labels in the configuration"
                )
        logits = logits.to(at_least_float32(logits.dtype))
        loss = self.loss_function(
            labels=labels.long() if classes else labels.to(logits.dtype),
            pooled_logits=logits,
            config=self.config,
            num_items_in_batch=num_items_in_batch,
        )
        if classes or num_items_in_batch is None:
            return loss
        # These losses of transformers are means whatever the number of items is.
        return loss * (labels.numel() / torch.as_tensor(num_items_in_batch, device=loss.device))


class HGRNForSequenceClassification(Classifier):
    """HGRN with a linear map on the pooled sequence (`config.pooling`): `Linear(D, num_labels)`."""

    def __init__(self, config: HGRNConfig):
        super().__init__(config)
        self.score = Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, config=None, **kwargs):
        """As all models; but what was saved as a model of pairs becomes one, since Auto classes know one class for both."""
        saved_as = getattr(config, "architectures", None) or ()
        if (
            cls is HGRNForSequenceClassification
            and HGRNForSequencePairClassification.__name__ in saved_as
        ):
            cls = HGRNForSequencePairClassification
            return cls.from_pretrained(
                pretrained_model_name_or_path, *model_args, config=config, **kwargs
            )
        return super().from_pretrained(
            pretrained_model_name_or_path, *model_args, config=config, **kwargs
        )

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        num_items_in_batch: int | Tensor | None = None,
        position_ids: Tensor | None = None,
        seq_idx: Tensor | None = None,
        **flash_attention,
    ) -> SequenceClassifierOutput:
        """
        input_ids, attention_mask, inputs_embeds, output_hidden_states, and what tells of packed sequences (cu_seqlens, position_ids,
        seq_idx, cu_seq_lens_q, ...) as `HGRNModel.forward`, and:

        Args:
            labels: `[B]` (`[N]` if packed): class numbers (-100 is not scored), or values if num_labels is 1;
                `[B, num_labels]` floats for several labels or values each. `config.problem_type` decides where it is set.
            num_items_in_batch: divide the summed loss by this; default: by the number of labels scored.
            use_cache, output_attentions: not available; for callers that always pass them.

        Returns:
            loss if labels are given, logits `[B, num_labels]`, hidden_states. A sequence without a token pools to zeros.

        Raises:
            ValueError: the arguments do not go together; the message names them.
        """
        refuse_unknown(flash_attention, FLASH_ATTENTION, self)
        pooled, hidden_states = self._encode(
            input_ids,
            attention_mask,
            inputs_embeds,
            cu_seqlens,
            use_cache,
            output_hidden_states,
            output_attentions,
            position_ids=position_ids,
            seq_idx=seq_idx,
            **flash_attention,
        )
        logits = self.score(pooled)
        return SequenceClassifierOutput(
            loss=self._loss(logits, labels, num_items_in_batch),
            logits=logits,
            hidden_states=hidden_states,
        )


@dataclass
class SequencePairClassifierOutput(ModelOutput):
    """As `SequenceClassifierOutput` of transformers, with the hidden states of both sequences."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    hidden_states_b: tuple[Tensor, ...] | None = None


class HGRNForSequencePairClassification(Classifier):
    """HGRN on two sequences each, whose pooled vectors a and b (`config.pooling`) are compared.

    `Linear(4D, D) -> GELU -> Linear(D, num_labels)` on `[a, b, a - b, a * b]` (the authors' Long Range Arena code:
    tasks/decoders.py, retrieval). With batch norms the two are one batch, as there: the statistics are those of both.
    """

    def __init__(self, config: HGRNConfig):
        super().__init__(config)
        dim = config.hidden_size
        self.classifier = nn.Sequential(
            Linear(4 * dim, dim), nn.GELU(), Linear(dim, config.num_labels)
        )
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        input_ids_b: Tensor | None = None,
        attention_mask_b: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        inputs_embeds_b: Tensor | None = None,
        labels: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        cu_seqlens_b: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        num_items_in_batch: int | Tensor | None = None,
    ) -> SequencePairClassifierOutput:
        """
        As `HGRNForSequenceClassification.forward`; the arguments that end in `_b` are those of the second sequences, which may be
        of other lengths than the first but must be as many. With batch norms both are given in the same way, padded to one length.

        Returns:
            loss if labels are given, logits `[B, num_labels]`, hidden_states, hidden_states_b.

        Raises:
            ValueError: the arguments do not go together; the message names them.
        """
        if (input_ids_b is None) == (inputs_embeds_b is None):
            raise ValueError(
                "give exactly one of input_ids_b and inputs_embeds_b: the second sequence of each pair"
            )
        rest = use_cache, output_hidden_states, output_attentions
        first = (input_ids, attention_mask, inputs_embeds, cu_seqlens)
        second = (input_ids_b, attention_mask_b, inputs_embeds_b, cu_seqlens_b)
        if self.config.norm_type == "batch":
            pooled, both = self._encode(*_stacked(first, second), *rest)
            a, b = pooled.chunk(2)
            hidden_states, hidden_states_b = (
                zip(*(x.chunk(2) for x in both)) if both else (None, None)
            )
        else:
            a, hidden_states = self._encode(*first, *rest)
            try:
                b, hidden_states_b = self._encode(*second, *rest)
            except ValueError as error:
                raise ValueError(f"second sequences (arguments ending in _b): {error}") from error
        if len(a) != len(b):
            raise ValueError(
                f"there must be as many second sequences as first, {len(a)}; got {len(b)}"
            )
        logits = self.classifier(torch.cat([a, b, a - b, a * b], dim=-1))
        return SequencePairClassifierOutput(
            loss=self._loss(logits, labels, num_items_in_batch),
            logits=logits,
            hidden_states=hidden_states,
            hidden_states_b=hidden_states_b,
        )


def _stacked(first: tuple, second: tuple) -> tuple:
    """ids, attention_mask, embeds and cu_seqlens of both sequences of each pair, those of the second below those of the first."""
    (ids, mask, embeds, packed), (ids_b, mask_b, embeds_b, packed_b) = first, second
    x, x_b = (ids, ids_b) if embeds is None else (embeds, embeds_b)
    if (
        packed is not None
        or packed_b is not None
        or x is None
        or x_b is None
        or x.shape != x_b.shape
    ):
        shapes = [
            "None" if t is None else str(tuple(t.shape)) for t in (ids, ids_b, embeds, embeds_b)
        ]
        raise ValueError(
            "with batch norms the first and second sequences are one batch: give both as ids or both as embeddings, of one shape "
            f"and without cu_seqlens (pad them to one length); got input_ids {shapes[0]}, input_ids_b {shapes[1]}, "
            f"inputs_embeds {shapes[2]}, inputs_embeds_b {shapes[3]}"
        )
    if mask is not None or mask_b is not None:
        full = torch.ones(x.shape[:2], dtype=torch.long, device=x.device)
        mask = torch.cat([full if m is None else m.long() for m in (mask, mask_b)])
    x = torch.cat([x, x_b])
    return (x, mask, None, None) if embeds is None else (None, mask, x, None)
