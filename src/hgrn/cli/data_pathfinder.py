"""`hgrn data pathfinder`: draw new images of Long Range Arena's Pathfinder and Path-X."""

import argparse
from pathlib import Path

from hgrn.cli.options import Parser, add_generator_options, whole

ABOUT = "draw new Pathfinder images, in the format of the release"
MORE = """example:
  hgrn data pathfinder pathfinder --number 20000 --contour-length 9
  hgrn train lra/pathfinder-cpu --data.path pathfinder --data.difficulty curv_contour_length_9"""


def add_arguments(parser: Parser) -> None:
    parser.add_argument(
        "out", type=Path, help="folder, in which the one for this difficulty must be new"
    )
    parser.add_argument(
        "--size", type=whole, default=32, help="pixels: 32, 64, 128 (Path-X) or 256 (default: 32)"
    )
    add_generator_options(parser, {"number": 200_000, "contour-length": 14})
    parser.add_argument(
        "--distractors",
        type=whole,
        metavar="N",
        help="short contours of an image (default: as in the release)",
    )
    parser.add_argument(
        "--no-crossings", action="store_true", help="no image whose two long contours cross"
    )


def run(arguments: argparse.Namespace) -> None:
    from hgrn.data.lra.pathfinder_generator import generate
    from hgrn.data.lra.pathfinder_settings import arena_settings
    from hgrn.progress import Bar

    settings = arena_settings(
        arguments.size, arguments.contour_length, arguments.distractors, not arguments.no_crossings
    )
    with Bar("drawing") as bar:
        report = generate(
            arguments.out,
            settings,
            arguments.seed,
            arguments.number,
            processes=arguments.processes,
            progress=bar,
        )
    print(
        f"{report['number']:,} images, {report['label_1']:,} of them with both marks on one "
        "contour; every label found again by a flood"
    )
    print(f"wrote {arguments.out / settings.difficulty}")
