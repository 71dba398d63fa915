"""The backbone (embeddings or patches, stack, final norm), and what all HGRN models share."""

import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils.generic import can_return_tuple

from hgrn.errors import UserError
from hgrn.models.cache import HGRNCache
from hgrn.models.card import write_card
from hgrn.models.configuration import HGRNConfig
from hgrn.models.custom import check_custom_modules, custom_modules
from hgrn.models.documents import FLASH_ATTENTION, boundaries, end_to_end, refuse_unknown
from hgrn.models.initialization import initialize
from hgrn.models.loading import (
    check_folder_size,
    check_published_size,
    published_state_dict,
    refuse_int8_weights,
)
from hgrn.models.mixer_fields import mixer_arguments
from hgrn.models.published.files import PublishedCheckpoint
from hgrn.modules import (
    HGRN,
    Int8Linear,
    Mixer,
    PatchEmbedding,
    layer_matrices,
    no_decay_names,
    positions,
    sinusoids,
)


class HGRNPreTrainedModel(PreTrainedModel):
    """What all HGRN models share: initialisation, loading and saving."""

    config: HGRNConfig
    config_class: type[HGRNConfig] = HGRNConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["Block"]
    _skip_keys_device_placement = ["past_key_values"]
    # The loader of transformers does not see what KeepsFloat32 (hgrn.modules.parameters) says.
    _keep_in_fp32_modules_strict = {"theta", "bounds", "running_mean", "running_var"}

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str] | None,
        *model_args: Any,
        config: Any = None,
        **kwargs: Any,
    ) -> Any:
        """As transformers does; a checkpoint in a published layout is converted on the way in.

        Raises:
            ConversionError: naming all keys and tensors of a published checkpoint that do not fit.
            UserError: the weights would become another model, because they have 8 bits, or come
                from a model with custom parts that this class does not have.
        """
        path = pretrained_model_name_or_path
        if path is not None and kwargs.get("state_dict") is None:
            found = PublishedCheckpoint.find(path, kwargs)
            if found is not None:
                return cls.from_checkpoint(found, *model_args, config=config, **kwargs)
        if path is not None and os.path.isdir(path):
            check_folder_size(path, config)

        with_report = kwargs.pop("output_loading_info", False)
        loaded: Any = super().from_pretrained(
            path, *model_args, config=config, output_loading_info=True, **kwargs
        )
        model, report = loaded
        refuse_int8_weights(model, path, report)
        model.check_custom_modules(getattr(model.config, "custom_modules", {}), path)
        return (model, report) if with_report else model

    @classmethod
    def from_checkpoint(
        cls, found: PublishedCheckpoint, *model_args: Any, config: Any = None, **kwargs: Any
    ) -> Any:
        """As `from_pretrained`, for a published checkpoint that has been found already.

        Raises:
            ConversionError: naming every key and tensor of the checkpoint that does not fit.
        """
        options = found.loading_options(kwargs)
        if config is None:
            # These two belong to the loader, though the configuration would take them.
            dtypes = {key: options.pop(key) for key in ("dtype", "torch_dtype") if key in options}
            fields = found.fields(options.pop("mixer_options", None))
            config, unused = cls.config_class.from_dict(
                fields, return_unused_kwargs=True, **options
            )
            options = unused | dtypes
        check_published_size(found, config)
        with torch.device("meta"):
            expected = cls(config, *model_args)
        state_dict = published_state_dict(found, expected)
        loaded = super().from_pretrained(
            None, *model_args, config=config, state_dict=state_dict, **options
        )
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.config.name_or_path = found.path
        return loaded

    def _init_weights(self, module: nn.Module) -> None:
        is_tied_head = module is getattr(self, "lm_head", None) and self.config.tie_word_embeddings
        if not is_tied_head:  # which is the embedding
            initialize(module, self.config.initialization)

    def no_decay_names(self) -> set[str]:
        """Names of the parameters without weight decay; see `hgrn.modules.no_decay_names`."""
        return no_decay_names(self)

    def layer_matrices(self) -> dict[str, tuple[int, ...]]:
        """Names and joined rows of the matrices in the layers (`hgrn.modules.layer_matrices`)."""
        return layer_matrices(self)

    def custom_modules(self) -> dict[str, str]:
        """Names and descriptions of the parts that the configuration does not describe."""
        with torch.device("meta"):
            plain = HGRNModel(self.config)
        return custom_modules(self.base_model, plain)

    def check_custom_modules(self, recorded: Mapping[str, str], path: str | Path | None) -> None:
        """Raise UserError unless the model has the parts that a checkpoint at `path` records."""
        if recorded:
            check_custom_modules(recorded, self.custom_modules(), path)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """As transformers does, and a model card (README.md) beside it, unless one was edited.

        Raises:
            UserError: the model has 8-bit weights. They are made for decoding, in a moment, and are
                not saved.
        """
        if rounded := [name for name, part in self.named_modules() if isinstance(part, Int8Linear)]:
            raise UserError(
                f"{rounded[0]} has 8-bit weights, which are not saved; save the model before "
                "quantize_int8, and quantize it again after loading (--int8 of the commands does "
                "so)"
            )
        # Of a model with an adapter, transformers saves the adapter alone.
        is_adapted = getattr(self, "_hf_peft_config_loaded", False)
        recorded = vars(self.config)
        recorded.pop("custom_modules", None)
        if not is_adapted and (custom := self.custom_modules()):
            recorded["custom_modules"] = custom
        super().save_pretrained(save_directory, is_main_process, *args, **kwargs)
        if is_main_process:
            write_card(self, save_directory)

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoModel") -> None:
        """Does nothing, as `HGRNConfig.register_for_auto_class`."""


class HGRNModel(HGRNPreTrainedModel):
    """The bare model: token ids, or the pixels of images, to normed hidden states."""

    def __init__(self, config: HGRNConfig):
        super().__init__(config)
        if config.patch_size is None:
            self.embed_tokens = nn.Embedding(
                config.vocab_size, config.hidden_size, config.pad_token_id
            )
        else:
            self.embed_patches = PatchEmbedding(
                config.num_channels, config.patch_size, config.hidden_size
            )
            self.main_input_name = "pixel_values"
        self.dropout = nn.Dropout(
            config.dropout if config.embedding_dropout is None else config.embedding_dropout
        )
        self.stack = HGRN(
            config.hidden_size,
            config.num_hidden_layers,
            glu_dim=config.intermediate_size,
            glu_act=config.glu_act,
            dropout=config.dropout,
            glu_dropout=config.glu_dropout,
            bias=config.bias,
            norm_eps=config.norm_eps,
            norm_type=config.norm_type,
            final_norm=config.final_norm == "tokens",
            grid=config.grid,
            use_lower_bound=config.use_lower_bound,
            mixer=config.mixer,
            mixer_options=mixer_arguments(config),
        )
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: HGRNCache | None = None,
        inputs_embeds: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        pixel_values: Tensor | None = None,
        position_ids: Tensor | None = None,
        seq_idx: Tensor | None = None,
        **flash_attention: Any,
    ) -> BaseModelOutputWithPast:
        """
        Args:
            input_ids: `[B, T]`; `[1, total]` with cu_seqlens.
            attention_mask: `[B, T]`, or with the columns of the past in front; 0 where there is
                padding, on either side. Such positions are skipped exactly, unless the
                configuration says mask_padding=False.
            past_key_values: the cache that an earlier call returned; it is updated. With cu_seqlens
                its sequences are the packed ones. A model that reads whole sequences
                (bidirectional, with sinusoidal_positions, or of images) has none.
            inputs_embeds: `[B, T, hidden_size]` in place of input_ids, as `embed_tokens` gives them
                (before scaling).
            cu_seqlens: int32 or int64 `[N + 1]`, boundaries of documents packed end to end; nothing
                passes over them. A mask given as well marks padding inside the packing.
            use_cache: return a cache; default: when one is given, or `config.use_cache` outside
                training.
            output_hidden_states: return the input of every block, and the normed output last.
            output_attentions: not available; accepted because some callers always pass it.
            pixel_values: floats `[B, num_channels, height, width]`, the only input of a model of
                images (config.patch_size). The positions are its patches, in raster order.
            position_ids: `[B, T]` or `[1, T]`; a new document begins wherever they do not go on by
                1, as with cu_seqlens. Plain counting changes nothing: HGRN needs no positions.
            seq_idx: `[B, T]`, the number of each position's document, in place of cu_seqlens.
            **flash_attention: what collators for packed batches make: cu_seq_lens_q and
                cu_seq_lens_k in place of cu_seqlens, and max_length_q and max_length_k, which are
                not needed.

        Returns:
            last_hidden_state `[B, T, hidden_size]`, past_key_values, hidden_states.

        Raises:
            ValueError, TypeError: the arguments do not go together; the message names them.
        """
        refuse_unknown(flash_attention, FLASH_ATTENTION, self)
        others = (attention_mask, cu_seqlens, position_ids, seq_idx, *flash_attention.values())
        self._check_inputs(input_ids, inputs_embeds, pixel_values, others)
        if output_attentions:
            raise ValueError("output_attentions=True: HGRN has no attention weights to return")
        use_cache = self._uses_cache(past_key_values, use_cache)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states

        # Embed.
        grid = None
        if pixel_values is not None:
            grid = self.embed_patches(pixel_values)
            x = grid.flatten(1, 2)
        elif inputs_embeds is not None:
            x = self._scaled(inputs_embeds)
        else:
            x = self.embed(cast(Tensor, input_ids))
        rows = x.shape[:2]

        # Documents inside the rows are laid end to end, in a single row.
        mask = self.mask(attention_mask, x)
        cu_seqlens = boundaries(x, mask, cu_seqlens, position_ids, seq_idx, **flash_attention)
        if cu_seqlens is not None:
            if past_key_values is not None and past_key_values.is_initialized:
                _check_states(past_key_values, cu_seqlens)
            x = end_to_end(x)
            mask = None if mask is None else end_to_end(mask)
        if not self.config.mask_padding:
            mask = None
        if self.config.sinusoidal_positions:
            x = x + sinusoids(positions(x, mask, cu_seqlens), x.shape[-1], x.dtype)

        # The stack; it appends to the list of hidden states, where there is one.
        hidden_states: list[Tensor] | None = [] if output_hidden_states else None
        state = None if past_key_values is None else past_key_values.state
        x = self.dropout(x)
        if self.config.grid and grid is not None:
            x = x.unflatten(1, grid.shape[1:3])
        x, state = self.stack(x, state, mask, cu_seqlens, hidden_states, rows)
        x = x.reshape(*rows, x.shape[-1])

        if use_cache:
            past_key_values = HGRNCache() if past_key_values is None else past_key_values
            past_key_values.update_state(state, rows[1])
        return BaseModelOutputWithPast(
            last_hidden_state=x,
            past_key_values=past_key_values if use_cache else None,
            hidden_states=None if hidden_states is None else (*hidden_states, x),
        )

    def get_input_embeddings(self) -> nn.Module:
        """The embeddings of tokens, or of patches."""
        return self.embed_tokens if self.config.patch_size is None else self.embed_patches

    def embed(self, input_ids: Tensor) -> Tensor:
        """What the stack reads: ids `[B, T]` -> `[B, T, hidden_size]`, scaled if configured."""
        return self._scaled(self.embed_tokens(input_ids))

    def initial_state(self, sequences: int) -> tuple[tuple[Tensor, ...], ...]:
        """The state before the first position: for each layer a tuple, with N sequences."""
        mixers = (cast(Mixer, block.mixer) for block in self.stack.blocks)
        return tuple(mixer.initial_state(sequences) for mixer in mixers)

    def mask(self, attention_mask: Tensor | None, x: Tensor) -> Tensor | None:
        """The stack's mask `[B, T]` for x `[B, T, ...]`: the last T columns, as bool."""
        if attention_mask is None:
            return None
        batch, length = x.shape[:2]
        shape = attention_mask.shape
        if attention_mask.ndim != 2 or shape[0] != batch or shape[1] < length:
            raise ValueError(
                f"attention_mask must have shape [{batch}, {length}] (or more columns in front, "
                f"for the past), got {tuple(shape)}"
            )
        return attention_mask[:, shape[1] - length :].bool()

    def _check_inputs(
        self,
        input_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        pixel_values: Tensor | None,
        others: Iterable[object],
    ) -> None:
        """Raise ValueError unless there is exactly one input, of the kind that the model reads."""
        patch_size = self.config.patch_size
        if patch_size is not None:
            all_others = (input_ids, inputs_embeds, *others)
            if pixel_values is None or any(other is not None for other in all_others):
                raise ValueError(
                    f"the configuration is one of images (patch_size={patch_size}), so give "
                    "pixel_values, and neither input_ids, attention_mask, inputs_embeds nor "
                    "cu_seqlens"
                )
        elif pixel_values is not None:
            raise ValueError(
                "pixel_values need a configuration with patch_size, got patch_size=None; give "
                "input_ids"
            )
        elif (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")

    def _uses_cache(self, past_key_values: HGRNCache | None, use_cache: bool | None) -> bool:
        """Whether the call returns a cache.

        Raises:
            TypeError: past_key_values is no cache of ours.
            ValueError: the model keeps no state, and a cache is given or wanted.
        """
        if past_key_values is not None and not isinstance(past_key_values, HGRNCache):
            raise TypeError(
                f"past_key_values must be an HGRNCache, got {type(past_key_values).__name__}"
            )
        kinds = {
            "a bidirectional model": self.config.bidirectional,
            "a model with sinusoidal_positions": self.config.sinusoidal_positions,
            "a model of images": self.config.patch_size is not None,
        }
        stateless = next((kind for kind, is_it in kinds.items() if is_it), None)
        first = cast(Mixer, self.stack.blocks[0].mixer)
        if stateless is None and (reason := first.why_not("state")):
            stateless = f"a model whose mixer says {reason!r}"
        if stateless and (past_key_values is not None or use_cache):
            raise ValueError(
                f"{stateless} reads whole sequences and keeps no state: it takes no "
                "past_key_values and use_cache=True can return none; leave both out"
            )
        if use_cache is not None:
            return use_cache
        is_wanted = self.config.use_cache and not self.training and not stateless
        return past_key_values is not None or is_wanted

    def _scaled(self, x: Tensor) -> Tensor:
        return x * math.sqrt(self.config.hidden_size) if self.config.scale_embeddings else x


def _check_states(past_key_values: HGRNCache, cu_seqlens: Tensor) -> None:
    sequences = past_key_values.batch_size
    documents = cu_seqlens.shape[0] - 1
    if sequences != documents:
        raise ValueError(
            f"cu_seqlens, seq_idx or position_ids make {documents} documents of the batch, but "
            f"past_key_values holds the states of {sequences} sequence(s); give each document its "
            "own, or begin without past_key_values"
        )
