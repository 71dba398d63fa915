"""The training loop: from a recipe and a folder to a trained model."""

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from hgrn.data.shuffle import hashed
from hgrn.errors import UserError
from hgrn.modules import Block
from hgrn.source import commit
from hgrn.training import checkpointing, manifests
from hgrn.training.averaging import WeightAverage
from hgrn.training.counters import Counters
from hgrn.training.distributed import Ranks
from hgrn.training.optimizer import build_optimizer, local, parameters_of, set_learning_rate
from hgrn.training.recipe import Recipe, can_be_longer
from hgrn.training.runfolder import check_free, locked, write_recipe
from hgrn.training.runlog import RunLog, part_of_split
from hgrn.training.schedules import learning_rate
from hgrn.training.signals import stop_signals
from hgrn.training.tasks import Task, build_task
from hgrn.training.threads import cpu_threads

Listener = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Outcome:
    """How a run ended: after `step` of `steps`, with everything saved in `checkpoint`."""

    step: int
    steps: int
    checkpoint: Path
    best: dict[str, float]

    @property
    def interrupted(self) -> bool:
        """Whether a signal stopped the run before its last step."""
        return self.step < self.steps


def train(
    recipe: Recipe,
    out: Path | str,
    *,
    resume: bool = False,
    on_event: Listener | None = None,
    make_task: Callable[..., Task] = build_task,
) -> Outcome:
    """Train `recipe` in the run folder `out` and return when its last step is saved.

    Args:
        recipe: what to train.
        out: the run folder; under torchrun one folder that all processes see.
        resume: go on from the newest whole checkpoint in `out`, or from step 0 if there is none.
            On CPU the run then ends with the same weights, bit for bit, as one that was never
            stopped.
        on_event: gets every event on rank 0 (see hgrn.training.runlog); nothing is printed.
        make_task: builds what is trained, from (recipe, ranks, on_progress). Give a `Task` of your
            own to train another model with the same loop.

    SIGINT and SIGTERM end the step, save and return; a second SIGINT raises KeyboardInterrupt.
    Under torchrun every process calls this.

    Raises UserError for whatever the user can mend: data, an `out` that holds something else or is
    in use, a checkpoint of another recipe or other data, a loss or gradient that is not finite,
    another rank that dies.
    """
    run = Path(out)
    with ExitStack() as stack:
        ranks = stack.enter_context(Ranks.join(recipe.parallel))
        stack.enter_context(cpu_threads(recipe.training.threads))
        ranks.check_division(recipe.batch)
        listen = on_event if on_event and ranks.is_main else lambda event: None
        with ranks.together():
            if ranks.is_main:
                check_free(run, resume)

        def tell_data(done: int, total: int | None) -> None:
            listen({"kind": "data", "step": 0, "done": done, "total": total})

        with ranks.together():
            task = make_task(recipe, ranks, tell_data)
        check_lock = None
        with ranks.together():
            if ranks.is_main:
                check_lock = stack.enter_context(locked(run))
                # Once more: another run may have come and gone while the data was prepared.
                check_free(run, resume)
        trainer = Trainer(recipe, run, task, ranks, listen)
        trainer.check_lock = check_lock
        if resume:
            trainer.resume()
        with ranks.together():
            if ranks.is_main:
                write_recipe(run, recipe)
                log = RunLog(run, trainer.counters.step, recipe)
                stack.callback(log.close)
                trainer.listeners.append(log)
        trainer.stop_requested = stack.enter_context(stop_signals(second_aborts=ranks.world == 1))
        with ranks.explained():
            return trainer.run_to_end()


class Trainer:
    """One run: everything that a checkpoint has to hold, and the steps that change it."""

    def __init__(self, recipe: Recipe, run: Path, task: Task, ranks: Ranks, listen: Listener):
        self.recipe = recipe
        self.run = run
        self.task = task
        self.ranks = ranks
        self.listeners = [listen]
        self.model = task.model.train()
        for block in [part for part in self.model.modules() if isinstance(part, Block)]:
            block.gradient_checkpointing = recipe.parallel.recompute
        # Only the steps run compiled, because a validation has many shapes to compile.
        model = torch.compile(self.model) if recipe.training.compile else self.model
        self.wrapped = ranks.wrap(cast(nn.Module, model), recipe.training.precision)
        self.optimizer = build_optimizer(self.model, recipe.optimizer)
        self.parameters = parameters_of(self.optimizer)
        schedule = recipe.schedule
        self.learning_rate = learning_rate(
            schedule.name,
            recipe.optimizer.lr,
            schedule.total_steps or recipe.training.steps,
            schedule.warmup_steps,
            schedule.warmup_init_lr,
            schedule.min_lr,
        )
        average = recipe.training.average
        self.average = None if average is None else WeightAverage(self.model, average)
        self.counters = Counters()
        self.checkpoint: Path | None = None
        self.stop_requested: Callable[[], bool] = lambda: False
        # Raises UserError if another run has the folder by now.
        self.check_lock: Callable[[], None] | None = None
        # Those of the last step.
        self.lr = math.nan
        self.grad_norm = math.nan
        # Dropout differs between the ranks.
        torch.manual_seed(recipe.training.seed + ranks.rank)

    def state_dict(self) -> dict[str, Any]:
        """This rank's random state, counters and position in the data.

        With an average of the weights it also holds the weights that train, because the model
        holds the averages while it is saved.
        """
        rng = {"cpu": torch.get_rng_state()}
        if self.ranks.device.type == "cuda":
            rng["cuda"] = torch.cuda.get_rng_state(self.ranks.device)
        state = {"progress": asdict(self.counters), "task": self.task.state_dict(), "rng": rng}
        return state if self.average is None else state | {"average": self.average.state_dict()}

    def resume(self) -> None:
        """Go on from the newest whole checkpoint of the run folder, from step 0 if it has none."""
        with self.ranks.together():
            checkpoint = self._resumable()
        if checkpoint is not None:
            self._load(checkpoint)
            self.checkpoint = checkpoint
            self._emit("resumed", path=str(checkpoint))

    def _resumable(self) -> Path | None:
        """The newest whole checkpoint, None if nothing is saved; UserError if it does not suit."""
        checkpoint, passed_over = manifests.latest_valid(self.run)
        for path, reason in passed_over:
            self._emit("passed over", path=str(path), reason=reason)
        if checkpoint is not None:
            checkpointing.check_resumable(checkpoint, self.recipe, self.task.fingerprint)
        elif passed_over:
            reasons = "".join(f"\n  {path}: {reason}" for path, reason in passed_over)
            raise UserError(
                f"no checkpoint in {self.run} is whole, so it cannot be resumed:{reasons}"
            )
        elif (self.run / "recipe.yaml").is_file():
            checkpointing.check_same_recipe(self.run / "recipe.yaml", self.recipe)
        return checkpoint

    def _load(self, checkpoint: Path) -> None:
        """Go on exactly where a checkpoint was taken.

        Only another number of ranks gets other random numbers for dropout.
        """
        ranks = self.ranks
        world, context = checkpointing.layout(checkpoint)
        with ranks.together():
            states = [
                checkpointing.load_state(checkpoint, rank) for rank in range(0, world, context)
            ]
        with checkpointing.state_of_ours(checkpoint):
            self.counters = Counters(**states[0]["progress"])
            checkpointing.load_model_and_optimizer(
                checkpoint, self.model, self.optimizer, states[0]["optimizer"]
            )
            if self.average is not None:
                self.average.load_state_dict(states[0]["average"])
                self.average.swap()
            self.task.load_state_dict([state["task"] for state in states])
            if world == ranks.world:
                rng = checkpointing.load_state(checkpoint, ranks.rank)["rng"]
                torch.set_rng_state(rng["cpu"])
                if ranks.device.type == "cuda":
                    torch.cuda.set_rng_state(rng["cuda"], ranks.device)
            else:
                torch.manual_seed(
                    hashed(self.recipe.training.seed + ranks.rank, self.counters.step)
                )

    def run_to_end(self) -> Outcome:
        """Take the remaining steps, with the log rows, validations and checkpoints between them."""
        training = self.recipe.training
        counters = self.counters
        self._emit(
            "start",
            name=self.recipe.name,
            device=str(self.ranks.device),
            parameters=sum(parameter.numel() for parameter in self.parameters),
            steps=training.steps,
            size=self.task.size,
            unit=self.task.unit,
            processes=self.ranks.world,
        )
        if counters.step == training.steps:
            longer = can_be_longer(self.recipe)
            self._emit("finished", can_be_longer=longer, path=str(self.checkpoint))
        while counters.step < training.steps:
            stop = self._step()
            last = counters.step == training.steps
            if last or counters.step % training.log_every == 0:
                self._log_row()
            if training.eval_every and (last or counters.step % training.eval_every == 0):
                self._validate()
            if stop or last or counters.step % training.save_every == 0:
                self._save()
            if stop and not last:
                self._emit("interrupted", path=str(self.checkpoint))
                break
        assert self.checkpoint is not None  # the last step is saved
        return Outcome(counters.step, training.steps, self.checkpoint, counters.best)

    def _step(self) -> bool:
        """Take one optimizer step. True if a signal on any rank asks to stop after it."""
        began = time.perf_counter()
        ranks = self.ranks
        counters = self.counters
        batches, counted_here = self.task.next_batches()
        (counted,) = ranks.sum(counted_here)
        total = torch.zeros((), device=ranks.device)
        for index, batch in enumerate(batches):
            last = index == len(batches) - 1
            with nullcontext() if last else ranks.local_gradients(self.wrapped):
                loss = self.task.loss(self.wrapped, index, batch, int(counted))
                # The backward pass takes the mean over the ranks, and we want the sum: `counted`
                # spans all of them.
                (loss * ranks.world).backward()
            total = total + loss.detach()
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        norm = get_total_norm(list(map(local, gradients)))
        # The one wait for the device in a step.
        loss_here, grad_norm = torch.stack([total, norm]).tolist()
        loss, stop, squares = ranks.sum(loss_here, self.stop_requested(), grad_norm**2)
        if ranks.is_sharded:
            grad_norm = math.sqrt(squares)
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            # All ranks have found it, and one of them says so.
            with ranks.together():
                raise UserError(self._not_finite(loss, grad_norm))
        clip_norm = self.recipe.optimizer.clip_norm
        if clip_norm is not None and grad_norm > clip_norm:
            clip_grads_with_norm_(self.parameters, clip_norm, norm.new_tensor(grad_norm))
        self.lr = self.learning_rate(counters.step)
        self.grad_norm = grad_norm
        set_learning_rate(self.optimizer, self.lr)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update(counters.step + 1)
        counters.count_step(loss, int(counted), time.perf_counter() - began)
        return stop > 0

    def _log_row(self) -> None:
        """Emit the means since the last row, and start the next ones."""
        counters = self.counters
        task = self.task
        training = self.recipe.training
        loss = counters.window_nats / counters.window_units
        window_steps = counters.step % training.log_every or training.log_every
        # The disk may refuse the log.
        with self.ranks.together():
            self._emit(
                "train",
                loss=loss,
                **task.figures(loss),
                lr=self.lr,
                grad_norm=self.grad_norm,
                epoch=task.sampler.epoch + task.sampler.index / task.sampler.steps_per_epoch,
                elapsed=counters.seconds,
                time_left=(training.steps - counters.step) * counters.window_seconds / window_steps,
                **{
                    task.unit: counters.units,
                    f"{task.unit}_per_s": counters.window_units / counters.window_seconds,
                },
            )
        counters.start_window()

    def _validate(self) -> None:
        """Emit the numbers of the validation split, and remember the best."""
        sharded = self.ranks.is_sharded
        numbers = None
        # A sharded model gathers its weights from all ranks, so all of them take part.
        if self.ranks.is_main or sharded:
            with self._averaged():
                numbers = self.task.validate()
            if sharded:
                # It keeps the weights outside the blocks for a backward pass that does not come.
                cast(FSDPModule, self.model).reshard()
            metric = self.task.metric
            best = self.counters.best
            if not best or self.task.is_better(numbers[metric], than=best[metric]):
                self.counters.best = {"step": self.counters.step, metric: numbers[metric]}
        with self.ranks.together():
            if numbers is not None:
                self._emit("validation", **numbers, **self.task.validated)

    def _save(self) -> None:
        """Save a checkpoint."""
        with self.ranks.together():
            if self.check_lock is not None:
                self.check_lock()
        with self._averaged():
            self.checkpoint = checkpointing.save(
                self.run,
                self.counters.step,
                model=self.model,
                optimizer=self.optimizer,
                processor=self.task.processor,
                recipe=self.recipe,
                fingerprint=self.task.fingerprint,
                state=self.state_dict(),
                facts=self._facts(),
                ranks=self.ranks,
            )
        self._emit("saved", path=str(self.checkpoint))

    def _averaged(self) -> AbstractContextManager:
        """Inside, the model has the weights to evaluate and to save."""
        return nullcontext() if self.average is None else self.average.in_place()

    def _facts(self) -> dict[str, str]:
        """What the model card says of the run."""
        counters = self.counters
        task = self.task
        recipe = self.recipe
        best = counters.best
        metric = task.metric
        part = part_of_split(task.validated)
        measured = (
            f"{best[metric]:.4f} on {f'{part} of ' if part else ''}the validation split at step "
            f"{best['step']}, the best so far"
            if best
            else "not measured"
        )
        return {
            "recipe": f"{recipe.name} (recipe.yaml), after step {counters.step} of "
            f"{recipe.training.steps}",
            "code": f"hgrn at {commit()}",
            "data": f"{task.data_name}, fingerprint {task.fingerprint}",
            f"{task.unit} trained on": f"{counters.units:,}",
            metric.replace("_", " "): measured,
        }

    def _emit(self, kind: str, **values: Any) -> None:
        for listener in self.listeners:
            listener({"kind": kind, "step": self.counters.step, **values})

    def _not_finite(self, loss: float, grad_norm: float) -> str:
        """The message for a step whose loss or gradient is not finite."""
        step = self.counters.step + 1
        saved = manifests.steps_saved(self.run)
        where = (
            f"resume from {saved[-1][1]} with --resume"
            if saved
            else "nothing has been saved yet, so start again"
        )
        return (
            f"step {step}: loss {loss}, gradient norm {grad_norm}. Training stopped before this "
            f"step changed the weights; {where}. If it stops here again, begin a new run with a "
            "lower optimizer.lr, a longer schedule.warmup_steps or optimizer.clip_norm 1.0."
        )
