"""`hgrn quickstart`: train, measure, sample, save and draw a small language model, with no network and no arguments."""

import time
from pathlib import Path
from typing import Any

from hgrn import inference
from hgrn.analysis import gates, plots
from hgrn.data.tokens import prepare
from hgrn.errors import pasted
from hgrn.training.loop import train
from hgrn.training.recipe import load_recipe
from hgrn.training.runlog import Console, read_rows
from hgrn.training.tasks.language import Evaluation, evaluate

PROMPT = "KING HENRY.\n"
_GATE_TOKENS = 4096  # positions over which the picture shows the gates


def free_folder(folder: Path) -> Path:
    """`folder`, or `folder-2`, `folder-3`, ...: the first that is not there yet."""
    number = 1
    free = folder
    while free.exists():
        number += 1
        free = folder.with_name(f"{folder.name}-{number}")
    return free


def run(out: Path, overrides: dict[str, Any] | None = None) -> Evaluation | None:
    """Runs the quick start in the folder `out` and tells standard output about it; None if a signal stopped it.

    The last line printed is `test bits per byte: X.XXX`.
    """
    began = time.perf_counter()
    recipe = load_recipe("quickstart", overrides)
    print(f"Training a byte-level HGRN on Shakespeare's works ({recipe.training.steps:,} steps).")
    print("The first run also compiles the CPU kernels, which takes some seconds.\n", flush=True)
    with Console() as console:
        outcome = train(recipe, out, on_event=console)
    if outcome.interrupted:
        return None
    trained = time.perf_counter()

    model, tokenizer, folder = inference.load(outcome.checkpoint)
    test = prepare(recipe.data, "test")
    result = evaluate(model, test)

    print(f"\nA sample, after the prompt {PROMPT!r}:\n")
    text = []
    inference.generate(
        model, tokenizer, PROMPT, text.append, max_new_tokens=400, temperature=0.7, seed=1
    )
    print("".join(text))

    import torch

    ids = torch.from_numpy(test.read(0, min(len(test), _GATE_TOKENS)))[None]
    curve = out / "learning_curve.png"
    picture = out / "forget_gates.png"
    plots.learning_curve(read_rows(out / "log.jsonl"), curve, result.bits_per_byte)
    plots.forget_gates(gates.gate_statistics(model, ids), picture)

    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"""
What happened
  {parameters:,} parameters saw {recipe.training.steps:,} steps of {recipe.batch.batch_size} x {recipe.batch.block_size} \
bytes in {trained - began:.0f} s;
  the text of the test split, {result.bytes:,} bytes that it never saw, then cost {result.bits_per_byte:.3f} bits per byte.

Where it is
  {folder}   a model that transformers loads
  {curve}   the learning curve
  {picture}   forget gates and their learned lower bounds, layer by layer
  {out / "log.jsonl"}   every logged number (`{pasted("tensorboard", "--logdir", out)}` shows them too)

What to try next
  {pasted("hgrn", "generate", out, "--prompt", "To be, or not to be")}
  hgrn train lm/text --data.files YOUR.txt        train on a text of your own
  hgrn train quickstart --model.num_hidden_layers 6 --training.steps 3000
  hgrn doctor                                     what works on this machine
""")
    print(f"test bits per byte: {result.bits_per_byte:.3f}", flush=True)
    return result
