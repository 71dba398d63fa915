"""HGRNForCausalLM: HGRNModel with a head that predicts the next token."""

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import Tensor
from transformers.generation.configuration_utils import GenerationMode
from transformers.generation.utils import GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple

from hgrn.models.backbone import HGRNModel, HGRNPreTrainedModel
from hgrn.models.cache import NO_WAY_BACK, HGRNCache
from hgrn.models.configuration import HGRNConfig
from hgrn.models.documents import FLASH_ATTENTION, PACKING, boundaries, end_to_end, refuse_unknown
from hgrn.models.stepping import CompiledSteps, active_steps, step_with
from hgrn.modules import Linear
from hgrn.ops.packing import next_labels

_IGNORE = -100


# Methods of GenerationMixin are typed for a protocol that not even transformers' own models fulfil,
# so the checker is told to ignore calls of them.
class HGRNForCausalLM(HGRNPreTrainedModel, GenerationMixin):
    """HGRN as a language model.

    Raises:
        ValueError: the configuration is bidirectional or has batch norms, so that positions would
            see the tokens that they are to predict; or it has another field that only
            classification has a use for.
    """

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    # Tells transformers' Trainer to pass num_items_in_batch, though forward takes no arbitrary
    # keyword arguments. It must not take them: with a misspelt cu_seqlens a state would leak from
    # document to document without an error.
    accepts_loss_kwargs = True
    _is_stateful = True  # a state cannot go back to fewer tokens, as assisted decoding wants

    def __init__(self, config: HGRNConfig):
        if config.bidirectional:
            raise ValueError(
                "HGRNForCausalLM predicts and generates from left to right, so it needs "
                "bidirectional=False in its configuration, got True; HGRNModel and the "
                "classification models take either"
            )
        causal = dict(
            patch_size=None, sinusoidal_positions=False, mask_padding=True, final_norm="tokens"
        )
        problems = [
            f"{name}={wanted!r}, got {given!r}"
            for name, wanted in causal.items()
            if (given := getattr(config, name)) != wanted
        ]
        if config.norm_type == "batch":
            problems.append("norm_type='layer' or 'rms', got 'batch'")
        if problems:
            raise ValueError(
                "HGRNForCausalLM predicts and generates token by token, so its configuration needs "
                f"{'; '.join(problems)}; the classification models take either"
            )
        super().__init__(config)
        self.model = HGRNModel(config)
        self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: HGRNCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: int | Tensor | None = None,
        position_ids: Tensor | None = None,
        seq_idx: Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """
        Arguments as `HGRNModel.forward`, and:

        Args:
            labels: `[B, T]`, the tokens themselves; position t is scored on label t + 1 of the same
                document, -100 is not scored.
            num_items_in_batch: divide the summed loss by this; default: by the number of scored
                positions.
            logits_to_keep: compute logits of so many last positions, or of these positions, only; 0
                is all.
            shift_labels: `[B, T]`, labels that are shifted already: position t is scored on
                shift_labels[t]. They count even if labels are given too. (They come through the
                keyword arguments: Trainer takes every argument with "label" in its name for one of
                the labels that an evaluation needs.)

        Returns:
            loss if labels are given, logits `[B, T, vocab_size]`, past_key_values, hidden_states.

        Raises:
            ValueError, TypeError: the arguments do not go together; the message names them.
        """
        refuse_unknown(kwargs, ("shift_labels", *FLASH_ATTENTION), self)
        shift_labels = kwargs.pop("shift_labels", None)

        # A call that wants the next logits only may be a compiled step.
        steps = active_steps(self)
        unwanted = (inputs_embeds, labels, shift_labels, cu_seqlens, *kwargs.values())
        wants_more = output_attentions or output_hidden_states or self.config.output_hidden_states
        is_plain = use_cache is not False and not wants_more and all(x is None for x in unwanted)
        if steps is not None and is_plain:
            logits = steps.run(self.model, self.lm_head, input_ids, attention_mask, past_key_values)
            if logits is not None:
                return CausalLMOutputWithPast(logits=logits, past_key_values=past_key_values)

        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            cu_seqlens=cu_seqlens,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            return_dict=True,
            position_ids=position_ids,
            seq_idx=seq_idx,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])

        loss = None
        if labels is not None and shift_labels is None:
            # The last position of a document is not scored on the first token of the next one.
            is_packed = position_ids is not None or seq_idx is not None
            mask = self.model.mask(attention_mask, labels) if is_packed else None
            cu_seqlens = boundaries(labels, mask, cu_seqlens, position_ids, seq_idx, **kwargs)
            rows = labels if cu_seqlens is None else end_to_end(labels)
            shift_labels = next_labels(rows, cu_seqlens, _IGNORE).view(labels.shape)
        if shift_labels is not None:
            loss = self.loss_function(
                logits=logits,
                labels=None,
                vocab_size=self.config.vocab_size,
                num_items_in_batch=num_items_in_batch,
                shift_labels=shift_labels.contiguous(),
                ignore_index=_IGNORE,
            )
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
        )

    @contextlib.contextmanager
    def stepping(self, steps: CompiledSteps | None = None) -> Iterator[None]:
        """While inside, a call for one new token of 1 to 8 sequences is one compiled call.

        `generate` does this by itself. In a decoding loop that you write it removes the cost of
        many small operations. Calls for which there is no compiled code (gradients, a half
        precision, another device, adapters, hooks, masked tokens) are computed by the model as
        usual. A model that is changed inside is compiled anew, which takes some milliseconds.

        Args:
            steps: where the compiled code is kept, for use in a later `stepping`; default: only
                while inside.
        """
        with step_with(self, CompiledSteps() if steps is None else steps):
            yield

    @property
    def is_stepping(self) -> bool:
        """Whether this thread is inside `stepping`."""
        return active_steps(self) is not None

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """As transformers does; on a CPU by compiled steps (see `stepping`)."""
        with self.stepping():
            return super().generate(*args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        inputs_embeds: Tensor | None = None,
        tokenizer: Any = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """As transformers does. The tokenizer, which `generate` has for stop strings, is dropped.

        Raises:
            ValueError: a row of the prompt is packed of several documents, and each of them would
                go on.
        """
        parent: Any = super()  # its type does not know of generation
        inputs = parent.prepare_inputs_for_generation(
            input_ids, inputs_embeds=inputs_embeds, **kwargs
        )
        packing = {name: inputs.pop(name) for name in PACKING if name in inputs}
        if not packing:
            return inputs
        embeds = inputs.get("inputs_embeds")
        x = inputs["input_ids"] if embeds is None else embeds
        documents = boundaries(x, self.model.mask(inputs.get("attention_mask"), x), **packing)
        if documents is not None and len(documents) - 1 != len(x):
            raise ValueError(
                f"{', '.join(packing)}: generate goes on from the end of each row, so a row must "
                f"be one document, but there are {len(documents) - 1} in {len(x)} row(s); give a "
                "row for each, padded on the left"
            )
        return inputs

    def _validate_generation_mode(
        self, generation_mode: GenerationMode, *args: Any, **kwargs: Any
    ) -> None:
        """As transformers does, but says why HGRN cannot decode with an assistant."""
        if generation_mode == GenerationMode.ASSISTED_GENERATION:
            raise NotImplementedError(NO_WAY_BACK)
        parent: Any = super()  # its type does not know of generation
        parent._validate_generation_mode(generation_mode, *args, **kwargs)

    def _prepare_position_ids_for_generation(self, inputs_tensor: Any, model_kwargs: Any) -> None:
        """Makes none: HGRN needs no positions, and making them at each step would cost time."""

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Start from our cache: none of transformers' own fits a model without attention."""
        if model_kwargs.get("past_key_values") is not None or generation_config.use_cache is False:
            parent: Any = super()  # its type does not know of generation
            return parent._prepare_cache_for_generation(
                generation_config, model_kwargs, *args, **kwargs
            )
        if generation_config.cache_implementation not in (None, "dynamic"):
            given = generation_config.cache_implementation
            raise ValueError(
                f"cache_implementation={given!r}: HGRN keeps a state of fixed size and no keys and "
                "values that could lie elsewhere; leave cache_implementation out"
            )
        model_kwargs["past_key_values"] = HGRNCache()
