"""`hgrn eval`: measure a model, by bits per byte of text or by its accuracy on classes."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from hgrn.cli.options import Parser, add_checkpoint, add_model_options
from hgrn.errors import UserError

if TYPE_CHECKING:
    from hgrn.training.recipe import ArenaRecipe, ImageRecipe, LanguageRecipe

ABOUT = "measure a model: bits per byte of text, accuracy of classes"
MORE = """A language model reads the whole split once, in order, with the state carried. A classifier
answers every example once, and its confusion matrix is drawn.

examples:
  hgrn eval runs/text                          the test split of the run's own data
  hgrn eval runs/text --data other.txt         another text
  hgrn eval runs/flowers --split validation"""

_MOST_LISTED = 100  # classes; of more, only the whole accuracy is printed


def add_arguments(parser: Parser) -> None:
    add_checkpoint(parser)
    parser.add_argument(
        "--data",
        nargs="+",
        metavar="PATH",
        help="text to read, or the folder of labelled data (default: what the run's recipe names)",
    )
    parser.add_argument(
        "--split", default="test", help="split of the recipe's data (default: test)"
    )
    add_model_options(parser)


def run(arguments: argparse.Namespace) -> None:
    from hgrn.training.manifests import find_checkpoint
    from hgrn.training.recipe import LanguageRecipe, recipe_from_yaml

    folder = find_checkpoint(arguments.checkpoint, for_inference=True)
    saved = folder / "recipe.yaml"
    recipe = recipe_from_yaml(saved) if saved.is_file() else None
    if recipe is None or isinstance(recipe, LanguageRecipe):
        _evaluate_text(arguments, folder, recipe)
    else:
        _evaluate_classes(arguments, folder, recipe)


def _evaluate_text(
    arguments: argparse.Namespace, folder: Path, recipe: "LanguageRecipe | None"
) -> None:
    from dataclasses import replace

    from hgrn.cli import inference
    from hgrn.data.text import TextData, TextSplit
    from hgrn.data.tokens import prepare
    from hgrn.progress import Bar
    from hgrn.training.tasks.language import evaluate

    model, _ = inference.load(folder, int8=arguments.int8, tokenizer=arguments.tokenizer)
    if arguments.data:
        split = "all"
        title = ", ".join(arguments.data)
        tokenizer = arguments.tokenizer or str(folder)
        data = TextData(files=arguments.data, tokenizer=tokenizer, splits={split: TextSplit()})
    elif recipe is not None:
        split = title = arguments.split
        data = recipe.data
        if arguments.tokenizer is not None:
            data = replace(data, tokenizer=arguments.tokenizer)
    else:
        raise UserError(
            f"{folder} was saved without a recipe, so its data is not known: give the text with "
            "--data PATH"
        )
    with Bar("evaluating") as bar:
        result = evaluate(model, prepare(data, split), on_progress=bar)
    print(f"{result.tokens:,} tokens, {result.bytes:,} bytes, {result.nats:.1f} nats")
    print(f"{title} bits per byte: {result.bits_per_byte:.3f}")


def _evaluate_classes(
    arguments: argparse.Namespace, folder: Path, recipe: "ImageRecipe | ArenaRecipe"
) -> None:
    from dataclasses import replace

    from hgrn.analysis import plots
    from hgrn.cli import inference
    from hgrn.progress import Bar
    from hgrn.training.tasks import open_examples
    from hgrn.training.tasks.classification import TOP, evaluate

    if arguments.tokenizer is not None:
        raise UserError(
            f"--tokenizer is for language models, and {arguments.checkpoint} is a classifier; "
            "leave it out"
        )
    model, _ = inference.load_classifier(folder, int8=arguments.int8)
    split = title = arguments.split
    picture = arguments.checkpoint / f"confusion_{split}.png"
    if arguments.data:
        path = _one_folder(arguments.data)
        recipe = recipe.model_copy(update={"data": replace(recipe.data, path=path)})
        title = f"{path}, {split}:"
        # The picture of the run's own data stays as it is.
        picture = picture.with_stem(f"{picture.stem}_{Path(path).resolve().name}")
    examples = open_examples(recipe, split)
    with Bar("evaluating") as bar:
        result = evaluate(
            model, examples.batches, on_progress=lambda done: bar(done, examples.size)
        )

    shown = list(zip(examples.classes, result.class_accuracies))
    for name, accuracy in shown if len(shown) <= _MOST_LISTED else []:
        print(f"  {name:24} {'no example' if accuracy is None else f'{accuracy:7.2%}'}")
    try:
        plots.confusion_matrix(result.confusion, examples.classes, picture)
        drawn = f"confusion matrix: {picture}"
    except UserError as error:
        # A folder that cannot be written takes nothing from the numbers.
        drawn = f"no confusion matrix: {error}"
    print(f"{result.examples:,} examples, {result.loss:.4f} nats each; {drawn}")
    low, high = result.interval
    if len(examples.classes) > TOP:
        print(f"{title} top-{TOP} accuracy: {result.top_accuracy:.2%}")
    print(f"{title} top-1 accuracy: {result.accuracy:.2%} (95 % interval {low:.2%} to {high:.2%})")


def _one_folder(paths: list[str]) -> str:
    """The one path that `--data` gives a classifier."""
    if len(paths) > 1:
        raise UserError(f"--data takes one folder for a classifier, got {len(paths)} paths")
    (path,) = paths
    if not path.strip():
        raise UserError("--data is an empty path; name a folder (. is the current folder)")
    return path
