"""Where this process stands among the ranks, and which of the machine's addresses the others reach it at.

Only the standard library; everything comes from torchrun's environment and the kernel's interface tables.
"""

from __future__ import annotations

import fcntl
import ipaddress
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

SIOCGIFADDR = 0x8915
LOOPBACK = "127.0.0.1"
IPV6_TABLE = Path("/proc/net/if_inet6")


class TopologyError(RuntimeError):
    """The environment does not describe a group; the message names the variable."""


@dataclass(frozen=True, slots=True)
class Topology:
    """The place of one rank. `pod_ip` is the address that Kubernetes gave the pod, empty elsewhere."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    master_addr: str = LOOPBACK
    pod_ip: str = ""

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Topology:
        """Read torchrun's variables; without them, the process is alone. TopologyError for what cannot be."""
        if "RANK" not in environ and "WORLD_SIZE" not in environ:
            return cls()
        rank, size = _number(environ, "RANK"), _number(environ, "WORLD_SIZE")
        local_rank = _number(environ, "LOCAL_RANK")
        if rank >= size:
            raise TopologyError(f"RANK={rank} is not below WORLD_SIZE={size}; start the ranks with torchrun")
        local_size = _number(environ, "LOCAL_WORLD_SIZE") if "LOCAL_WORLD_SIZE" in environ else 1
        master = environ.get("MASTER_ADDR") or LOOPBACK
        return cls(rank, size, local_rank, local_size, master, environ.get("POD_IP", ""))

    @property
    def one_node(self) -> bool:
        """Whether all ranks run on this machine."""
        return self.local_world_size == self.world_size

    def address(self) -> str:
        """This machine's address that the other ranks reach: loopback where that is enough, else the pod's."""
        if self.one_node:
            return LOOPBACK
        route = _source_address(self.master_addr)
        if ipaddress.ip_address(route).is_loopback or not self.pod_ip:
            return route
        return self.pod_ip


def interface_of(address: str) -> str | None:
    """The name of the network interface that holds an IPv4 or IPv6 address; None where none does."""
    wanted = ipaddress.ip_address(address)
    holders = _ipv4_holders() if wanted.version == 4 else _ipv6_holders()
    return holders.get(wanted)


def _number(environ: Mapping[str, str], name: str) -> int:
    value = environ.get(name, "")
    if not value.isdecimal():
        raise TopologyError(f"{name}={value!r} is not a number from 0; start the ranks with torchrun, which sets it")
    return int(value)


def _source_address(host: str) -> str:
    """The address that packets to a host leave from. Connecting a datagram socket asks the routes and sends nothing."""
    try:
        family, kind, _, _, target = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(target)
            return str(probe.getsockname()[0])
    except OSError as error:
        raise TopologyError(f"no route to rank 0's machine, MASTER_ADDR={host}: {error}") from error


def _ipv4_holders() -> dict[ipaddress.IPv4Address | ipaddress.IPv6Address, str]:
    holders: dict[ipaddress.IPv4Address | ipaddress.IPv6Address, str] = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode())
            try:
                answer = fcntl.ioctl(probe.fileno(), SIOCGIFADDR, request)
            except OSError:
                continue  # An interface without an IPv4 address.
            holders[ipaddress.IPv4Address(answer[20:24])] = name
    return holders


def _ipv6_holders() -> dict[ipaddress.IPv4Address | ipaddress.IPv6Address, str]:
    lines = IPV6_TABLE.read_text().splitlines() if IPV6_TABLE.exists() else []
    rows = (line.split() for line in lines)
    return {ipaddress.IPv6Address(bytes.fromhex(row[0])): row[5] for row in rows}
