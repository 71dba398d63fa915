"""The processes of one training run, as `torchrun` starts them; usually there is only one."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from hgrn.errors import ToldElsewhere, UserError
from hgrn.parallel import parallelize
from hgrn.training import sharding
from hgrn.training.peers import Peers, outlive_torchrun
from hgrn.training.recipe.fields import BatchSpec, ParallelSpec

_FROM_TORCHRUN = ("RANK", "MASTER_ADDR", "MASTER_PORT")
# Longer than anything that one rank does alone (validation, tokenising). The death of a rank is
# noticed without it.
_TIMEOUT = timedelta(minutes=30)


@dataclass(frozen=True)
class Ranks:
    """This process among `world` equal ones: its number, its device, and how they share the work.

    mesh: the ranks in two dimensions, "data" (each row reads other sequences) and "context" (the
    ranks of a row share each sequence). Weights are averaged or sharded over all ranks.
    peers: the processes of all ranks. Both are None if there is one rank.
    """

    rank: int
    world: int
    device: torch.device
    parallel: ParallelSpec = field(default_factory=ParallelSpec)
    mesh: DeviceMesh | None = None
    peers: Peers | None = None

    @classmethod
    @contextmanager
    def join(cls, parallel: ParallelSpec) -> Iterator["Ranks"]:
        """Join the process group that torchrun's environment describes: NCCL on CUDA, gloo on CPU.

        A group that the caller has made already is used and left as it is. Raises UserError if the
        ranks cannot be laid out as `parallel` asks, and when another rank dies.
        """
        local_rank = int(os.environ.get("LOCAL_RANK", 0))
        if torch.cuda.is_available():
            device = torch.device("cuda", local_rank)
            torch.cuda.set_device(device)
        else:
            device = torch.device("cpu")
        # The caller may have made a process group of its own.
        ours = not dist.is_initialized()
        world = int(os.environ.get("WORLD_SIZE", 1)) if ours else dist.get_world_size()
        if (
            ours
            and world > 1
            and (missing := [name for name in _FROM_TORCHRUN if name not in os.environ])
        ):
            raise UserError(
                f"WORLD_SIZE = {world} in the environment asks for as many processes, but "
                f"{', '.join(missing)} is not set there: start `torchrun --nproc-per-node {world} "
                "-m hgrn train ...`, or unset WORLD_SIZE to train with one process"
            )
        if world % parallel.context:
            raise UserError(
                f"parallel.context = {parallel.context} needs a multiple of as many processes, and "
                f"there {_are(world)}: start `torchrun --nproc-per-node {parallel.context} -m hgrn "
                f"train ...`, or set it to a divisor of {world}"
            )
        if world == 1:
            yield cls(0, 1, device, parallel)
            return
        if ours:
            on_cuda = device.type == "cuda"
            dist.init_process_group(
                "nccl" if on_cuda else "gloo",
                timeout=_TIMEOUT,
                device_id=device if on_cuda else None,
            )
        try:
            mesh = init_device_mesh(
                device.type,
                (world // parallel.context, parallel.context),
                mesh_dim_names=("data", "context"),
            )
            peers = Peers()
            with peers.watched(), peers.explained():
                yield cls(dist.get_rank(), world, device, parallel, mesh, peers)
        finally:
            if ours:
                dist.destroy_process_group()

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes logs and prints."""
        return self.rank == 0

    @property
    def is_sharded(self) -> bool:
        """Whether each rank holds only a part of every parameter."""
        return self.parallel.mode == "fsdp" and self.world > 1

    @property
    def data_rank(self) -> int:
        """Which of the `data_world` shares of a batch this rank reads."""
        return self.rank // self.parallel.context

    @property
    def data_world(self) -> int:
        """Into how many shares a batch is cut."""
        return self.world // self.parallel.context

    @property
    def context(self) -> DeviceMesh | None:
        """The ranks that share their sequences with this one; None if it reads whole sequences."""
        if self.mesh is None or self.parallel.context == 1:
            return None
        return self.mesh["context"]

    def check_division(self, batch: BatchSpec) -> None:
        """Raise UserError unless a batch can be cut into equal micro-batches for these ranks."""
        parts = self.data_world * batch.accumulation
        if batch.batch_size % parts == 0:
            return
        context = self.parallel.context
        shared = f" over parallel.context = {context}" if context > 1 else ""
        raise UserError(
            f"batch.batch_size = {batch.batch_size} must be a multiple of {parts}: {self.world} "
            f"processes{shared} times batch.accumulation = {batch.accumulation}"
        )

    def explained(self) -> AbstractContextManager:
        """Raises a UserError for the death of another rank (see `Peers.explained`)."""
        return nullcontext() if self.peers is None else self.peers.explained()

    def sum(self, *values: float) -> list[float]:
        """Each value summed over the ranks, on every rank."""
        if self.world == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.tolist()

    @contextmanager
    def together(self) -> Iterator[None]:
        """Wait at the end of the block until every rank is there.

        Inside the block the ranks must not talk to each other. A UserError in the block of any rank
        ends all of them: the first rank with an error raises it, the others raise ToldElsewhere. So
        when a rank cannot write its file, nobody waits for it, and one rank says why.
        """
        error = None
        try:
            yield
        except UserError as found:
            error = found
        # This sum also is where the ranks wait for each other.
        (failures,) = self.sum(error is not None)
        if not failures:
            return
        mine = None if error is None else str(error)
        messages: list[str | None] = [mine]
        if self.world > 1:
            messages = [None] * self.world
            dist.all_gather_object(messages, mine)
            # torchrun sends SIGTERM as soon as one rank ends, and each has something to raise.
            outlive_torchrun()
        # One rank tells the user, so that an error of all ranks is not printed by each of them.
        speaker = next(rank for rank, message in enumerate(messages) if message is not None)
        if error is not None and self.rank == speaker:
            raise error
        raise ToldElsewhere(messages[speaker])

    def wrap(self, model: nn.Module, precision: str) -> nn.Module:
        """A model whose backward pass ends with the mean of its gradients over the ranks.

        With `parallel.context` above 1 it reads stretches of sequences. With `parallel.mode: fsdp`
        it is sharded in place, and gathers its matrices in bfloat16 if that is the precision.
        """
        if self.world == 1:
            return model
        if self.context is not None:
            parallelize(model, self.context)
        if self.is_sharded:
            sharding.shard(
                model, init_device_mesh(self.device.type, (self.world,)), bf16=precision == "bf16"
            )
            return model
        return DistributedDataParallel(
            model, device_ids=[self.device] if self.device.type == "cuda" else None
        )

    def local_gradients(self, wrapped: nn.Module) -> AbstractContextManager:
        """Inside, backward passes only accumulate, for every micro-batch of a step but the last.

        A sharded model sums over the ranks each time, because no rank has room for whole gradients.
        """
        if isinstance(wrapped, DistributedDataParallel):
            return wrapped.no_sync()
        return nullcontext()


def _are(world: int) -> str:
    return "is 1" if world == 1 else f"are {world}"
