"""The published models by name: the fields that are not the defaults of `HGRNConfig`."""

from typing import Any

# The authors' image and Long Range Arena models read from both ends, with an angle for each.
_BOTH_ENDS = dict(bidirectional=True, shared_theta=False)
_VIT = _BOTH_ENDS | dict(
    patch_size=14, num_channels=3, num_hidden_layers=12, final_norm="pooled", num_labels=1000
)
_LRA = _BOTH_ENDS | dict(
    norm_type="batch", mask_padding=False, scale_embeddings=False, initialization="lra"
)
_LRA_TEXT = _LRA | dict(sinusoidal_positions=True, embedding_dropout=0.1)
_LRA_GRID = _LRA | dict(patch_size=1, grid=True)

PRESETS: dict[str, dict[str, Any]] = {
    # The authors' hgrn_lm_base: 46,247,936 parameters. The bilinear GLU is what the authors' code
    # runs.
    "wikitext103": dict(
        vocab_size=50264,
        hidden_size=512,
        num_hidden_layers=6,
        glu_act="identity",
        dropout=0.1,
        initialization="pytorch",
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
    ),
    # From the published config.json of HGRN-150M: 146.07 M parameters (derived). It names the GLU's
    # activation "swish", which the authors' helper may have run as identity; dropout in training is
    # unknown (here 0).
    "lm-150m": dict(
        vocab_size=50272,
        hidden_size=768,
        num_hidden_layers=14,
        bias=False,
        initialization="normal",
        bos_token_id=50260,
        eos_token_id=50260,
    ),
    # Inferred: the sizes are not published. 150M's pattern (GLU twice the width) with a width and
    # depth that fit the name: 351.6 M parameters; 19 layers with a GLU of 2816 (355.5 M) fit as
    # well. The rest as above.
    "lm-350m": dict(
        vocab_size=50272,
        hidden_size=1024,
        num_hidden_layers=22,
        bias=False,
        initialization="normal",
        bos_token_id=50260,
        eos_token_id=50260,
    ),
    # Inferred from the size of the published file (3.9 GB of float32): 975.7 M parameters. The rest
    # as above.
    "lm-1b": dict(
        vocab_size=50272,
        hidden_size=2048,
        num_hidden_layers=16,
        bias=False,
        initialization="normal",
        bos_token_id=50260,
        eos_token_id=50260,
    ),
    # The authors' hgrn1d_vit_tiny and hgrn1d_vit_small for images of 224 x 224: 6,107,560 and
    # 23,715,688 parameters.
    "vit-tiny": _VIT | dict(hidden_size=192),
    "vit-small": _VIT | dict(hidden_size=384),
    # The authors' script for Long Range Arena. Vocabularies: 18, 135 and 98 characters or tokens,
    # of which one is padding; it has an embedding like any other, since these models see it. Images
    # of 32 x 32 in colour; the rest is grey.
    "lra-listops": _LRA_TEXT
    | dict(vocab_size=18, hidden_size=32, num_hidden_layers=6, intermediate_size=32, num_labels=10),
    "lra-text": _LRA_TEXT
    | dict(
        vocab_size=135,
        hidden_size=128,
        num_hidden_layers=4,
        intermediate_size=128,
        num_labels=2,
        dropout=0.1,
        glu_dropout=0.1,
    ),
    "lra-retrieval": _LRA_TEXT
    | dict(vocab_size=98, hidden_size=64, num_hidden_layers=2, intermediate_size=128, num_labels=2),
    "lra-image": _LRA_GRID
    | dict(
        num_channels=3,
        hidden_size=512,
        num_hidden_layers=6,
        intermediate_size=512,
        num_labels=10,
        sinusoidal_positions=True,
        embedding_dropout=0.1,
    ),
    "lra-pathfinder": _LRA_GRID
    | dict(
        num_channels=1,
        hidden_size=128,
        num_hidden_layers=6,
        intermediate_size=128,
        num_labels=2,
    ),
    "lra-pathx": _LRA_GRID
    | dict(num_channels=1, hidden_size=64, num_hidden_layers=6, intermediate_size=64, num_labels=2),
}
