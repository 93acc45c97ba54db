"""Join the group that torchrun started, or be a group of one without it."""

from __future__ import annotations

import os
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from deepseek_runtime.dist.group import Group, ProcessGroup
from deepseek_runtime.dist.topology import Topology, TopologyError, interface_of

JOIN_TIMEOUT = timedelta(minutes=30)
"""Also bounds each collective: generous, since a dead rank is noticed by `liveness`, not by a timeout."""


def join_group(device: str = "auto", timeout: timedelta = JOIN_TIMEOUT, *, ordered_sums: bool = False) -> Group:
    """Meet the other ranks and connect to them; returns when all are there.

    `device` is "cpu", "cuda" (NVIDIA or ROCm), or "auto": a GPU where there is one. The group's `device` is this
    rank's. With `ordered_sums` a sum over ranks has the same bits wherever in a tensor it stands, which costs traffic.
    TopologyError tells what is wrong with the environment, or that the others were not met.
    """
    topology = Topology.from_env(os.environ)
    own_device = choose_device(device, topology.local_rank)
    if topology.world_size == 1:
        return Group(own_device)
    _choose_interface(topology)
    try:
        store = _meet(own_device, timeout)
    except (RuntimeError, ValueError) as error:
        cause = str(error).partition("\n")[0]
        others = topology.world_size - 1
        raise TopologyError(
            f"rank {topology.rank} did not meet the {others} other rank{'s' * (others > 1)} at "
            f"{topology.master_addr}:{os.environ.get('MASTER_PORT', '')}: {cause}"
        ) from error
    return ProcessGroup(topology, own_device, PrefixStore("dsv3", store), ordered_sums=ordered_sums)


def _meet(device: torch.device, timeout: timedelta) -> Store:
    """Start torch's process group; the store through which its ranks met, which lives in torchrun's agent on node 0."""
    store, rank, world_size = next(rendezvous("env://", timeout=timeout))
    backend = "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl"
    dist.init_process_group(
        backend, store=PrefixStore("torch", store), rank=rank, world_size=world_size, timeout=timeout
    )
    shared: Store = store
    return shared


def choose_device(device: str, local_rank: int) -> torch.device:
    """This rank's own device, made current; TopologyError where there is none for it."""
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    found = torch.cuda.device_count()
    if local_rank >= found:
        raise TopologyError(
            f"local rank {local_rank} has no GPU: this machine shows {found}; start as many ranks per node as GPUs"
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def _choose_interface(topology: Topology) -> None:
    """Have gloo listen where the others reach this rank; by itself it takes whatever the host's name resolves to."""
    if "GLOO_SOCKET_IFNAME" in os.environ:
        return
    address = topology.address()
    interface = interface_of(address)
    if interface is None:
        raise TopologyError(
            f"no network interface holds {address}, the address of this pod; set GLOO_SOCKET_IFNAME to the right one"
        )
    os.environ["GLOO_SOCKET_IFNAME"] = interface
