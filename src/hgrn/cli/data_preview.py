"""`hgrn data preview`: draw what a recipe's augmentation does to its images."""

import argparse
from pathlib import Path

from hgrn.cli.options import Parser, add_recipe
from hgrn.errors import UserError

ABOUT = "draw what a recipe's augmentation does to its images"
MORE = """Writes a contact sheet for each augmentation. Its first row has the images as they are, every
other row a draw of the augmentation.

example:
  hgrn data preview image/cifar10 --data.path cifar --mixing.mixup 0.8 --out preview"""


def add_arguments(parser: Parser) -> None:
    add_recipe(parser, of=" for images")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("preview"),
        help="folder for the pictures (default: preview)",
    )


def run(arguments: argparse.Namespace) -> None:
    from hgrn.data.images.opening import open_images
    from hgrn.data.images.preview import preview
    from hgrn.training.recipe import ImageRecipe, load_recipe

    recipe = load_recipe(arguments.recipe, arguments.overrides)
    if not isinstance(recipe, ImageRecipe):
        raise UserError(
            f"recipe {arguments.recipe} is of task {recipe.task}, and previews are of "
            "image-classification"
        )
    for path in preview(
        open_images(recipe.data, "train"),
        arguments.out,
        recipe.images.size,
        recipe.augmentation,
        recipe.mixing,
        seed=recipe.training.seed,
    ):
        print(path)
