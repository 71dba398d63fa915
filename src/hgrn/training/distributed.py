"""The processes of one training run, as `torchrun` starts them; a single process is the trivial case."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
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
from hgrn.training.recipe.fields import ParallelSpec

_FROM_TORCHRUN = ("RANK", "MASTER_ADDR", "MASTER_PORT")
# Longer than what one rank does alone (validation, tokenising); a rank that dies is noticed without it.
_TIMEOUT = timedelta(minutes=30)


@dataclass(frozen=True)
class Ranks:
    """This process among `world` equals: its number, the device that it computes on, and what they share out.

    mesh: the ranks in two dimensions, "data" (each row reads other sequences) and "context" (the ranks of a row share each
    sequence). Weights are averaged or sharded over all ranks. peers: the processes of all ranks. Both are None where
    there is one rank.
    """

    rank: int
    world: int
    device: torch.device
    parallel: ParallelSpec = ParallelSpec()
    mesh: DeviceMesh | None = None
    peers: Peers | None = None

    @classmethod
    @contextmanager
    def join(cls, parallel: ParallelSpec) -> Iterator["Ranks"]:
        """Join the process group that torchrun's environment describes (NCCL on CUDA devices, gloo on CPU).

        A group that the caller has already made is used and left as it is. Raises UserError if the ranks cannot be laid out as
        `parallel` asks, and when another rank dies.
        """
        local_rank = int(os.environ.get("LOCAL_RANK", 0))
        if torch.cuda.is_available():
            device = torch.device("cuda", local_rank)
            torch.cuda.set_device(device)
        else:
            device = torch.device("cpu")
        ours = not dist.is_initialized()
        world = int(os.environ.get("WORLD_SIZE", 1)) if ours else dist.get_world_size()
        if (
            ours
            and world > 1
            and (missing := [name for name in _FROM_TORCHRUN if name not in os.environ])
        ):
            raise UserError(
                f"WORLD_SIZE = {world} in the environment asks for as many processes, but {', '.join(missing)} is not set there: "
                f"start `torchrun --nproc-per-node {world} -m hgrn train ...`, or unset WORLD_SIZE to train with one process"
            )
        if world % parallel.context:
            raise UserError(
                f"parallel.context = {parallel.context} needs a multiple of as many processes, and there {_are(world)}: start "
                f"`torchrun --nproc-per-node {parallel.context} -m hgrn train ...`, or set it to a divisor of {world}"
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
        """Whether each rank holds a part of every parameter only."""
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
        return self.mesh["context"] if self.parallel.context > 1 else None

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
        """Ends when every rank is at the end of its block, in which the ranks do not talk to each
        other.

        A UserError inside the block of any rank ends all of them: the first rank that has one
        raises its own, the others a ToldElsewhere. So a rank that cannot write its file leaves
        nobody waiting, and one rank says why.
        """
        error = None
        try:
            yield
        except UserError as found:
            error = found
        (failures,) = self.sum(error is not None)
        if not failures:
            return
        messages = [None if error is None else str(error)]
        if self.world > 1:
            messages = [None] * self.world
            dist.all_gather_object(messages, None if error is None else str(error))
            outlive_torchrun()
        speaker = next(rank for rank, message in enumerate(messages) if message is not None)
        raise error if self.rank == speaker else ToldElsewhere(messages[speaker])

    def wrap(self, model: nn.Module, precision: str) -> nn.Module:
        """`model`, reading stretches if it has to, with its gradients averaged over the ranks at the end of each backward pass.

        With `parallel.mode: fsdp` it is sharded in place, and its matrices are gathered in bfloat16 where that is the precision.
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
        """Backward passes inside only accumulate: for every micro-batch of a step but the last.

        A sharded model sums over the ranks each time, since no rank has room for whole gradients.
        """
        return nullcontext() if self.world == 1 or self.is_sharded else wrapped.no_sync()


def _are(world: int) -> str:
    return "is 1" if world == 1 else f"are {world}"
