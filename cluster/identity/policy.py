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
    "/grpc.health.v1.Health/Check": PUBLIC,
    "/grpc.health.v1.Health/Watch": PUBLIC,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": Scope.GENERATE,
}
