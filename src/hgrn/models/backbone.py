"""HGRNModel: embeddings or patches, the stack, the final norm; and the initialisation that all HGRN models share."""

import math
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils import can_return_tuple

from hgrn.errors import UserError
from hgrn.models.cache import HGRNCache
from hgrn.models.card import write_card
from hgrn.models.configuration import HGRNConfig
from hgrn.models.convert import ConversionError, fitted, named_tensors, source_names
from hgrn.models.custom import check_custom_modules, custom_modules
from hgrn.models.documents import FLASH_ATTENTION, boundaries, end_to_end, refuse_unknown
from hgrn.models.published import Published
from hgrn.modules import (
    HGRN,
    HGRU,
    BatchNorm,
    Int8Linear,
    LowerBounds,
    PatchEmbedding,
    ShortConvolution,
    layer_matrices,
    no_decay_names,
    positions,
    sinusoids,
)
from hgrn.modules.hgru import initial_theta

_PER_BYTE = 4  # at most so many numbers of a model are in one byte of its files; the smallest known types have two

# Of a published checkpoint, what a model without that head leaves out.
_OF_HEADS = (
    "lm_head.weight",
    *(
        f"{head}.{kind}"
        for head in ("score", "classifier.0", "classifier.2")
        for kind in ("weight", "bias")
    ),
)


class HGRNPreTrainedModel(PreTrainedModel):
    """What all HGRN models share.

    Attributes:
        card_facts: how the model came about (recipe, data, results, ...), for the card that `save_pretrained` writes.
    """

    card_facts: Mapping[str, object] = {}

    config_class = HGRNConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["Block"]
    _skip_keys_device_placement = ["past_key_values"]
    # For the loader of transformers, what KeepsFloat32 (hgrn.modules.parameters) says for everyone else.
    _keep_in_fp32_modules_strict = {"theta", "bounds", "running_mean", "running_var"}

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, config=None, **kwargs):
        """As transformers does; a checkpoint in a published layout is converted on the way in (docs/checkpoints.md).

        Raises:
            ConversionError: naming every key and tensor of a published checkpoint that does not fit.
            UserError: the weights would become another model: they are of 8 bits, or of a model with parts of its own that this
                class does not have.
        """
        path = pretrained_model_name_or_path
        published = (
            None
            if path is None or kwargs.get("state_dict") is not None
            else Published.find(path, kwargs)
        )
        if published is None:
            if path is not None and os.path.isdir(path):
                _check_files_suffice(path, config)
            with_report = kwargs.pop("output_loading_info", False)
            model, report = super().from_pretrained(
                path, *model_args, config=config, output_loading_info=True, **kwargs
            )
            model._check_loaded(path, report)
            return (model, report) if with_report else model
        options = published.options(kwargs)
        tensors = published.tensors()
        if config is None:
            dtypes = {key: options.pop(key) for key in ("dtype", "torch_dtype") if key in options}
            config, options = cls.config_class.from_dict(
                published.fields(tensors), return_unused_kwargs=True, **options
            )
            options |= dtypes
        if config.fewest_numbers > _PER_BYTE * sum(tensor.nbytes for tensor in tensors.values()):
            raise ConversionError(
                f"{path}: its tensors are only a small part of the model that its configuration describes"
            )
        with torch.device("meta"):
            expected = cls(config, *model_args)
        prefix = f"{cls.base_model_prefix}." if expected.base_model is expected else ""
        parameters = {prefix + name: tensor for name, tensor in named_tensors(expected).items()}
        for source in (
            s
            for name in _OF_HEADS
            if name not in parameters
            for s in source_names(name, published.layout)
        ):
            tensors.pop(source, None)
        # A head that the layout does not have is initialised by transformers, which says so.
        known = {
            name: tensor
            for name, tensor in parameters.items()
            if name.startswith(f"{cls.base_model_prefix}.") or source_names(name, published.layout)
        }
        state_dict = fitted(known, tensors, published.layout)
        loaded = super().from_pretrained(
            None, *model_args, config=config, state_dict=state_dict, **options
        )
        (loaded[0] if isinstance(loaded, tuple) else loaded).config.name_or_path = published.path
        return loaded

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """The published schemes (configuration: `initialization`), for the parameters of one module.

        Writes only through `transformers.initialization`, which leaves alone every tensor that was loaded.
        """
        normal = self.config.initialization == "normal"
        if module is getattr(self, "lm_head", None) and self.config.tie_word_embeddings:
            return  # it is the embedding
        if isinstance(module, nn.Linear):
            limit = 1 / math.sqrt(module.in_features)
            if normal:
                init.normal_(module.weight, std=0.02)
            else:
                init.uniform_(module.weight, -limit, limit)
            if module.bias is not None and normal:
                init.zeros_(module.bias)
            elif module.bias is not None:
                init.uniform_(module.bias, -limit, limit)
        elif isinstance(module, nn.Embedding):
            std = {"normal": 0.02, "lra": 1.0}.get(
                self.config.initialization, module.embedding_dim**-0.5
            )
            table = torch.empty_like(module.weight).normal_(std=std)
            if module.padding_idx is not None:
                table[module.padding_idx] = 0
            init.copy_(module.weight, table)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, nn.RMSNorm):
            init.ones_(module.weight)
        elif isinstance(module, BatchNorm):
            for ones in (module.weight, module.running_var):
                init.ones_(ones)
            for zeros in (module.bias, module.running_mean, module.num_batches_tracked):
                init.zeros_(zeros)
        elif isinstance(module, ShortConvolution):
            limit = module.weight.shape[1] ** -0.5
            if normal:
                init.normal_(module.weight, std=0.02)
            else:
                init.uniform_(module.weight, -limit, limit)
        elif isinstance(module, LowerBounds):
            init.zeros_(module.logits)
        elif isinstance(module, HGRU) and module.theta is not None:
            init.copy_(module.theta, initial_theta(module.dim))

    def no_decay_names(self) -> set[str]:
        """Names of the parameters that take no weight decay; the rule is `hgrn.modules.no_decay_names`'s."""
        return no_decay_names(self)

    def layer_matrices(self) -> dict[str, tuple[int, ...]]:
        """Names and joined rows of the matrices inside the layers; see `hgrn.modules.layer_matrices`."""
        return layer_matrices(self)

    def custom_modules(self) -> dict[str, str]:
        """Names and descriptions of the parts of the backbone that are not those that the configuration describes."""
        with torch.device("meta"):
            plain = HGRNModel(self.config)
        return custom_modules(self.base_model, plain)

    def check_custom_modules(self, recorded: Mapping[str, str], path: str | Path | None) -> None:
        """Raises UserError unless the model has the parts that the config.json of a checkpoint at `path` records."""
        if recorded:
            check_custom_modules(recorded, self.custom_modules(), path)

    def _check_loaded(self, path: str | Path | None, report: Mapping) -> None:
        names = {name for name, part in self.named_modules() if isinstance(part, nn.Linear)}
        rounded = sorted(
            key
            for key in report["unexpected_keys"]
            if key.endswith(".scale") and key.removesuffix(".scale") in names
        )
        if rounded:
            raise UserError(
                f"{path} holds 8-bit weights ({rounded[0]} and {len(rounded) - 1} more scales), which are no weights of a saved model; "
                "load what was saved before quantize_int8, and quantize it again"
            )
        self.check_custom_modules(getattr(self.config, "custom_modules", {}), path)

    def save_pretrained(
        self, save_directory: str | Path, is_main_process: bool = True, *args, **kwargs
    ) -> None:
        """As transformers does, and a model card (README.md) beside it; one that was edited stays as it is.

        Raises:
            UserError: the model has 8-bit weights, which are made for decoding, in a moment, and are not saved.
        """
        if rounded := [name for name, part in self.named_modules() if isinstance(part, Int8Linear)]:
            raise UserError(
                f"{rounded[0]} has 8-bit weights, which are not saved; save the model before quantize_int8, and quantize it again "
                "after loading (--int8 of the commands does so)"
            )
        is_adapted = getattr(
            self, "_hf_peft_config_loaded", False
        )  # then only the adapter is saved
        if custom := {} if is_adapted else self.custom_modules():
            self.config.custom_modules = custom
        elif hasattr(self.config, "custom_modules"):
            del self.config.custom_modules
        super().save_pretrained(save_directory, is_main_process, *args, **kwargs)
        if is_main_process:
            write_card(self, save_directory, self.card_facts)

    @classmethod
    def register_for_auto_class(cls, auto_class="AutoModel"):
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
            complex_state=config.complex_state,
            gate_position=config.gate_position,
            gate_act=config.gate_act,
            gate_rank=config.gate_rank,
            norm_type=config.norm_type,
            final_norm=config.final_norm == "tokens",
            grid=config.grid,
            use_lower_bound=config.use_lower_bound,
            conv_size=config.conv_size,
            bidirectional=config.bidirectional,
            shared_theta=config.shared_theta,
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
        **flash_attention,
    ) -> BaseModelOutputWithPast:
        """
        Args:
            input_ids: `[B, T]`; `[1, total]` with cu_seqlens.
            attention_mask: `[B, T]`, or with the columns of the past in front; 0 where there is padding, on
                either side. Such positions are skipped exactly, unless the configuration says mask_padding=False.
            past_key_values: the cache that an earlier call returned; it is updated. With cu_seqlens its
                sequences are those of the packing. A model that reads whole sequences (bidirectional, with
                sinusoidal_positions, or of images) has none.
            inputs_embeds: `[B, T, hidden_size]` in place of input_ids, as `embed_tokens` gives them (before
                scaling).
            cu_seqlens: int32 or int64 `[N + 1]`, boundaries of documents packed end to end; nothing passes
                over them. A mask given as well marks padding inside the packing.
            use_cache: return a cache; default: when one is given, or `config.use_cache` outside training.
            output_hidden_states: return the input of every block, and the normed output last.
            output_attentions: not available; for callers that always pass it.
            pixel_values: `[B, num_channels, height, width]`, floats, for a model of images (config.patch_size), whose only
                input they are. The positions are its patches, in raster order.
            position_ids: `[B, T]` or `[1, T]`; where they do not go on by 1 a new document begins, as with cu_seqlens. Those that
                merely count change nothing: HGRN needs no positions.
            seq_idx: `[B, T]`, the number of each position's document, in place of cu_seqlens.
            **flash_attention: cu_seq_lens_q and cu_seq_lens_k in place of cu_seqlens, and max_length_q and max_length_k, which are not
                needed: what collators for packed batches make.

        Returns:
            last_hidden_state `[B, T, hidden_size]`, past_key_values, hidden_states.

        Raises:
            ValueError, TypeError: the arguments do not go together; the message names them.
        """
        refuse_unknown(flash_attention, FLASH_ATTENTION, self)
        if output_attentions:
            raise ValueError("output_attentions=True: HGRN has no attention weights to return")
        if self.config.patch_size is not None:
            others = (
                input_ids,
                attention_mask,
                inputs_embeds,
                cu_seqlens,
                position_ids,
                seq_idx,
                *flash_attention.values(),
            )
            if pixel_values is None or any(other is not None for other in others):
                raise ValueError(
                    f"the configuration is one of images (patch_size={self.config.patch_size}), so give pixel_values, and neither "
                    "input_ids, attention_mask, inputs_embeds nor cu_seqlens"
                )
        elif pixel_values is not None:
            raise ValueError(
                "pixel_values need a configuration with patch_size, got patch_size=None; give input_ids"
            )
        elif (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if past_key_values is not None and not isinstance(past_key_values, HGRNCache):
            raise TypeError(
                f"past_key_values must be an HGRNCache, got {type(past_key_values).__name__}"
            )
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        kinds = {
            "a bidirectional model": self.config.bidirectional,
            "a model with sinusoidal_positions": self.config.sinusoidal_positions,
            "a model of images": self.config.patch_size is not None,
        }
        whole = next((kind for kind, is_it in kinds.items() if is_it), None)
        if whole and (past_key_values is not None or use_cache):
            raise ValueError(
                f"{whole} reads whole sequences and keeps no state: it takes no past_key_values and use_cache=True "
                "can return none; leave both out"
            )
        if use_cache is None:
            kept = self.config.use_cache and not self.training and not whole
            use_cache = past_key_values is not None or kept

        if pixel_values is not None:
            grid = self.embed_patches(pixel_values)
            x = grid.flatten(1, 2)
        else:
            x = self.embed(input_ids) if inputs_embeds is None else self._scaled(inputs_embeds)
        rows = x.shape[:2]
        mask = self.mask(attention_mask, x)
        cu_seqlens = boundaries(x, mask, cu_seqlens, position_ids, seq_idx, **flash_attention)
        if cu_seqlens is not None:
            if past_key_values is not None and past_key_values.is_initialized:
                _check_states(past_key_values, cu_seqlens)
            x = end_to_end(x)
            mask = end_to_end(mask)
        if not self.config.mask_padding:
            mask = None
        if self.config.sinusoidal_positions:
            x = x + sinusoids(positions(x, mask, cu_seqlens), x.shape[-1], x.dtype)
        hidden_states = [] if output_hidden_states else None
        state = None if past_key_values is None else past_key_values.state
        x = self.dropout(x)
        if self.config.grid:
            x = x.unflatten(1, grid.shape[1:3])
        x, state = self.stack(x, state, mask, cu_seqlens, hidden_states, rows)
        x = x.reshape(*rows, x.shape[-1])

        if use_cache:
            past_key_values = HGRNCache() if past_key_values is None else past_key_values
            past_key_values.update_state(state, rows[1])
        return BaseModelOutputWithPast(
            last_hidden_state=x,
            past_key_values=past_key_values if use_cache else None,
            hidden_states=(*hidden_states, x) if output_hidden_states else None,
        )

    def get_input_embeddings(self) -> nn.Module:
        """The embeddings of tokens, or of patches."""
        return self.embed_tokens if self.config.patch_size is None else self.embed_patches

    def embed(self, input_ids: Tensor) -> Tensor:
        """What the stack reads: `[B, T]` -> `[B, T, hidden_size]`, scaled if the configuration says so."""
        return self._scaled(self.embed_tokens(input_ids))

    def mask(self, attention_mask: Tensor | None, x: Tensor) -> Tensor | None:
        """The stack's mask `[B, T]` for x `[B, T, ...]`: the last T columns, as bool."""
        if attention_mask is None:
            return None
        batch, length = x.shape[:2]
        if (
            attention_mask.ndim != 2
            or attention_mask.shape[0] != batch
            or attention_mask.shape[1] < length
        ):
            raise ValueError(
                f"attention_mask must have shape [{batch}, {length}] (or more columns in front, for the "
                f"past), got {tuple(attention_mask.shape)}"
            )
        return attention_mask[:, attention_mask.shape[1] - length :].bool()

    def _scaled(self, x: Tensor) -> Tensor:
        return x * math.sqrt(self.config.hidden_size) if self.config.scale_embeddings else x


def _check_states(past_key_values: HGRNCache, cu_seqlens: Tensor) -> None:
    sequences = past_key_values.batch_size
    documents = cu_seqlens.shape[0] - 1
    if sequences != documents:
        raise ValueError(
            f"cu_seqlens, seq_idx or position_ids make {documents} documents of the batch, but past_key_values holds the states of "
            f"{sequences} sequence(s); give each document its own, or begin without past_key_values"
        )


def _check_files_suffice(folder: str | os.PathLike, config: HGRNConfig | None) -> None:
    """Raises ValueError for a configuration of a model many times as large as its files.

    transformers makes what is missing there, and says only then that it does not fit: a wrong digit costs all of the memory.
    """
    sizes = [
        file.stat().st_size
        for file in os.scandir(folder)
        if file.name.endswith((".safetensors", ".bin"))
    ]
    if sizes and config is None:
        config = HGRNConfig.from_pretrained(folder)
    if sizes and isinstance(config, HGRNConfig) and config.fewest_numbers > _PER_BYTE * sum(sizes):
        raise ValueError(
            f"{folder}: the configuration describes a model of {config.fewest_numbers:,} parameters or more, and its files have "
            f"{sum(sizes):,} bytes; one of them is not the model's"
        )
