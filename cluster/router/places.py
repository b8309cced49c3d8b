"""How many requests may be in flight at one router, and how many of them one tenant's. Knows counts; no requests.

A tenant may hold at most `ALPHA` times what is still free, so that somebody who asks for everything leaves a part for
whoever comes next, and all who ask for more than there is get equal parts (dynamic thresholds: A. Choudhury and
E. Hahne, IEEE/ACM ToN 6(2), 1998). Calls without credentials are nobody's: they share what there is.
"""

from __future__ import annotations

from collections import Counter

from cluster.errors import QuotaViolation, Reason, ServiceError
from cluster.ids import TenantId
from cluster.ledger.records import ANONYMOUS

ALPHA = 3
"""A tenant alone may take 3/4 of all places, the next one 3/4 of the rest until they share alike."""
RETRY_SECONDS = 1.0


class Places:
    """Of one router."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._held: Counter[TenantId] = Counter()
        self.num_taken = 0

    def take(self, tenant: TenantId) -> None:
        """
        Raises:
            ServiceError: all places are taken, or the tenant has its part of them.
        """
        free = self._most - self.num_taken
        if free <= 0:
            raise _refusal("router", f"at most {self._most} requests in flight")
        held = self._held[tenant]
        if tenant != ANONYMOUS and held >= max(1, ALPHA * free):
            text = f"{held} of this router's {self._most} places, and {free} are left for all tenants"
            raise _refusal(f"tenant:{tenant}", text)
        self._held[tenant] += 1
        self.num_taken += 1

    def leave(self, tenant: TenantId) -> None:
        """A request that took a place has ended."""
        self.num_taken -= 1
        self._held[tenant] -= 1
        if not self._held[tenant]:
            del self._held[tenant]


def _refusal(subject: str, text: str) -> ServiceError:
    return ServiceError(Reason.OVERLOADED, quotas=(QuotaViolation(subject, text),), retry_after=RETRY_SECONDS)
