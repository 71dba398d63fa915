"""HGRNModel: embeddings, the stack, the final norm; and the initialisation that all HGRN models share."""

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils import can_return_tuple

from hgrn.modules import HGRN, HGRU, LowerBounds, ShortConvolution, layer_matrices, no_decay_names
from hgrn.modules.hgru import initial_theta

from .cache import HGRNCache
from .card import write_card
from .configuration import HGRNConfig
from .convert import fitted, sources
from .published import Published


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
    _keep_in_fp32_modules_strict = {"theta", "bounds"}

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, config=None, **kwargs):
        """As transformers does; a checkpoint in a published layout is converted on the way in (docs/checkpoints.md).

        Raises:
            ConversionError: naming every key and tensor of a published checkpoint that does not fit.
        """
        path = pretrained_model_name_or_path
        published = None if path is None or kwargs.get("state_dict") is not None else Published.find(path, kwargs)
        if published is None:
            return super().from_pretrained(path, *model_args, config=config, **kwargs)
        options = published.options(kwargs)
        tensors = published.tensors()
        if config is None:
            dtypes = {key: options.pop(key) for key in ("dtype", "torch_dtype") if key in options}
            config, options = cls.config_class.from_dict(published.fields(tensors), return_unused_kwargs=True, **options)
            options |= dtypes
        with torch.device("meta"):
            expected = cls(config, *model_args)
        prefix = f"{cls.base_model_prefix}." if expected.base_model is expected else ""
        parameters = {prefix + name: parameter for name, parameter in expected.named_parameters(remove_duplicate=False)}
        if "lm_head.weight" not in parameters:
            tensors.pop(sources("lm_head.weight", published.layout), None)
        # Heads for other tasks are in no published checkpoint; transformers initialises them, and says so.
        known = {name: p for name, p in parameters.items() if name.startswith((f"{cls.base_model_prefix}.", "lm_head."))}
        state_dict = fitted(known, tensors, published.layout)
        loaded = super().from_pretrained(None, *model_args, config=config, state_dict=state_dict, **options)
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
            std = 0.02 if normal else module.embedding_dim**-0.5
            table = torch.empty_like(module.weight).normal_(std=std)
            if module.padding_idx is not None:
                table[module.padding_idx] = 0
            init.copy_(module.weight, table)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, nn.RMSNorm):
            init.ones_(module.weight)
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

    def save_pretrained(self, save_directory: str | Path, is_main_process: bool = True, *args, **kwargs) -> None:
        """As transformers does, and a model card (README.md) beside it; one that was edited stays as it is."""
        super().save_pretrained(save_directory, is_main_process, *args, **kwargs)
        if is_main_process:
            write_card(self, save_directory, self.card_facts)

    @classmethod
    def register_for_auto_class(cls, auto_class="AutoModel"):
        """Does nothing, as `HGRNConfig.register_for_auto_class`."""


class HGRNModel(HGRNPreTrainedModel):
    """The bare model: token ids to normed hidden states."""

    def __init__(self, config: HGRNConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.dropout = nn.Dropout(config.dropout)
        self.stack = HGRN(
            config.hidden_size,
            config.num_hidden_layers,
            glu_dim=config.intermediate_size,
            glu_act=config.glu_act,
            dropout=config.dropout,
            bias=config.bias,
            norm_eps=config.norm_eps,
            complex_state=config.complex_state,
            gate_position=config.gate_position,
            gate_act=config.gate_act,
            gate_rank=config.gate_rank,
            norm_type=config.norm_type,
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
    ) -> BaseModelOutputWithPast:
        """
        Args:
            input_ids: `[B, T]`; `[1, total]` with cu_seqlens.
            attention_mask: `[B, T]`, or with the columns of the past in front; 0 where there is padding, on
                either side. Such positions are skipped exactly.
            past_key_values: the cache that an earlier call returned; it is updated. With cu_seqlens its
                sequences are those of the packing. A bidirectional model has none.
            inputs_embeds: `[B, T, hidden_size]` in place of input_ids, as `embed_tokens` gives them (before
                scaling).
            cu_seqlens: int32 or int64 `[N + 1]`, boundaries of documents packed end to end; nothing passes
                over them. A mask given as well marks padding inside the packing.
            use_cache: return a cache; default: when one is given, or `config.use_cache` outside training.
            output_hidden_states: return the input of every block, and the normed output last.
            output_attentions: not available; for callers that always pass it.

        Returns:
            last_hidden_state `[B, T, hidden_size]`, past_key_values, hidden_states.

        Raises:
            ValueError, TypeError: the arguments do not go together; the message names them.
        """
        if output_attentions:
            raise ValueError("output_attentions=True: HGRN has no attention weights to return")
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if past_key_values is not None and not isinstance(past_key_values, HGRNCache):
            raise TypeError(f"past_key_values must be an HGRNCache, got {type(past_key_values).__name__}")
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if self.config.bidirectional and (past_key_values is not None or use_cache):
            raise ValueError(
                "a bidirectional model reads whole sequences and keeps no state: it takes no past_key_values and use_cache=True "
                "can return none; leave both out"
            )
        if use_cache is None:
            kept = self.config.use_cache and not self.training and not self.config.bidirectional
            use_cache = past_key_values is not None or kept

        x = self.embed(input_ids) if inputs_embeds is None else self._scaled(inputs_embeds)
        hidden_states = [] if output_hidden_states else None
        state = None if past_key_values is None else past_key_values.state
        mask = self.mask(attention_mask, x)
        x, state = self.stack(self.dropout(x), state, mask, cu_seqlens, hidden_states)

        if use_cache:
            past_key_values = HGRNCache() if past_key_values is None else past_key_values
            past_key_values.update_state(state, x.shape[1])
        return BaseModelOutputWithPast(
            last_hidden_state=x,
            past_key_values=past_key_values if use_cache else None,
            hidden_states=(*hidden_states, x) if output_hidden_states else None,
        )

    def embed(self, input_ids: Tensor) -> Tensor:
        """What the stack reads: `[B, T]` -> `[B, T, hidden_size]`, scaled if the configuration says so."""
        return self._scaled(self.embed_tokens(input_ids))

    def mask(self, attention_mask: Tensor | None, x: Tensor) -> Tensor | None:
        """The stack's mask `[B, T]` for x `[B, T, ...]`: the last T columns, as bool."""
        if attention_mask is None:
            return None
        batch, length = x.shape[:2]
        if attention_mask.ndim != 2 or attention_mask.shape[0] != batch or attention_mask.shape[1] < length:
            raise ValueError(
                f"attention_mask must have shape [{batch}, {length}] (or more columns in front, for the "
                f"past), got {tuple(attention_mask.shape)}"
            )
        return attention_mask[:, attention_mask.shape[1] - length :].bool()

    def _scaled(self, x: Tensor) -> Tensor:
        return x * math.sqrt(self.config.hidden_size) if self.config.scale_embeddings else x
