"""The processes that train together: one by default, or what `torchrun` started, sharded with FSDP2."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from stepaudio.train.hardware import HARDWARE

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


@dataclass
class World:
    """This process's place. All methods are collective: every rank calls them in the same order."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @classmethod
    def from_environment(cls) -> World:
        """One process, on the GPU if there is one; under `torchrun`, its rank, joined to the others."""
        kind = "cuda" if torch.cuda.is_available() else "cpu"
        if "LOCAL_RANK" not in os.environ:
            return cls(device=torch.device(kind))
        device = torch.device(kind, int(os.environ["LOCAL_RANK"])) if kind == "cuda" else torch.device(kind)
        if kind == "cuda":
            torch.cuda.set_device(device)
        if not dist.is_initialized():
            dist.init_process_group("nccl" if kind == "cuda" else "gloo")
        return cls(dist.get_rank(), dist.get_world_size(), device)

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files."""
        return self.rank == 0

    @cached_property
    def _mesh(self) -> DeviceMesh:
        from torch.distributed.device_mesh import init_device_mesh

        return init_device_mesh(self.device.type, (self.size,))

    def shard(self, model: nn.Module, modules: Iterable[nn.Module], *, bf16: bool) -> None:
        """Move a model to the device and split the parameters of its `modules`, inner ones first, over the ranks."""
        model.to(self.device)
        if self.size == 1:
            return
        from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

        gathered = torch.bfloat16 if bf16 else None
        policy = MixedPrecisionPolicy(gathered, reduce_dtype=torch.float32, cast_forward_inputs=False)
        for module in modules:
            fully_shard(module, mesh=self._mesh, mp_policy=policy)
            assert isinstance(module, FSDPModule)
            # Gradients are summed over the ranks; the loop divides by what was counted.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo knows no other

    def sum(self, value: float) -> float:
        """The sum over all ranks."""
        if self.size == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return float(total)

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        """Return when every rank is here."""
        if self.size > 1:
            dist.barrier()

    def whole(self, tensor: Tensor) -> Tensor:
        """A tensor with all of its shards, on the CPU; what is none is given back as it is."""
        if self.size > 1:
            from torch.distributed.tensor import DTensor

            tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        return tensor.detach().cpu()

    def like(self, whole: Tensor, tensor: Tensor) -> Tensor:
        """A whole tensor split as `tensor` is, if it is of the same shape."""
        if self.size > 1 and whole.shape == tensor.shape:
            from torch.distributed.tensor import DTensor, distribute_tensor

            if isinstance(tensor, DTensor):
                return distribute_tensor(whole.to(self.device), tensor.device_mesh, tensor.placements)
        return whole

    @cached_property
    def peak_flops(self) -> float:
        """What this rank's device can do in bfloat16 at most: as published, or for an unknown one as a large matrix
        product reaches."""
        if self.device.type == "cuda":
            name = torch.cuda.get_device_name(self.device)
            for known, hardware in HARDWARE.items():
                if known in name:
                    return hardware.flops
        return _measured_flops(self.device)


def _measured_flops(device: torch.device, size: int = 1024) -> float:
    a = torch.randn(size, size, dtype=torch.bfloat16, device=device)
    best = 0.0
    for _ in range(4):
        start = time.perf_counter()
        float((a @ a)[0, 0])
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best
