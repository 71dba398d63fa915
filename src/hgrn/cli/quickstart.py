"""`hgrn quickstart`: train, measure, sample, save and draw a small language model, without a
network and without arguments."""

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from hgrn.cli.options import Parser
from hgrn.errors import pasted

if TYPE_CHECKING:
    from hgrn.training.tasks.language import Evaluation

ABOUT = "train a small language model on Shakespeare and show what it learned"
MORE = """Takes minutes on two CPU cores and needs no network.

example:
  hgrn quickstart --out runs/first"""

PROMPT = "KING HENRY.\n"
_GATE_TOKENS = 4096  # positions over which the picture shows the gates


def add_arguments(parser: Parser) -> None:
    parser.add_argument(
        "--out", type=Path, help="run folder (default: runs/quickstart, or the next free name)"
    )


def run(arguments: argparse.Namespace) -> int:
    from hgrn.memory import keep_freed_memory

    keep_freed_memory()
    out = arguments.out or free_folder(Path("runs/quickstart"))
    if tour(out) is None:
        resume = pasted("hgrn", "train", "quickstart", "--out", out, "--resume")
        print(f"stopped; go on with: {resume}")
        return 130
    return 0


def free_folder(folder: Path) -> Path:
    """The first of `folder`, `folder-2`, `folder-3`, ... that does not exist yet."""
    number = 1
    free = folder
    while free.exists():
        number += 1
        free = folder.with_name(f"{folder.name}-{number}")
    return free


def tour(out: Path, overrides: dict[str, Any] | None = None) -> "Evaluation | None":
    """Run the quick start in the folder `out`, and tell standard output about it.

    The last line printed is `test bits per byte: X.XXX`. Returns None if a signal stopped it.
    """
    import torch

    from hgrn.analysis import gates, plots
    from hgrn.cli import inference
    from hgrn.data.tokens import prepare
    from hgrn.training.loop import train
    from hgrn.training.manifests import find_checkpoint
    from hgrn.training.recipe import LanguageRecipe, load_recipe
    from hgrn.training.runlog import Console, part_of_split, read_rows
    from hgrn.training.tasks.language import evaluate

    began = time.perf_counter()
    recipe = cast(LanguageRecipe, load_recipe("quickstart", overrides))
    print(f"Training a byte-level HGRN on Shakespeare's works ({recipe.training.steps:,} steps).")
    print("The first run also compiles the CPU kernels, which takes some seconds.\n", flush=True)
    with Console() as console:
        outcome = train(recipe, out, on_event=console)
    if outcome.interrupted:
        return None
    trained = time.perf_counter()

    folder = find_checkpoint(outcome.checkpoint, for_inference=True)
    model, tokenizer = inference.load(folder)
    test = prepare(recipe.data, "test")
    result = evaluate(model, test)

    # A fixed seed, so that everybody reads the same sample.
    print(f"\nA sample, after the prompt {PROMPT!r}:\n")
    text = []
    inference.generate(
        model, tokenizer, PROMPT, text.append, max_new_tokens=400, temperature=0.7, seed=1
    )
    print("".join(text))

    # The gates over the beginning of the test text are enough for a picture.
    ids = torch.from_numpy(test.read(0, min(len(test), _GATE_TOKENS)))[None]
    curve = out / "learning_curve.png"
    picture = out / "forget_gates.png"
    rows = read_rows(out / "log.jsonl")
    part = part_of_split(rows[-1])
    plots.learning_curve(rows, curve, result.bits_per_byte, part)
    plots.gates_of_layers(gates.gate_statistics(model, ids), picture)

    parameters = sum(parameter.numel() for parameter in model.parameters())
    batch = f"{recipe.batch.batch_size} x {recipe.batch.block_size} bytes"
    print(f"""
What happened
  {parameters:,} parameters saw {recipe.training.steps:,} steps of {batch} in \
{trained - began:.0f} s;
  the text of the test split, {result.bytes:,} bytes that it never saw, then cost \
{result.bits_per_byte:.3f} bits per byte.

Where it is
  {folder}   a model that transformers loads
  {curve}   the learning curve
  {picture}   forget gates and their learned lower bounds, layer by layer
  {out / "log.jsonl"}   every logged number (`{pasted("tensorboard", "--logdir", out)}` shows them \
too)

What to try next
  {pasted("hgrn", "generate", out, "--prompt", "To be, or not to be")}
  hgrn train lm/text --data.files YOUR.txt        train on a text of your own
  hgrn train quickstart --model.num_hidden_layers 6 --training.steps 3000
  hgrn doctor                                     what works on this machine
""")
    print(f"test bits per byte: {result.bits_per_byte:.3f}", flush=True)
    return result
