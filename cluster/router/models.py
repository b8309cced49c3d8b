"""`ModelService`: which models can be asked, and how many replicas of each. Knows the catalogue and the fleet."""

from __future__ import annotations

from typing import Any

import grpc.aio

from argosy.v1 import models_pb2 as api
from argosy.v1 import models_pb2_grpc
from cluster.errors import FieldViolation, Reason, ServiceError
from cluster.router.catalogue import Catalogue, ServedModel
from cluster.router.fleet import Fleet

Context = grpc.aio.ServicerContext[Any, Any]


class ModelService(models_pb2_grpc.ModelServiceServicer):
    """Lists models."""

    def __init__(self, catalogue: Catalogue, fleet: Fleet) -> None:
        self._catalogue = catalogue
        self._fleet = fleet

    async def ListModels(self, request: api.ListModelsRequest, context: Context) -> api.ListModelsResponse:  # noqa: N802
        """Every served model, by name."""
        return api.ListModelsResponse(models=[self._describe(model) for model in self._catalogue.values()])

    async def GetModel(self, request: api.GetModelRequest, context: Context) -> api.GetModelResponse:  # noqa: N802
        """One model; NOT_FOUND names the known ones."""
        if not request.model:
            raise ServiceError(Reason.INVALID_FIELD, violations=(FieldViolation("model", "is empty"),))
        return api.GetModelResponse(model=self._describe(self._catalogue.find(request.model)))

    def _describe(self, model: ServedModel) -> api.Model:
        return api.Model(
            name=model.name,
            architecture=model.architecture,
            context_length=model.limits.context_length,
            vocabulary_size=model.limits.vocabulary_size,
            has_chat_template=model.limits.has_chat_template,
            ready_replicas=self._fleet.num_ready(model.name),
            revision=model.revision,
        )
