"""Which methods may be called, and with which scope. What is not listed cannot be called. Knows names alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from cluster.identity.principal import Scope

PUBLIC: Final = None
"""Open to everybody: only what load balancers ask."""

METHODS: Mapping[str, Scope | None] = {
    "/argosy.v1.InferenceService/Generate": Scope.GENERATE,
    "/argosy.v1.ModelService/ListModels": Scope.GENERATE,
    "/argosy.v1.ModelService/GetModel": Scope.GENERATE,
    "/argosy.v1.UsageService/SummarizeUsage": Scope.USAGE,
    "/argosy.v1.UsageService/GetUsageRecord": Scope.USAGE,
    "/argosy.v1.AdminService/SetTenant": Scope.ADMIN,
    "/argosy.v1.AdminService/ListTenants": Scope.ADMIN,
    "/argosy.v1.AdminService/CreateKey": Scope.ADMIN,
    "/argosy.v1.AdminService/RotateKey": Scope.ADMIN,
    "/argosy.v1.AdminService/RevokeKey": Scope.ADMIN,
    "/argosy.v1.AdminService/ListKeys": Scope.ADMIN,
    "/inference.GRPCInferenceService/ServerLive": PUBLIC,
    "/inference.GRPCInferenceService/ServerReady": PUBLIC,
    "/inference.GRPCInferenceService/ModelReady": Scope.GENERATE,
    "/inference.GRPCInferenceService/ServerMetadata": Scope.GENERATE,
    "/inference.GRPCInferenceService/ModelMetadata": Scope.GENERATE,
    "/inference.GRPCInferenceService/ModelInfer": Scope.GENERATE,
    "/inference.GRPCInferenceService/ModelStreamInfer": Scope.GENERATE,
    "/vllm.grpc.engine.VllmEngine/Generate": Scope.GENERATE,
    "/vllm.grpc.engine.VllmEngine/HealthCheck": PUBLIC,
    "/vllm.grpc.engine.VllmEngine/Abort": Scope.GENERATE,
    "/vllm.grpc.engine.VllmEngine/GetModelInfo": Scope.GENERATE,
    "/vllm.grpc.engine.VllmEngine/GetServerInfo": Scope.GENERATE,
    "/grpc.health.v1.Health/Check": PUBLIC,
    "/grpc.health.v1.Health/Watch": PUBLIC,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": Scope.GENERATE,
}
