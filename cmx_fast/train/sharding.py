"""Splits parameters, gradients and optimiser state over the processes: PyTorch's FSDP under a stage of training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from lightning_fabric.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.modules.batchnorm import _BatchNorm


def strategy(processes: int) -> ModelParallelStrategy:
    """Fabric's strategy for :func:`shard`."""
    return ModelParallelStrategy(shard, data_parallel_size=processes, tensor_parallel_size=1)


def is_on(fabric: Fabric) -> bool:
    """True if stages are to be sharded."""
    return isinstance(fabric.strategy, ModelParallelStrategy)


def shard(module: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Leave each process its part of every parameter; they are whole only from a step's batch to its backward pass.

    The module is one unit, as a stage reads its parameters outside of forward, too (losses, clustering, evaluation).
    The first process's values count, as in DistributedDataParallel.
    """
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data = tensor.data.contiguous()  # FSDP takes no channels-last weights
        dist.broadcast(tensor.data, 0)
    fully_shard(module, mesh=mesh["data_parallel"], reshard_after_forward=False)
    return module


@torch.no_grad()
def unshard(module: nn.Module) -> None:
    """Bring the parameters together in every process, and give all the first one's batch norm statistics.

    Nothing happens to a module that is not sharded: DistributedDataParallel hands the statistics round itself.
    """
    if not isinstance(module, FSDPModule):
        return
    module.unshard()
    statistics = [
        buffer
        for norm in module.modules()
        if isinstance(norm, _BatchNorm)
        for buffer in (norm.running_mean, norm.running_var)
        if buffer is not None
    ]
    if statistics:
        first = torch.cat(statistics)
        dist.broadcast(first, 0)
        for own, value in zip(statistics, first.split([len(s) for s in statistics]), strict=True):
            own.copy_(value)


@contextmanager
def whole(module: nn.Module) -> Iterator[None]:
    """Within the block every process can read all parameters."""
    unshard(module)
    yield
    if isinstance(module, FSDPModule):
        module.reshard()


def parameter_groups(
    module: nn.Module, groups: list[dict[str, Any]], names: list[list[str]]
) -> list[dict[str, Any]]:
    """The groups with the parameters that now have these names: sharding has replaced those that they had."""
    parameters = dict(module.named_parameters())
    return [
        {**group, "params": [parameters[n] for n in own]} for group, own in zip(groups, names, strict=True)
    ]


def parameter_names(module: nn.Module, groups: list[dict[str, Any]]) -> list[list[str]]:
    """The names of every group's parameters."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return [[names[id(parameter)] for parameter in group["params"]] for group in groups]


def module_state(module: nn.Module, *, everywhere: bool = False) -> dict[str, Any]:
    """The whole state of a module.

    Of a sharded one the first process alone gets it, on the CPU, or with ``everywhere`` each process. All processes
    call this together.
    """
    if isinstance(module, FSDPModule):
        options = StateDictOptions(full_state_dict=True, cpu_offload=not everywhere)
        return get_model_state_dict(module, options=options)
    return module.state_dict()


def optimizer_state(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The whole state of the optimiser; see :func:`module_state`."""
    if isinstance(module, FSDPModule):
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        return get_optimizer_state_dict(module, optimizer, options=options)
    return optimizer.state_dict()


def load_optimizer(module: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Restore a state that :func:`optimizer_state` gave, in any number of processes."""
    if isinstance(module, FSDPModule):
        set_optimizer_state_dict(module, optimizer, state, options=StateDictOptions(full_state_dict=True))
    else:
        optimizer.load_state_dict(state)
