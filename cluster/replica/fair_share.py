"""How much device time each tenant has had, so that who had more can wait for who had less. Knows no requests.

Virtual token counters of Sheng et al., "Fairness in Serving Large Language Models" (OSDI '24), charged in seconds that
a tenant's tokens took, not in tokens: a counter grows by what is used, and is lifted almost to the least of those
present when its tenant comes back. So time away is no credit but for one quantum, by which who asks rarely goes first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping
from typing import TypeAlias

ROUNDING = 1e-6
"""A whole quantum stays whole, whatever was added and taken away."""
Account: TypeAlias = Hashable
"""Whose time it is: the cache domain of a request, which is its tenant's."""


class FairShares:
    """Counters of the tenants that have something here, and of those whose debt outlasts their stay."""

    def __init__(self, quantum_seconds: float) -> None:
        """
        Args:
            quantum_seconds: smaller differences do not count.
        """
        self._quantum = quantum_seconds
        self._used: dict[Account, float] = {}
        self._present: Counter[Account] = Counter()
        self._least = 0.0

    def enter(self, account: Account) -> None:
        """A request of the tenant arrives."""
        if not self._present[account]:
            floor = self._least - self._quantum if self._present else 0.0
            self._used[account] = max(self._used.get(account, floor), floor)
        self._present[account] += 1
        self._settle()

    def leave(self, account: Account) -> None:
        """A request of the tenant is over."""
        self._present[account] -= 1
        if not self._present[account]:
            del self._present[account]
            self._settle()
            # Who would be lifted when it returns need not be remembered.
            for other in [other for other, used in self._used.items() if used <= self._least - self._quantum]:
                if other not in self._present:
                    del self._used[other]

    def charge(self, seconds: Mapping[Account, float]) -> None:
        """The tenants' tokens took so long; ignored of one that has left, when nobody waits for it any more."""
        for account in seconds.keys() & self._present.keys():
            self._used[account] += seconds[account]
        self._settle()

    def arrears(self, account: Account) -> int:
        """How many quanta the tenant has had more than the least served one that is here. Smaller goes first."""
        ahead = self._used.get(account, self._least) - self._least
        return int(ahead / self._quantum + ROUNDING)

    def _settle(self) -> None:
        if self._present:
            self._least = min(self._used[account] for account in self._present)
        else:
            self._used.clear()
            self._least = 0.0
