"""One run over several processes: what the ranks have to do together.

`Ranks` is the one process of an ordinary run, for which there is nothing to do; `TorchRanks` are
those that `torchrun` starts. The ranks share one global order: each takes every size-th image of
each batch, so that a run is the same, within rounding, on any number of them.
"""

from __future__ import annotations

import gc
import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from halfmeg.networks.layers import UnitBatchNorm2d

T = TypeVar("T")

REPLACED = (nn.BatchNorm1d, nn.BatchNorm2d, UnitBatchNorm2d)
"""With `sync_bn`: what computes nothing but BatchNorm."""


class Ranks:
    """A run's only process."""

    rank = 0
    size = 1

    def device(self, name: str) -> torch.device:
        """Return the device of this rank."""
        return torch.device(name)

    def first(self, build: Callable[[], T]) -> T:
        """Return what `build` returns on rank 0, on every rank; its ValueError too."""
        return build()

    def share(self, batch: Tensor) -> Tensor:
        """Return this rank's images of a batch, at least one."""
        return batch

    def num_own(self, count: int) -> int:
        """Return how many images of a batch of `count` are this rank's; none of a too small one."""
        return count

    def weigh(self, loss: Tensor, count: int) -> Tensor:
        """Return the mean loss of this rank's images so that the ranks' mean is the batch's."""
        return loss

    def sum(self, value: Tensor) -> Tensor:
        """Add up over the ranks."""
        return value

    def largest(self, value: int) -> int:
        """Return the largest number of any rank."""
        return value

    def gather(self, rows: Tensor, count: int) -> Tensor:
        """Return the `count` rows of all ranks in the order before `share` parted them."""
        return rows

    def wrap(
        self, model: nn.Module, *, synchronize_batchnorm: bool, passes_over: bool = False
    ) -> nn.Module:
        """Return the network to train, whose gradients are those of the whole batch.

        Args:
            model: the network.
            synchronize_batchnorm: whether its BatchNorm is over the whole batch too.
            passes_over: whether it may leave layers out of a step, as by stochastic depth.
        """
        return model

    def agree(self, model: nn.Module) -> nn.Module:
        """Give every rank the buffers of rank 0, such as BatchNorm's running statistics."""
        return model


class TorchRanks(Ranks):
    """The processes that torchrun has started, with torch's process group."""

    def __init__(self) -> None:
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()

    def device(self, name: str) -> torch.device:
        """Return the device of this rank: of several GPUs the one of its local number."""
        local = int(os.environ.get("LOCAL_RANK", "0"))
        return torch.device("cuda", local) if name == "cuda" else torch.device(name)

    def first(self, build: Callable[[], T]) -> T:
        """Return what `build` returns on rank 0, on every rank; its ValueError too."""
        outcome: list[Any] = [None, None]
        if self.rank == 0:
            try:
                outcome = [build(), None]
            except ValueError as error:
                outcome = [None, str(error)]
        dist.broadcast_object_list(outcome, src=0)
        built, message = outcome
        if message is not None:
            raise ValueError(message)
        return built  # type: ignore[no-any-return]

    def share(self, batch: Tensor) -> Tensor:
        """Return this rank's images of a batch; of a too small one its first image."""
        part = batch[self.rank :: self.size]
        return part if len(part) else batch[:1]

    def num_own(self, count: int) -> int:
        """Return how many images of a batch of `count` are this rank's."""
        return len(range(self.rank, count, self.size))

    def weigh(self, loss: Tensor, count: int) -> Tensor:
        """Weigh this rank's mean by its part of the images; what stands in for none weighs 0."""
        return loss * (self.num_own(count) * self.size / count)

    def sum(self, value: Tensor) -> Tensor:
        """Add up over the ranks."""
        dist.all_reduce(value)
        return value

    def largest(self, value: int) -> int:
        """Return the largest number of any rank."""
        tensor = torch.tensor(value, device=_group_device())
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return int(tensor)

    def gather(self, rows: Tensor, count: int) -> Tensor:
        """Return the `count` rows of all ranks, each once."""
        longest = -(-count // self.size)
        padded = rows.new_zeros(longest, *rows.shape[1:])
        own = self.num_own(count)
        padded[:own] = rows[:own]
        device = _group_device()
        parts = [torch.empty_like(padded, device=device) for _ in range(self.size)]
        dist.all_gather(parts, padded.to(device))
        interleaved = torch.stack(parts, 1).flatten(0, 1)  # row i of rank r is row i·size + r
        return interleaved[:count].to(rows.device)

    def wrap(
        self, model: nn.Module, *, synchronize_batchnorm: bool, passes_over: bool = False
    ) -> nn.Module:
        """Return the network in DistributedDataParallel."""
        if synchronize_batchnorm:
            _synchronize_batchnorm(model)
        return DistributedDataParallel(model, find_unused_parameters=passes_over)

    def agree(self, model: nn.Module) -> nn.Module:
        """Give every rank the buffers of rank 0."""
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)
        return model


def _group_device() -> torch.device:
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")


_groups = itertools.count()


@contextmanager
def join_ranks(device: str) -> Iterator[Ranks]:
    """Join the process group that torchrun has prepared, if it has started this process."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield TorchRanks() if dist.is_initialized() else Ranks()
        return
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    store, rank, size = next(rendezvous("env://"))
    # A second group in a row would find the first one's addresses, so each has keys of its own.
    own = dist.PrefixStore(f"halfmeg-{next(_groups)}", store)  # type: ignore[attr-defined]
    backend = "nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend, store=own, rank=rank, world_size=size)
    try:
        yield TorchRanks()
    finally:
        # A network in DistributedDataParallel keeps the group, and gloo's threads with it, alive;
        # where these outlive the interpreter, the process may end with SIGABRT.
        gc.collect()
        dist.destroy_process_group()


class _SumOverRanks(torch.autograd.Function):
    """The sum over the ranks; its gradient is the sum of their gradients."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = grad.clone()
        dist.all_reduce(total)
        return total


class SynchronizedBatchNorm(nn.BatchNorm2d):
    """BatchNorm over the images of all ranks.

    `torch.nn.SyncBatchNorm` does the same, on GPUs only. The formulas are those of Ioffe and
    Szegedy 2015, "Batch normalization", with sums over all ranks.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        """Take B×C and B×C×H×W alike."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalize each channel of B×C or B×C×H×W."""
        if not self.training:
            return super().forward(x)
        dims = [0, *range(2, x.ndim)]
        shape = [1, -1, *[1] * (x.ndim - 2)]
        with torch.autocast(x.device.type, enabled=False):
            values = x.float()
            ones = values.new_tensor([values.numel() / values.shape[1]])
            sums = _sum_over_ranks(torch.cat([values.sum(dims), ones]))
            count, mean = sums[-1], sums[:-1] / sums[-1]
            centred = values - mean.view(shape)
            variance = _sum_over_ranks(centred.square().sum(dims)) / count
            scale = torch.rsqrt(variance + self.eps)
            if self.weight is not None:
                scale = self.weight * scale
            result = centred * scale.view(shape)
            if self.bias is not None:
                result = result + self.bias.view(shape)
        if self.running_mean is not None:
            self._track(mean, variance * count / (count - 1))
        return result.to(x.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        share = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)


def _sum_over_ranks(value: Tensor) -> Tensor:
    return _SumOverRanks.apply(value)  # type: ignore[no-any-return, no-untyped-call]


def check_batchnorm(model: nn.Module) -> None:
    """Raise where a BatchNorm may compute something else than the one that would replace it.

    Raises:
        ValueError: it is of a class of the user's, or of another library.
    """
    known = (*REPLACED, SynchronizedBatchNorm)
    for child in model.modules():
        if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d) and type(child) not in known:
            raise ValueError(
                f"sync_bn=true cannot stand in for {type(child).__name__}, which may compute "
                f"something else than BatchNorm; leave it out, or take nn.BatchNorm2d"
            )


def _synchronize_batchnorm(model: nn.Module) -> None:
    """Replace each BatchNorm in place, with its parameters and buffers."""
    check_batchnorm(model)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if not isinstance(child, REPLACED) or isinstance(child, SynchronizedBatchNorm):
                continue
            new = SynchronizedBatchNorm(child.num_features, child.eps, child.momentum)
            new.weight, new.bias = child.weight, child.bias
            new.running_mean, new.running_var = child.running_mean, child.running_var
            new.num_batches_tracked = child.num_batches_tracked
            setattr(module, name, new)
