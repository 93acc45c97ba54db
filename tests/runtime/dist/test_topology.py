"""Where a rank stands and which address it is reached at, from environments as torchrun and Kubernetes make them."""

import socket

import pytest

from deepseek_runtime.dist.topology import Topology, TopologyError, interface_of

TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}


def test_a_process_without_torchrun_is_alone() -> None:
    assert Topology.from_env({"PATH": "/bin"}) == Topology(rank=0, world_size=1, local_rank=0)


def test_torchrun_s_environment_places_the_rank() -> None:
    assert Topology.from_env({**TORCHRUN, "POD_IP": "10.1.2.3"}) == Topology(3, 4, 1, 2, "127.0.0.1", "10.1.2.3")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"RANK": "4"}, "RANK=4 is not below WORLD_SIZE=4"),
        ({"RANK": "first"}, "RANK='first' is not a number"),
        ({"LOCAL_RANK": ""}, "LOCAL_RANK='' is not a number"),
    ],
)
def test_an_impossible_environment_is_refused_by_name(change: dict[str, str], sentence: str) -> None:
    with pytest.raises(TopologyError, match=sentence):
        Topology.from_env(TORCHRUN | change)


def test_ranks_of_one_machine_meet_on_loopback_whatever_the_pod_s_address() -> None:
    assert Topology(0, 2, 0, 2, master_addr="no.such.host.invalid", pod_ip="10.1.2.3").address() == "127.0.0.1"


def test_pods_of_several_machines_meet_on_the_pod_s_address() -> None:
    assert Topology(0, 2, 0, 1, master_addr="192.0.2.77", pod_ip="10.1.2.3").address() == "10.1.2.3"


def test_a_loopback_rendezvous_keeps_several_agents_on_loopback() -> None:
    assert Topology(0, 2, 0, 1, master_addr="127.0.0.1", pod_ip="10.1.2.3").address() == "127.0.0.1"


def test_an_unknown_rendezvous_host_is_named() -> None:
    with pytest.raises(TopologyError, match=r"MASTER_ADDR=no\.such\.host\.invalid"):
        Topology(0, 2, 0, 1, master_addr="no.such.host.invalid").address()


def test_interfaces_are_found_by_address() -> None:
    loopback = socket.if_nameindex()[0][1]
    assert interface_of("127.0.0.1") == loopback
    assert interface_of("203.0.113.9") is None
    assert interface_of("2001:db8::9") is None


@pytest.mark.skipif(not socket.has_ipv6, reason="this Python has no IPv6")
def test_ipv6_interfaces_are_found_by_address() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError as error:
        pytest.skip(f"this machine has no IPv6 loopback: {error}")
    assert interface_of("::1") == socket.if_nameindex()[0][1]
