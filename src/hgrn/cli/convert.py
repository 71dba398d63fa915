"""`hgrn convert`: turn a published checkpoint into one of ours, or one of ours into its layout."""

import argparse
from pathlib import Path
from typing import Any

from hgrn.cli.options import Parser, whole

ABOUT = "turn a published checkpoint into one of ours, or one of ours into a published layout"
MORE = """\
A published checkpoint is a folder of flash-linear-attention (fla) or OpenNLPLab (opennlplab), of
their HGRN2 models (fla-hgrn2) (opennlplab-hgrn2), or a file of tensors of these, of fairseq
(fairseq-lm), or of the authors' models of images (vit) and of Long Range Arena (lra).
docs/checkpoints.md says what is known of each layout.

examples:
  hgrn convert checkpoint_best.pt ours
  hgrn convert runs/text published --to fla"""


def add_arguments(parser: Parser) -> None:
    parser.add_argument("source", type=Path, help="a folder or a file")
    parser.add_argument("out", type=Path, help="a new folder")
    parser.add_argument(
        "--to",
        metavar="LAYOUT",
        help="the published layout to write, one of those above in brackets (default: ours)",
    )
    parser.add_argument(
        "--glu-act",
        choices=("silu", "identity"),
        help="the activation inside the GLU, where the source says nothing, or something unclear",
    )
    parser.add_argument(
        "--head-dim",
        type=whole,
        metavar="K",
        help="channels of each head of an HGRN2, where there is no config.json (default: 128)",
    )


def run(arguments: argparse.Namespace) -> None:
    from hgrn.models.published.convert import convert_checkpoint
    from hgrn.progress import without_bars
    from hgrn.training.manifests import find_checkpoint

    source = arguments.source
    if (source / "checkpoints").is_dir():
        source = find_checkpoint(source, for_inference=True)
    fields: dict[str, Any] = {}
    if arguments.glu_act is not None:
        fields["glu_act"] = arguments.glu_act
    if arguments.head_dim is not None:
        fields["mixer_options"] = {"head_dim": arguments.head_dim}
    with without_bars():
        for line in convert_checkpoint(source, arguments.out, arguments.to, **fields):
            print(line)
