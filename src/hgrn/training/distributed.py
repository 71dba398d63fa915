"""The processes of one training run, as `torchrun` starts them; a single process is the trivial case."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class Ranks:
    """This process among `world` equals: its number, and the device that it computes on."""

    rank: int
    world: int
    device: torch.device

    @classmethod
    @contextmanager
    def join(cls) -> Iterator["Ranks"]:
        """Join the process group that torchrun's environment describes (NCCL on CUDA devices, gloo on CPU).

        A group that the caller has already made is used and left as it is.
        """
        local_rank = int(os.environ.get("LOCAL_RANK", 0))
        if torch.cuda.is_available():
            device = torch.device("cuda", local_rank)
            torch.cuda.set_device(device)
        else:
            device = torch.device("cpu")
        if int(os.environ.get("WORLD_SIZE", 1)) == 1:
            yield cls(0, 1, device)
            return
        ours = not dist.is_initialized()
        if ours:
            on_cuda = device.type == "cuda"
            dist.init_process_group("nccl" if on_cuda else "gloo", device_id=device if on_cuda else None)
        try:
            yield cls(dist.get_rank(), dist.get_world_size(), device)
        finally:
            if ours:
                dist.destroy_process_group()

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes logs and prints."""
        return self.rank == 0

    def sum(self, *values: float) -> list[float]:
        """Each value summed over the ranks, on every rank."""
        if self.world == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.tolist()

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.world > 1:
            dist.barrier()

    def wrap(self, model: nn.Module) -> nn.Module:
        """`model` with its gradients averaged over the ranks at the end of each backward pass."""
        if self.world == 1:
            return model
        return DistributedDataParallel(
            model, device_ids=[self.device] if self.device.type == "cuda" else None
        )

    def local_gradients(self, wrapped: nn.Module) -> AbstractContextManager:
        """Backward passes inside only accumulate: for every micro-batch of a step but the last."""
        return wrapped.no_sync() if self.world > 1 else nullcontext()
