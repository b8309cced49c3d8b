"""Every policy by its name: Argosy's rule and the published ones it is measured against."""

from cluster.simulate.policies import (
    bounded_hash,
    dynamo,
    gorgo,
    llm_d,
    lmetric,
    marginal_cost,
    mooncake,
    power_of_two,
    preble,
    round_robin,
    sglang,
    skywalker,
)
from cluster.simulate.policies.base import PolicyKind

OURS = marginal_cost.KIND.name
REGION_LOCAL = marginal_cost.KIND_CONFINED.name

POLICIES: dict[str, PolicyKind] = {
    kind.name: kind
    for kind in (
        marginal_cost.KIND,
        marginal_cost.KIND_CONFINED,
        round_robin.KIND,
        power_of_two.KIND,
        bounded_hash.KIND,
        sglang.KIND,
        skywalker.KIND,
        preble.KIND,
        dynamo.KIND,
        llm_d.KIND,
        lmetric.KIND,
        mooncake.KIND,
        mooncake.KIND_WITH_ROUND_TRIP,
        gorgo.KIND,
    )
}
