"""The training loop: from a recipe and a folder to a trained model, or to where it was told to stop."""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from hgrn.data.shuffle import hashed
from hgrn.errors import UserError
from hgrn.modules import Block
from hgrn.source import commit
from hgrn.training import checkpointing, manifests
from hgrn.training.averaging import WeightAverage
from hgrn.training.distributed import Ranks
from hgrn.training.optimizer import build_optimizer, local, parameters_of, set_learning_rate
from hgrn.training.recipe import Recipe, can_be_longer
from hgrn.training.runfolder import check_free, locked, write_recipe
from hgrn.training.runlog import RunLog
from hgrn.training.schedules import learning_rate
from hgrn.training.tasks import Task, build_task
from hgrn.training.threads import cpu_threads

Listener = Callable[[dict[str, Any]], None]


@dataclass
class Progress:
    """The numbers of a run that go on after a resume.

    step: optimizer steps taken. units: tokens or examples that counted for the loss, over all ranks. seconds: spent in
    steps, not in saving and validation. window_*: the same since the last row of the log. best: the step and the
    metric of the best validation.
    """

    step: int = 0
    units: int = 0
    seconds: float = 0.0
    window_nats: float = 0.0
    window_units: int = 0
    window_seconds: float = 0.0
    best: dict[str, float] = field(default_factory=dict)


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

    resume goes on from the newest whole checkpoint in `out`, and ends with the same weights as a run that was
    never stopped, bit for bit on CPU; without one it starts from step 0. SIGINT and SIGTERM end the step,
    save and return; a second SIGINT raises KeyboardInterrupt. on_event gets every event on rank 0 (see
    hgrn.training.runlog); nothing is printed. make_task builds what is trained, from (recipe, ranks, progress): give a `Task` of
    your own to train another model with the same loop. Under torchrun every process calls this; `out` is one folder
    that all of them see.

    Raises UserError for whatever the user can mend: data, an `out` that holds something else or is in use, a
    checkpoint of another recipe or other data, a loss or gradient that is not finite, another rank that dies.
    """
    run = Path(out)
    with ExitStack() as stack:
        ranks = stack.enter_context(Ranks.join(recipe.parallel))
        stack.enter_context(cpu_threads(recipe.training.threads))
        _check_division(recipe, ranks)
        listen = on_event if on_event and ranks.is_main else _ignore
        with ranks.together():
            if ranks.is_main:
                check_free(run, resume)

        def tell_data(done: int, total: int | None) -> None:
            listen({"kind": "data", "step": 0, "done": done, "total": total})

        with ranks.together():
            task = make_task(recipe, ranks, tell_data)
        check_lock = _nothing
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
                log = RunLog(run, trainer.progress.step, recipe)
                stack.callback(log.close)
                trainer.listeners.append(log)
        trainer.stop_requested = stack.enter_context(_stop_signals(second_aborts=ranks.world == 1))
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
        # Only the steps are compiled: validation reads in other shapes, each of which would be compiled anew.
        for block in [part for part in self.model.modules() if isinstance(part, Block)]:
            block.gradient_checkpointing = recipe.parallel.recompute
        model = torch.compile(self.model) if recipe.training.compile else self.model
        self.wrapped = ranks.wrap(model, recipe.training.precision)
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
        self.progress = Progress()
        self.checkpoint: Path | None = None
        self.stop_requested: Callable[[], bool] = lambda: False
        self.check_lock: Callable[[], None] = (
            _nothing  # raises UserError if another run has the folder
        )
        self.lr = self.grad_norm = math.nan  # of the last step
        torch.manual_seed(recipe.training.seed + ranks.rank)  # dropout differs between the ranks

    def state_dict(self) -> dict[str, Any]:
        """All of this rank's state but the weights and the optimizer, of which the ranks have one together.

        Where the weights are averaged, the model's are the averages meanwhile and this holds those that train.
        """
        rng = {"cpu": torch.get_rng_state()}
        if self.ranks.device.type == "cuda":
            rng["cuda"] = torch.cuda.get_rng_state(self.ranks.device)
        state = {"progress": asdict(self.progress), "task": self.task.state_dict(), "rng": rng}
        return state if self.average is None else state | {"average": self.average.state_dict()}

    def resume(self) -> None:
        """Go on from the newest whole checkpoint of the run folder; from step 0 if it has not saved any."""
        with self.ranks.together():
            checkpoint = self._resumable()
        if checkpoint is not None:
            self._load(checkpoint)
            self.checkpoint = checkpoint
            self._emit("resumed", path=str(checkpoint))

    def _resumable(self) -> Path | None:
        """The newest whole checkpoint, which this run may go on from. UserError if there is
        something else."""
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
        """Go on exactly where a checkpoint was taken; with other numbers for dropout if by another number of ranks."""
        ranks = self.ranks
        world, context = checkpointing.layout(checkpoint)
        with ranks.together():
            states = [
                checkpointing.load_state(checkpoint, rank) for rank in range(0, world, context)
            ]
        with checkpointing.state_of_ours(checkpoint):
            self.progress = Progress(**states[0]["progress"])
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
                    hashed(self.recipe.training.seed + ranks.rank, self.progress.step)
                )

    def run_to_end(self) -> Outcome:
        """Take the remaining steps, with the log rows, validations and checkpoints between them."""
        training = self.recipe.training
        progress = self.progress
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
        if progress.step == training.steps:
            self._emit(
                "finished", can_be_longer=can_be_longer(self.recipe), path=str(self.checkpoint)
            )
        while progress.step < training.steps:
            stop = self._step()
            last = progress.step == training.steps
            if last or progress.step % training.log_every == 0:
                self._log_row()
            if training.eval_every and (last or progress.step % training.eval_every == 0):
                self._validate()
            if stop or last or progress.step % training.save_every == 0:
                self._save()
            if stop and not last:
                self._emit("interrupted", path=str(self.checkpoint))
                break
        return Outcome(progress.step, training.steps, self.checkpoint, progress.best)

    def _step(self) -> bool:
        """One optimizer step; whether a signal on any rank asks to stop after it."""
        began = time.perf_counter()
        ranks = self.ranks
        progress = self.progress
        batches, counted_here = self.task.next_batches()
        (counted,) = ranks.sum(counted_here)
        total = 0.0
        for index, batch in enumerate(batches):
            last = index == len(batches) - 1
            with nullcontext() if last else ranks.local_gradients(self.wrapped):
                loss = self.task.loss(self.wrapped, index, batch, int(counted))
                # The backward pass averages over the ranks and we want the sum: counted spans all of them.
                (loss * ranks.world).backward()
            total = total + loss.detach()
        norm = get_total_norm(
            [local(parameter.grad) for parameter in self.parameters if parameter.grad is not None]
        )
        loss_here, grad_norm = torch.stack(
            [total, norm]
        ).tolist()  # the one wait for the device in a step
        loss, stop, squares = ranks.sum(loss_here, self.stop_requested(), grad_norm**2)
        if ranks.is_sharded:
            grad_norm = math.sqrt(squares)
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            with ranks.together():  # all of them have found it, and one says so
                raise UserError(self._not_finite(loss, grad_norm))
        clip_norm = self.recipe.optimizer.clip_norm
        if clip_norm is not None and grad_norm > clip_norm:
            clip_grads_with_norm_(self.parameters, clip_norm, norm.new_tensor(grad_norm))
        self.lr = self.learning_rate(progress.step)
        self.grad_norm = grad_norm
        set_learning_rate(self.optimizer, self.lr)
        self.optimizer.step()
        self.optimizer.zero_grad()
        progress.step += 1
        if self.average is not None:
            self.average.update(progress.step)
        seconds = time.perf_counter() - began
        progress.units += int(counted)
        progress.seconds += seconds
        progress.window_nats += loss * counted
        progress.window_units += int(counted)
        progress.window_seconds += seconds
        return stop > 0

    def _log_row(self) -> None:
        """Emit the means since the last row, and begin anew."""
        progress = self.progress
        task = self.task
        training = self.recipe.training
        loss = progress.window_nats / progress.window_units
        window_steps = progress.step % training.log_every or training.log_every
        with self.ranks.together():  # the log may be refused
            self._emit(
                "train",
                loss=loss,
                **task.figures(loss),
                lr=self.lr,
                grad_norm=self.grad_norm,
                epoch=task.sampler.epoch + task.sampler.index / task.sampler.steps_per_epoch,
                elapsed=progress.seconds,
                time_left=(training.steps - progress.step) * progress.window_seconds / window_steps,
                **{
                    task.unit: progress.units,
                    f"{task.unit}_per_s": progress.window_units / progress.window_seconds,
                },
            )
        progress.window_nats = 0.0
        progress.window_units = 0
        progress.window_seconds = 0.0

    def _validate(self) -> None:
        sharded = self.ranks.is_sharded
        numbers = None
        if self.ranks.is_main or sharded:  # a sharded model gathers its weights from all ranks
            with self._averaged():
                numbers = self.task.validate()
            if sharded:
                self.model.reshard()  # it keeps those outside of the blocks for a backward pass, which does not come
            metric = self.task.metric
            best = self.progress.best
            if not best or self.task.is_better(numbers[metric], than=best[metric]):
                self.progress.best = {"step": self.progress.step, metric: numbers[metric]}
        with self.ranks.together():
            if numbers is not None:
                self._emit("validation", **numbers)

    def _save(self) -> None:
        with self.ranks.together():
            self.check_lock()
        with self._averaged():
            self.checkpoint = checkpointing.save(
                self.run,
                self.progress.step,
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
        """Inside, the model is the one to evaluate and to save."""
        return nullcontext() if self.average is None else self.average.in_place()

    def _facts(self) -> dict[str, str]:
        """What the model card says of the run."""
        progress = self.progress
        task = self.task
        recipe = self.recipe
        best = progress.best
        metric = task.metric
        measured = (
            f"{best[metric]:.4f} on the validation split at step {best['step']}, the best so far"
            if best
            else "not measured"
        )
        return {
            "recipe": f"{recipe.name} (recipe.yaml), after step {progress.step} of {recipe.training.steps}",
            "code": f"hgrn at {commit()}",
            "data": f"{task.data_name}, fingerprint {task.fingerprint}",
            f"{task.unit} trained on": f"{progress.units:,}",
            metric.replace("_", " "): measured,
        }

    def _emit(self, kind: str, **values: Any) -> None:
        for listener in self.listeners:
            listener({"kind": kind, "step": self.progress.step, **values})

    def _not_finite(self, loss: float, grad_norm: float) -> str:
        step = self.progress.step + 1
        saved = manifests.steps_saved(self.run)
        where = (
            f"resume from {saved[-1][1]} with --resume"
            if saved
            else "nothing has been saved yet, so start again"
        )
        return (
            f"step {step}: loss {loss}, gradient norm {grad_norm}. Training stopped before this step changed "
            f"the weights; {where}. If it stops here again, begin a new run with a lower optimizer.lr, a "
            "longer schedule.warmup_steps or optimizer.clip_norm 1.0."
        )


def _ignore(event: dict[str, Any]) -> None:
    pass


def _nothing() -> None:
    pass


def _check_division(recipe: Recipe, ranks: Ranks) -> None:
    parts = ranks.data_world * recipe.batch.accumulation
    if recipe.batch.batch_size % parts:
        shared = (
            f" over parallel.context = {recipe.parallel.context}"
            if recipe.parallel.context > 1
            else ""
        )
        raise UserError(
            f"batch.batch_size = {recipe.batch.batch_size} must be a multiple of {parts}: {ranks.world} "
            f"processes{shared} times batch.accumulation = {recipe.batch.accumulation}"
        )


@contextmanager
def _stop_signals(second_aborts: bool) -> Iterator[Callable[[], bool]]:
    """Yields what tells whether SIGINT or SIGTERM has come; they do nothing else meanwhile.

    With second_aborts a second SIGINT is a KeyboardInterrupt; under torchrun the terminal's may come twice.
    """
    received = []

    def handle(number: int, frame: object) -> None:
        if second_aborts and number == signal.SIGINT and received:
            raise KeyboardInterrupt
        received.append(number)

    if (
        threading.current_thread() is not threading.main_thread()
    ):  # only there Python lets us listen
        yield lambda: False
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is handle:
                signal.signal(number, handler)
