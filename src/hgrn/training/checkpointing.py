"""Checkpoints that are either complete or not there.

A run folder:

    run.lock, recipe.yaml, log.jsonl, tensorboard/
    checkpoints/step-000500/
        model.safetensors, config.json, files of the tokenizer or image processor, recipe.yaml
        README.md         the model card, which anyone may edit
        rank-0.pt, ...    one per process: its random state and its position in the data; the first
                          holds the optimizer as well (all are read with weights_only=True)
        sharded/          weights and optimizer of a sharded model, one safetensors file per process
                          (see sharding)
        manifest.json     size and checksum of every other file but the card (see manifests)

A checkpoint is written into a hidden folder beside its place, the manifest last. When all of it is
on disk, the folder is renamed. So a kill at any moment leaves the older checkpoints whole, and at
worst a hidden folder, which the next save removes. (`whole_folder` does not serve here, because all
ranks write into the same folder.) `AutoModelForCausalLM.from_pretrained` of transformers loads a
`step-N` folder.
"""

import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model
from torch import nn

from hgrn.errors import UserError, pasted
from hgrn.files import finish_folder, reading, remove, sync, writing
from hgrn.progress import without_bars
from hgrn.training import manifests, sharding
from hgrn.training.distributed import Ranks
from hgrn.training.manifests import Manifest, SavedFile, find_checkpoint, steps_saved
from hgrn.training.recipe import (
    Recipe,
    blocking_changes,
    can_be_longer,
    recipe_from_yaml,
    recipe_to_yaml,
)

log = logging.getLogger(__name__)

# What a save has just done, in this order.
SavePoint = Literal[
    "folder made",
    "weights written",
    "processor written",
    "recipe written",
    "state written",
    "files on disk",
    "manifest on disk",
    "renamed",
    "parent on disk",
    "old checkpoint hidden",
    "rotated",
]

# Prefixes of the hidden folders.
SAVING = ".saving-"
DROPPED = ".dropped-"
SHARDED = "sharded"
_OTHER = "remove that checkpoint to go on from the one before it"
_REMEDY = "the checkpoints before it are whole: make room or mend it, and go on with --resume"


def save(
    run: Path,
    step: int,
    *,
    model: Any,
    optimizer: torch.optim.Optimizer,
    processor: Any,
    recipe: Recipe,
    fingerprint: str,
    state: dict,
    facts: dict[str, str],
    ranks: Ranks,
) -> Path:
    """Save one checkpoint from all ranks, drop all but the newest `recipe.training.keep`, and
    return its folder.

    processor: a tokenizer, anything else with `save_pretrained(folder)`, or None. state: the random
    state and position of this rank, of types that `torch.load(weights_only=True)` reads. facts:
    what the model card says of the run.

    Raises UserError on every rank if one cannot write. Its part of the checkpoint is then removed,
    and the older checkpoints stay.
    """
    place = run / "checkpoints" / f"step-{step:06d}"
    hidden = place.with_name(SAVING + place.name)
    # save_pretrained takes the weights of a whole model itself.
    weights = None
    shards = None
    if ranks.is_sharded:
        weights = sharding.whole_weights(model, keep=ranks.is_main)
        optimizer_state, shards = sharding.split_state(model, optimizer)
    else:
        optimizer_state = optimizer.state_dict()
    # Every rank has the same optimizer state, or the part of it that is not sharded.
    if ranks.is_main:
        state = state | {"optimizer": optimizer_state}

    def saving() -> AbstractContextManager:
        def needs() -> int:
            return _bytes_of([model.state_dict(), state, shards])

        return writing(place, _REMEDY, needs, hidden)

    try:
        with ranks.together(), saving():
            if ranks.is_main:
                remove_leftovers(run)
                hidden.mkdir(parents=True)
                reached("folder made")
                _save_model(hidden, model, weights, processor, recipe, facts)
        with ranks.together(), saving(), open(hidden / _state_name(ranks.rank), "wb") as file:
            torch.save(state, file)
        if shards is not None:
            with ranks.together(), saving():
                sharding.save(hidden / SHARDED, shards)
        with ranks.together(), saving():
            if ranks.is_main:
                reached("state written")
                _seal(hidden, step, ranks.world, fingerprint)
                _put_in_place(hidden, place)
                _rotate(run, step, recipe.training.keep)
                reached("rotated")
    except BaseException:
        # A full disk needs the room at once.
        if ranks.is_main:
            remove(hidden)
        raise
    return place


def _save_model(
    folder: Path,
    model: Any,
    weights: dict | None,
    processor: Any,
    recipe: Recipe,
    facts: dict[str, str],
) -> None:
    """Write the model with everything to load it, and the recipe that it was trained with."""
    from hgrn.models.backbone import HGRNPreTrainedModel
    from hgrn.models.card import write_card

    with without_bars():
        model.save_pretrained(folder, state_dict=weights)
    # The card describes an HGRN; the loop trains other people's models too.
    if isinstance(model, HGRNPreTrainedModel):
        write_card(model, folder, facts)
    reached("weights written")
    if processor is not None:
        processor.save_pretrained(folder)
    reached("processor written")
    (folder / "recipe.yaml").write_text(recipe_to_yaml(recipe), encoding="utf-8")
    reached("recipe written")


def _seal(folder: Path, step: int, world: int, fingerprint: str) -> None:
    """Put all files of a checkpoint on disk, then the manifest that lists them."""
    from hgrn.models import card

    finish_folder(folder)
    reached("files on disk")
    # The card is left out, because anyone may edit it.
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name != card.NAME)
    listed = [SavedFile.of(file, folder) for file in files]
    Manifest(step, world, fingerprint, listed).write(folder)
    reached("manifest on disk")


def _put_in_place(hidden: Path, place: Path) -> None:
    # A resume may have passed over a damaged checkpoint of this step.
    if place.exists():
        _hide_and_remove(place)
    hidden.rename(place)
    reached("renamed")
    sync(place.parent)
    reached("parent on disk")


def _bytes_of(value: Any) -> int:
    """The bytes of all tensors in nested dictionaries and lists."""
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, dict):
        return sum(map(_bytes_of, value.values()))
    return sum(map(_bytes_of, value)) if isinstance(value, list | tuple) else 0


def load_weights(model: nn.Module, path: Path) -> None:
    """Put the weights of a run folder, a checkpoint or a saved model into a model of its shapes.

    Raises UserError.
    """
    file = find_checkpoint(path) / "model.safetensors"
    try:
        load_model(model, file, device="cpu")
    except (OSError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"the weights in {file} cannot be loaded into the model of this recipe: {error}"
        ) from error


def check_resumable(checkpoint: Path, recipe: Recipe, fingerprint: str) -> None:
    """Raise UserError unless a run of `recipe` on this data may go on from `checkpoint`."""
    saved = Manifest.read(checkpoint)
    check_same_recipe(checkpoint / "recipe.yaml", recipe)
    if saved.data != fingerprint:
        raise UserError(
            f"{checkpoint} was trained on other data (fingerprint {saved.data}, now "
            f"{fingerprint}): give the data it was trained on, or start a new run in another folder"
        )
    present = {file.name for file in saved.files}
    for name in map(_state_name, range(saved.world)):
        if name not in present:
            raise UserError(
                f"{checkpoint} has no optimizer state ({name}) to resume with: start a new run in "
                "another folder"
            )


def check_same_recipe(saved: Path, recipe: Recipe) -> None:
    """Raise UserError if the saved recipe differs from `recipe` in what decides the weights."""
    with reading(saved):
        before = recipe_from_yaml(saved)
    changes = blocking_changes(before, recipe)
    if changes:
        remedy = "Undo the changes to resume it, or start a new run in another folder."
        if recipe.training.steps > before.training.steps and not can_be_longer(recipe):
            remedy += (
                " A cosine ends with its run, so a longer run would have had other learning rates "
                "from its first steps on; a new run can start from these weights"
                + (
                    f": {pasted('--model.weights', saved.parent)}"
                    if (saved.parent / manifests.NAME).is_file()
                    else ""
                )
            )
        raise UserError(
            f"{saved.parent} was trained with another recipe:\n  "
            + "\n  ".join(changes)
            + f"\n{remedy}"
        )


def layout(checkpoint: Path) -> tuple[int, int]:
    """How many processes saved a checkpoint, and how many of them shared each sequence."""
    return Manifest.read(checkpoint).world, recipe_from_yaml(
        checkpoint / "recipe.yaml"
    ).parallel.context


def load_model_and_optimizer(
    checkpoint: Path, model: Any, optimizer: torch.optim.Optimizer, optimizer_state: dict
) -> None:
    """Put a checkpoint into a model of the same configuration and its optimizer, bit for bit.

    optimizer_state: the optimizer's part of the state of rank 0.

    Raises UserError for a checkpoint of a model with custom modules that `model` does not have.
    """
    # Without its custom modules a model would load, and lack their weights.
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    if "custom_modules" in config:
        model.check_custom_modules(config["custom_modules"], checkpoint)
    if (checkpoint / SHARDED).is_dir():
        sharding.load(checkpoint / SHARDED, model, optimizer, optimizer_state)
        sharding.load_buffers(checkpoint / "model.safetensors", model)
    else:
        sharding.load_whole(checkpoint / "model.safetensors", model, optimizer, optimizer_state)
    optimizer.load_state_dict(optimizer_state)


def load_state(checkpoint: Path, rank: int) -> dict:
    """The `state` that this rank gave to `save`, on the CPU.

    Raises UserError for a file that holds code, is damaged, or holds something else.
    """
    file = checkpoint / _state_name(rank)
    try:
        with reading(file):
            state = torch.load(file, map_location="cpu", weights_only=True)
    except (UserError, FileNotFoundError):
        raise
    except UnpicklingError as error:
        raise UserError(
            f"{file} holds more than tensors and plain data, so it is refused: it is not ours"
        ) from error
    # A damaged file makes PyTorch's reader fail with any kind of error.
    except Exception as error:
        raise UserError(f"{file} is damaged ({error}): {_OTHER}") from error
    if not isinstance(state, dict):
        raise UserError(f"{file} does not hold the state of a run: {_OTHER}")
    return state


@contextmanager
def state_of_ours(checkpoint: Path) -> Iterator[None]:
    """Raise UserError if the checkpoint lacks a part that the code inside takes from it."""
    try:
        yield
    except (UserError, torch.OutOfMemoryError):
        raise
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise UserError(
            f"{checkpoint} does not hold the state of this run ({error!r}): {_OTHER}"
        ) from error


def remove_leftovers(run: Path) -> None:
    """Remove what a killed save or rotation left behind. Call it only with the run's lock."""
    for prefix in (SAVING, DROPPED):
        for leftover in (run / "checkpoints").glob(f"{prefix}*"):
            shutil.rmtree(leftover)


def _rotate(run: Path, step: int, keep: int | None) -> None:
    """Drop the checkpoints up to `step`, except the newest `keep` of them; None keeps all."""
    old = [folder for number, folder in steps_saved(run) if number <= step]
    for folder in old[:-keep] if keep else []:
        _hide_and_remove(folder)


def _hide_and_remove(folder: Path) -> None:
    """Remove a checkpoint so that a kill halfway never leaves part of it under its name."""
    hidden = folder.rename(folder.with_name(DROPPED + folder.name))
    reached("old checkpoint hidden")
    shutil.rmtree(hidden)


def reached(point: SavePoint) -> None:
    """Say in the debug log how far a save has come. Tests stop a save here."""
    log.debug("checkpoint: %s", point)


def _state_name(rank: int) -> str:
    return f"rank-{rank}.pt"
