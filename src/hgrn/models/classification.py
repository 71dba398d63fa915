"""What all models that classify share: pooling, encoding and the loss.

Shape letters: B sequences of T positions; packed, N sequences in `[1, total]`; D channels.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn

from hgrn.models.backbone import HGRNModel, HGRNPreTrainedModel
from hgrn.models.configuration import HGRNConfig
from hgrn.models.documents import PACKING, boundaries, end_to_end
from hgrn.modules import SimpleRMSNorm
from hgrn.ops.arguments import at_least_float32
from hgrn.ops.packing import sequence_ids


def pool(
    x: Tensor, pooling: str, mask: Tensor | None = None, cu_seqlens: Tensor | None = None
) -> Tensor:
    """One vector a sequence: the mean of its positions, or the last; zeros if it is empty.

    Args:
        x: `[B, T, D]`; with cu_seqlens `[1, total, D]`.
        pooling: "mean" (summed in float32 at least) or "last".
        mask: bool `[B, T]`, False where there is padding, on either side or inside. Such positions
            do not count.
        cu_seqlens: boundaries `[N + 1]` of sequences packed end to end.

    Returns:
        `[B, D]`, or `[N, D]` if packed.
    """
    # Whatever stands at padding does not count, not even NaN.
    filled = x if mask is None else x.masked_fill(~mask[..., None], 0)
    if mask is None:
        mask = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
    packed = None
    if cu_seqlens is not None:
        packed = (sequence_ids(cu_seqlens, x.shape[1]), cu_seqlens.shape[0] - 1)
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
        ValueError: the configuration describes a model of images and the head reads tokens, or the
            other way round.
    """

    # Trainer passes num_items_in_batch, though the heads take no arbitrary keyword arguments (see
    # HGRNForCausalLM).
    accepts_loss_kwargs = True
    reads_images = False

    def __init__(self, config: HGRNConfig):
        if self.reads_images != (config.patch_size is not None):
            what, wanted = "tokens", "None"
            if self.reads_images:
                what, wanted = "images", "a positive integer; 1 is pixel by pixel"
            raise ValueError(
                f"{type(self).__name__} reads {what}, so patch_size in its configuration must be "
                f"{wanted}, got {config.patch_size!r}"
            )
        super().__init__(config)
        self.num_labels = cast(int, config.num_labels)
        self.model = HGRNModel(config)
        self.pooled_norm = SimpleRMSNorm() if config.final_norm == "pooled" else nn.Identity()
        # transformers finds this loss by the name of the class, except for pairs.
        self.loss_type = "ForSequenceClassification"

    def _encode(
        self, use_cache: bool | None = None, **arguments: Any
    ) -> tuple[Tensor, tuple[Tensor, ...] | None]:
        """The pooled sequences `[B, D]` (`[N, D]` if packed), and the hidden states if asked for.

        Args:
            use_cache: refused if True; for callers that always pass it.
            arguments: of `HGRNModel.forward`.
        """
        if use_cache:
            raise ValueError(
                "use_cache=True: classification reads whole sequences and returns no cache; leave "
                "it out"
            )
        outputs = self.model(use_cache=False, return_dict=True, **arguments)
        x = outputs.last_hidden_state
        mask = self.model.mask(arguments.get("attention_mask"), x)
        packing = {name: arguments[name] for name in PACKING if name in arguments}
        cu_seqlens = boundaries(x, mask, **packing)
        if cu_seqlens is not None:
            x = end_to_end(x)
            mask = None if mask is None else end_to_end(mask)
        pooled = pool(x, self.config.pooling, mask, cu_seqlens)
        return self.pooled_norm(pooled), outputs.hidden_states

    def _loss(
        self, logits: Tensor, labels: Tensor | None, num_items_in_batch: int | Tensor | None
    ) -> Tensor | None:
        """The loss of transformers for the type of problem, in float32 at least.

        The type is `config.problem_type`, or follows from the labels if that is None.
        """
        if labels is None:
            return None
        problem = self.config.problem_type
        count = self.num_labels
        classes = problem == "single_label_classification" or (
            problem is None and count > 1 and labels.dtype in (torch.long, torch.int)
        )
        one_each = classes or count == 1
        if labels.numel() != len(logits) if one_each else labels.shape != logits.shape:
            shape = [len(logits)] if one_each else list(logits.shape)
            kind = "integers, one class each" if classes else "numbers"
            raise ValueError(
                f"labels must have shape {shape} ({kind}) with problem_type={problem!r} and "
                f"num_labels={count}, got {tuple(labels.shape)} of {labels.dtype}; set "
                "problem_type in the configuration if another is meant"
            )
        if classes and labels.device.type == "cpu" and not torch.compiler.is_compiling():
            wrong = labels[((labels < 0) | (labels >= count)) & (labels != -100)]
            if wrong.numel():
                raise ValueError(
                    f"labels must be class numbers from 0 to {count - 1} (num_labels={count}), or "
                    f"-100 where there is none, got {wrong.flatten()[0].item()}; correct them, or "
                    "set num_labels in the configuration"
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
        # The other losses of transformers are means; they ignore the number of items.
        return loss * (labels.numel() / torch.as_tensor(num_items_in_batch, device=loss.device))
