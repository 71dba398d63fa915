"""What each command of the command line does; each imports what it needs, so that `hgrn --help` is quick."""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

from hgrn.errors import UserError, pasted


def check_processes(command: Callable) -> None:
    """Raise UserError if torchrun has started several processes of a command of which each would do the same."""
    world = _processes()
    if world > 1 and "RANK" in os.environ and command not in (train, doctor):
        raise UserError(
            f"only `hgrn train` shares its work out over the processes of torchrun, and there are {world}: "
            "start this command without torchrun"
        )


def _processes(name: str = "WORLD_SIZE") -> int:
    """How many processes torchrun says that it has started, in all or on this machine."""
    given = os.environ.get(name, "1")
    return int(given) if given.isdecimal() else 1


def quickstart(arguments: argparse.Namespace) -> int:
    from hgrn import quickstart
    from hgrn.memory import keep_freed_memory

    keep_freed_memory()
    out = arguments.out or quickstart.free_folder(Path("runs/quickstart"))
    if quickstart.run(out) is None:
        print(
            f"stopped; go on with: {pasted('hgrn', 'train', 'quickstart', '--out', out, '--resume')}"
        )
        return 130
    return 0


def train(arguments: argparse.Namespace) -> int:
    from hgrn.memory import keep_freed_memory
    from hgrn.training.loop import train
    from hgrn.training.recipe import load_recipe
    from hgrn.training.runlog import Console

    keep_freed_memory()
    recipe = load_recipe(arguments.recipe, arguments.overrides)
    out = arguments.out or Path("runs") / recipe.name
    with Console() as console:
        outcome = train(recipe, out, resume=arguments.resume, on_event=console)
    if int(os.environ.get("RANK", 0)) > 0:  # under torchrun, one process speaks
        return 130 if outcome.interrupted else 0
    if outcome.interrupted:
        print(f"go on with: {_resuming(arguments.words)}")
        return 130
    print(f"done: {outcome.checkpoint}\nmeasure it with: {pasted('hgrn', 'eval', out)}")
    return 0


def _resuming(words: list[str]) -> str:
    """The command that goes on with the run that these arguments began."""
    here = _processes("LOCAL_WORLD_SIZE")
    start = ("torchrun", "--nproc-per-node", here, "-m", "hgrn") if here > 1 else ("hgrn",)
    return pasted(*start, *words, *(() if "--resume" in words else ("--resume",)))


def evaluate(arguments: argparse.Namespace) -> None:
    if arguments.checkpoint == Path("lra") and not arguments.checkpoint.exists():
        _evaluate_arena(arguments.runs)
        return
    from hgrn.training.manifests import find_checkpoint
    from hgrn.training.recipe import LanguageRecipe, recipe_from_yaml

    folder = find_checkpoint(arguments.checkpoint)
    recipe = (
        recipe_from_yaml(folder / "recipe.yaml") if (folder / "recipe.yaml").is_file() else None
    )
    if recipe is None or isinstance(recipe, LanguageRecipe):
        _evaluate_text(arguments, recipe)
    else:
        _evaluate_classes(arguments, recipe)


def _evaluate_arena(runs: Path) -> None:
    from hgrn.inference import load_classifier
    from hgrn.training.arena_table import NAME, arena_table

    with _Bar("evaluating") as bar:
        rows, absent = arena_table(
            runs, load_classifier, on_progress=lambda name, done, total: bar(done, total)
        )
    for row in rows:
        paper = "" if row.paper is None else f", paper {row.paper:.2f}%"
        low, high = row.interval
        print(
            f"{row.task:24} {row.accuracy:7.2%} ({low:.2%} to {high:.2%}, majority {row.majority:.2%}{paper})"
        )
    for line in absent:
        print(line)
    print(f"wrote {runs / NAME}")


def _evaluate_text(arguments: argparse.Namespace, recipe) -> None:
    from dataclasses import replace

    from hgrn import inference
    from hgrn.data.text import TextData, TextSplit
    from hgrn.data.tokens import prepare
    from hgrn.training.tasks.language import evaluate

    model, _, folder = inference.load(
        arguments.checkpoint, int8=arguments.int8, tokenizer=arguments.tokenizer
    )
    if arguments.data:
        split = "all"
        title = _printable(", ".join(arguments.data))
        tokenizer = arguments.tokenizer or str(folder)
        data = TextData(files=arguments.data, tokenizer=tokenizer, splits={split: TextSplit()})
    elif recipe is not None:
        split = title = arguments.split
        data = recipe.data
        if arguments.tokenizer is not None:
            data = replace(data, tokenizer=arguments.tokenizer)
    else:
        raise UserError(
            f"{folder} was saved without a recipe, so its data is not known: give the text with --data PATH"
        )
    with _Bar("evaluating") as bar:
        result = evaluate(model, prepare(data, split), on_progress=bar)
    print(f"{result.tokens:,} tokens, {result.bytes:,} bytes, {result.nats:.1f} nats")
    print(f"{title} bits per byte: {result.bits_per_byte:.3f}")


def _evaluate_classes(arguments: argparse.Namespace, recipe) -> None:
    from dataclasses import replace

    from hgrn import inference
    from hgrn.analysis import plots
    from hgrn.training.tasks import open_examples
    from hgrn.training.tasks.classification import TOP, evaluate

    if arguments.tokenizer is not None:
        raise UserError(
            f"--tokenizer is for language models, and {arguments.checkpoint} is a classifier; leave it out"
        )
    model, _, _ = inference.load_classifier(arguments.checkpoint, int8=arguments.int8)
    split = title = arguments.split
    picture = arguments.checkpoint / f"confusion_{split}.png"
    if arguments.data:
        if len(arguments.data) > 1:
            raise UserError(
                f"--data takes one folder for a classifier, got {len(arguments.data)} paths"
            )
        (path,) = arguments.data
        if not path.strip():
            raise UserError("--data is an empty path; name a folder (. is the current folder)")
        recipe = recipe.model_copy(update={"data": replace(recipe.data, path=path)})
        title = f"{_printable(path)}, {split}:"
        picture = picture.with_stem(f"{picture.stem}_{Path(path).resolve().name}")
    examples = open_examples(recipe, split)
    with _Bar("evaluating") as bar:
        result = evaluate(
            model, examples.batches, on_progress=lambda done: bar(done, examples.size)
        )
    shown = list(zip(examples.classes, result.class_accuracies))
    for name, accuracy in shown if len(shown) <= 100 else []:
        print(f"  {name:24} {'no example' if accuracy is None else f'{accuracy:7.2%}'}")
    try:
        plots.confusion_matrix(result.confusion, examples.classes, picture)
        drawn = f"confusion matrix: {picture}"
    except UserError as error:
        drawn = f"no confusion matrix: {error}"
    print(f"{result.examples:,} examples, {result.loss:.4f} nats each; {drawn}")
    low, high = result.interval
    if len(examples.classes) > TOP:
        print(f"{title} top-{TOP} accuracy: {result.top_accuracy:.2%}")
    print(f"{title} top-1 accuracy: {result.accuracy:.2%} (95 % interval {low:.2%} to {high:.2%})")


def generate(arguments: argparse.Namespace) -> None:
    from hgrn import inference

    def write(text: str) -> None:
        print(text, end="", flush=True)

    if arguments.max_new_tokens < 1:
        raise UserError(f"--max-new-tokens must be at least 1, got {arguments.max_new_tokens}")
    sampling = {
        name: getattr(arguments, name) for name in ("temperature", "top_k", "top_p", "seed")
    }
    inference.check_sampling(**sampling)  # before the model is loaded
    model, tokenizer, _ = inference.load(
        arguments.checkpoint, int8=arguments.int8, tokenizer=arguments.tokenizer
    )
    inference.generate(
        model,
        tokenizer,
        arguments.prompt,
        write,
        max_new_tokens=arguments.max_new_tokens,
        **sampling,
    )
    print()


def tokenizer_train(arguments: argparse.Namespace) -> None:
    from hgrn.data.encoding import read_text
    from hgrn.data.text import SplitText, TextData, TextSplit
    from hgrn.data.tokenizer import train_tokenizer

    data = TextData(
        files=arguments.files, text_field=arguments.text_field, splits={"train": TextSplit()}
    )
    text = SplitText(data, "train")
    text.check_content()
    train_tokenizer(
        read_text(text.units(whole_characters=True)), arguments.vocab_size, arguments.out
    )
    use = pasted("hgrn", "train", "RECIPE", "--data.tokenizer", arguments.out)
    print(f"saved {arguments.out}; use it with: {use}")


def predict(arguments: argparse.Namespace) -> None:
    from hgrn import inference

    if arguments.top < 1:
        raise UserError(f"--top must be at least 1, got {arguments.top}")
    model, processor, folder = inference.load_classifier(arguments.checkpoint)
    if processor is None:
        raise UserError(
            f"{folder} has no image processor (preprocessor_config.json), so it is not a model that reads image files"
        )
    images = [inference.read_image(path, processor.num_channels) for path in arguments.images]
    for path, image in zip(arguments.images, images):
        likeliest = inference.classify(model, processor, image)[: arguments.top]
        print(f"{path}: {', '.join(f'{name} {share:.1%}' for name, share in likeliest)}")


def data_preview(arguments: argparse.Namespace) -> None:
    from hgrn.data.images.opening import open_images
    from hgrn.data.images.preview import preview
    from hgrn.training.recipe import ImageRecipe, load_recipe

    recipe = load_recipe(arguments.recipe, arguments.overrides)
    if not isinstance(recipe, ImageRecipe):
        raise UserError(
            f"recipe {arguments.recipe} is of task {recipe.task}, and previews are of image-classification"
        )
    source = open_images(recipe.data, "train")
    for path in preview(
        source,
        arguments.out,
        recipe.images.size,
        recipe.augmentation,
        recipe.mixing,
        seed=recipe.training.seed,
    ):
        print(path)


def data_listops(arguments: argparse.Namespace) -> None:
    from hgrn.data.lra.listops_generator import Grammar, generate

    grammar = Grammar(
        arguments.max_depth, arguments.max_args, arguments.min_length, arguments.max_length
    )
    numbers = {split: getattr(arguments, split) for split in ("train", "validation", "test")}
    report = generate(
        arguments.out, arguments.seed, **numbers, grammar=grammar, processes=arguments.processes
    )
    for split in numbers:
        length = report[split].get("length", {}).get("50%", 0)
        print(
            f"{split}: {report[split]['number']:,} expressions, half of them longer than {length:,.0f} tokens"
        )
    print(f"wrote {arguments.out}; its report.json has lengths, depths, operators and answers")


def data_pathfinder(arguments: argparse.Namespace) -> None:
    from hgrn.data.lra.pathfinder_generator import generate
    from hgrn.data.lra.pathfinder_settings import arena_settings

    settings = arena_settings(
        arguments.size, arguments.contour_length, arguments.distractors, not arguments.no_crossings
    )
    with _Bar("drawing") as bar:
        report = generate(
            arguments.out,
            settings,
            arguments.seed,
            arguments.number,
            processes=arguments.processes,
            progress=bar,
        )
    print(
        f"{report['number']:,} images, {report['label_1']:,} of them with both marks on one contour; every label found again by a flood"
    )
    print(f"wrote {arguments.out / settings.difficulty}")


def convert(arguments: argparse.Namespace) -> None:
    from hgrn.models.published import convert_checkpoint
    from hgrn.progress import without_bars
    from hgrn.training.manifests import find_checkpoint

    source = arguments.source
    out = arguments.out
    if (source / "checkpoints").is_dir():
        source = find_checkpoint(source)
    fields = {} if arguments.glu_act is None else {"glu_act": arguments.glu_act}
    with without_bars():
        for line in convert_checkpoint(source, out, arguments.to, **fields):
            print(line)


def doctor(arguments: argparse.Namespace) -> int:
    from hgrn import doctor

    findings = doctor.examine()
    marks = {True: "ok", False: "!!", None: "  "}
    for finding in findings:
        print(f"{marks[finding.works]} {finding.name:26} {finding.value}")
        if finding.works is False:
            print(f"   {'':26} -> {finding.remedy}")
    return 0 if all(finding.works is not False for finding in findings) else 1


def _printable(path: str) -> str:
    """A path with what is not UTF-8 in it as escapes, which can be printed."""
    return path.encode(errors="backslashreplace").decode()


class _Bar:
    """A progress bar on a terminal, nothing elsewhere; called with (done, total)."""

    def __init__(self, title: str):
        from rich.console import Console
        from rich.progress import Progress

        self._bar = Progress(
            console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()
        )
        self._task = self._bar.add_task(title)

    def __call__(self, done: int, total: int | None) -> None:
        self._bar.update(self._task, completed=done, total=total)

    def __enter__(self):
        self._bar.start()
        return self

    def __exit__(self, *exception):
        self._bar.stop()
