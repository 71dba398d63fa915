"""`hgrn predict`: name the likeliest classes of image files."""

import argparse
from pathlib import Path

from hgrn.cli.options import Parser, add_checkpoint, whole
from hgrn.errors import UserError

ABOUT = "say what is in images"
MORE = """example:
  hgrn predict runs/flowers rose.jpg tulip.png --top 1"""


def add_arguments(parser: Parser) -> None:
    add_checkpoint(parser, of=" of images")
    parser.add_argument(
        "images", nargs="+", type=Path, metavar="IMAGE", help="files that Pillow reads"
    )
    parser.add_argument(
        "--top", type=whole, default=3, metavar="N", help="how many classes to name (default: 3)"
    )


def run(arguments: argparse.Namespace) -> None:
    from hgrn.cli import inference
    from hgrn.training.manifests import find_checkpoint

    if arguments.top < 1:
        raise UserError(f"--top must be at least 1, got {arguments.top}")
    folder = find_checkpoint(arguments.checkpoint, for_inference=True)
    model, processor = inference.load_classifier(folder)
    if processor is None:
        raise UserError(
            f"{folder} has no image processor (preprocessor_config.json), so it is not a model "
            "that reads image files"
        )
    images = [inference.read_image(path, processor.num_channels) for path in arguments.images]
    for path, image in zip(arguments.images, images):
        likeliest = inference.classify(model, processor, image)[: arguments.top]
        print(f"{path}: {', '.join(f'{name} {share:.1%}' for name, share in likeliest)}")
