"""Places of a router: a tenant that wants everything leaves a part, and those who want too much get equal parts."""

from __future__ import annotations

import random

import pytest

from cluster.errors import Reason, ServiceError
from cluster.ids import TenantId
from cluster.ledger.records import ANONYMOUS
from cluster.router.places import Places

ACME, BETA = TenantId("acme"), TenantId("beta")


def is_let_in(places: Places, tenant: TenantId) -> bool:
    try:
        places.take(tenant)
    except ServiceError:
        return False
    return True


def take_all(places: Places, tenant: TenantId) -> int:
    """How many places it gets."""
    count = 0
    while is_let_in(places, tenant):
        count += 1
    return count


def test_one_tenant_leaves_a_quarter() -> None:
    places = Places(100)
    assert take_all(places, ACME) == 75
    assert take_all(places, BETA) == 19
    assert take_all(places, TenantId("third")) >= 1


def test_a_refusal_says_whose_limit_it_was_and_when_to_come_back() -> None:
    places = Places(4)
    assert take_all(places, ACME) == 3
    with pytest.raises(ServiceError) as caught:
        places.take(ACME)
    assert (caught.value.reason, caught.value.quotas[0].subject) == (Reason.OVERLOADED, "tenant:acme")
    assert caught.value.retry_after
    assert take_all(places, ANONYMOUS) == 1, "callers without credentials share what there is"
    with pytest.raises(ServiceError) as caught:
        places.take(BETA)
    assert caught.value.quotas[0].subject == "router"


def test_a_single_place_can_be_taken() -> None:
    assert take_all(Places(1), ACME) == 1


def test_greedy_tenants_come_to_equal_parts() -> None:
    rng = random.Random(5)
    places = Places(100)
    held = {ACME: take_all(places, ACME), BETA: 0}
    for _ in range(3000):
        leaver = rng.choice([tenant for tenant in held if held[tenant]])
        places.leave(leaver)
        held[leaver] -= 1
        for tenant in rng.sample(sorted(held), 2):
            held[tenant] += take_all(places, tenant)
    assert abs(held[ACME] - held[BETA]) <= 8
    assert places.num_taken == sum(held.values())
    for tenant, count in held.items():
        for _ in range(count):
            places.leave(tenant)
    assert places.num_taken == 0
