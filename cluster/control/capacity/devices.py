"""Kinds of GPU and how a fleet of them is written on the command line. Published figures, no measurements."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cluster.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class DeviceKind:
    """One GPU, by its maker's data sheet: dense figures, without sparsity."""

    name: str
    memory_bytes: float
    memory_bandwidth: float
    """Bytes a second."""
    bf16_flops: float
    fp8_flops: float
    """Equal to bf16 where the device has no 8-bit arithmetic."""
    link_bandwidth: float
    """Bytes a second, each way, to the other GPUs of its link domain."""
    network_bandwidth: float
    """Bytes a second between nodes, for each GPU."""
    dollars_per_hour: float
    """An assumption about rented devices, not a measurement: pass your own price."""


_KINDS = (
    DeviceKind("H200", 141e9, 4.8e12, 989e12, 1979e12, 450e9, 50e9, 3.5),
    DeviceKind("H100", 80e9, 3.35e12, 989e12, 1979e12, 450e9, 50e9, 2.5),
    DeviceKind("A100", 80e9, 2.04e12, 312e12, 312e12, 300e9, 25e9, 1.5),
    DeviceKind("L40S", 48e9, 0.864e12, 362e12, 733e12, 32e9, 12.5e9, 1.0),
)
KINDS: Mapping[str, DeviceKind] = {kind.name: kind for kind in _KINDS}

_RESERVED_SHARE, _RESERVED_BYTES = 0.06, 1.5e9
"""Memory that runtime, graphs and fragmentation take."""


def usable_bytes(kind: DeviceKind) -> float:
    """Memory for weights, keys and values, and activations."""
    return kind.memory_bytes * (1 - _RESERVED_SHARE) - _RESERVED_BYTES


@dataclass(frozen=True, slots=True)
class LinkDomain:
    """GPUs of one kind that reach each other over the fast link: what a tensor group never leaves."""

    name: str
    kind: DeviceKind
    size: int


_GROUP = re.compile(r"(\d+)x([A-Za-z0-9]+)")
PER_NODE = 8
"""GPUs of a node where nothing else is said."""


def parse_fleet(devices: str, nodes: Sequence[int] = ()) -> tuple[LinkDomain, ...]:
    """`16xH100` or `8xH100,8xA100`, as nodes.

    Args:
        nodes: GPUs of each node, in the order of `devices`; default: eight each, the rest in a smaller one.

    Raises:
        ConfigurationError: it cannot be read, or nodes and devices are not equally many.
    """
    domains: list[LinkDomain] = []
    left = list(nodes)
    for group in devices.split(","):
        match = _GROUP.fullmatch(group.strip())
        kind = KINDS.get(match[2].upper()) if match else None
        if match is None or kind is None or int(match[1]) < 1:
            raise ConfigurationError(f"--devices {group!r}: expected COUNTxKIND with KIND of {', '.join(KINDS)}")
        count = int(match[1])
        while count > 0:
            size = left.pop(0) if left else min(count, PER_NODE if not nodes else 0)
            if not 0 < size <= count:
                raise ConfigurationError(
                    f"--nodes {','.join(map(str, nodes))}: its sizes do not add up to --devices {devices}"
                )
            domains.append(LinkDomain(f"node {len(domains)}", kind, size))
            count -= size
    if left:
        raise ConfigurationError(f"--nodes {','.join(map(str, nodes))}: more GPUs than --devices {devices}")
    return tuple(domains)
