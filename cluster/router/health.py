"""Says through `grpc.health.v1` what this router can do now. Knows the catalogue and the fleet; changes neither.

- `""`: SERVING while the process takes calls, whatever the replicas do: restarting a router brings no replica back.
- `argosy.v1.ModelService`: the same.
- `argosy.v1.InferenceService`: SERVING while at least one model can be asked. One broken model out of several must not
  take the router out of rotation for the others.
- `argosy.v1.InferenceService/MODEL`: SERVING while that model has a replica and its tokenizer is loaded.
"""

from __future__ import annotations

from grpc_health.v1 import health, health_pb2

from argosy.v1 import inference_pb2, models_pb2
from cluster.clock import Clock
from cluster.router.catalogue import Catalogue, ServedModel
from cluster.router.fleet import Fleet

INFERENCE = inference_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name
MODELS = models_pb2.DESCRIPTOR.services_by_name["ModelService"].full_name
CHECK_SECONDS = 0.1


async def keep_health(servicer: health.aio.HealthServicer, catalogue: Catalogue, fleet: Fleet, clock: Clock) -> None:
    """Publish every change until cancelled."""
    published: dict[str, bool] = {}
    while True:
        models = {f"{INFERENCE}/{model.name}": _can_be_asked(model, fleet) for model in catalogue.values()}
        serving = {"": True, MODELS: True, INFERENCE: any(models.values()), **models}
        for service, is_serving in serving.items():
            if published.get(service) != is_serving:
                await servicer.set(service, _status(is_serving))
        published = serving
        await clock.sleep(CHECK_SECONDS)


def _can_be_asked(model: ServedModel, fleet: Fleet) -> bool:
    return model.loading.done() and fleet.num_ready(model.name) > 0


def _status(is_serving: bool) -> health_pb2.HealthCheckResponse.ServingStatus:
    response = health_pb2.HealthCheckResponse
    return response.SERVING if is_serving else response.NOT_SERVING
