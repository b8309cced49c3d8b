"""What Kubernetes says of the region's nodes, made use of: link domains for placement, orders to leave what goes away.

Knows addresses and labels; asks no API itself.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from cluster.config import KubernetesDiscovery
from cluster.control.topology import LINK_DOMAIN_LABEL, RACK_LABEL
from cluster.discovery.objects import Machine

logger = logging.getLogger(__name__)

Order = Callable[[str, bool], None]
"""(host, whether to leave it)."""


class Machines:
    """The nodes under the region's pods, by pod address: Ray knows each node by that address."""

    def __init__(self, config: KubernetesDiscovery, order: Order) -> None:
        self._config = config
        self._order = order
        self._machines: Mapping[str, Machine] = {}
        self._left: set[str] = set()

    def labels(self, host: str) -> dict[str, str]:
        """What placement reads, of the node under `host`."""
        machine = self._machines.get(host)
        given = machine.labels if machine else {}
        names = {LINK_DOMAIN_LABEL: self._config.link_domain_label, RACK_LABEL: self._config.rack_label}
        return {ours: given[theirs] for ours, theirs in names.items() if given.get(theirs)}

    def take(self, machines: Mapping[str, Machine]) -> None:
        """Take over what is known now, and give the orders that follow from what has changed."""
        self._machines = machines
        leaving = {host: machine.leaving for host, machine in machines.items() if machine.leaving}
        for host in sorted(leaving.keys() - self._left):
            logger.warning("%s: its replicas go elsewhere: %s", host, leaving[host])
            self._order(host, True)
        for host in sorted(self._left - leaving.keys()):
            logger.info("%s: may be used again", host)
            self._order(host, False)
        self._left = set(leaving)
