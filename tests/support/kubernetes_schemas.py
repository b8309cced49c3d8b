"""Kubernetes' own schemas by version, as the package `kubernetes-validate` brings them; each read once a run."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from jsonschema import Draft202012Validator
from kubernetes_validate.utils import schema_contents
from referencing import Registry, Resource


@cache
def _schemas(version: str) -> Registry[Any]:
    definitions = schema_contents(f"{_folder(version)}/_definitions.json", version)
    return Resource.from_contents(definitions) @ Registry()


@cache
def validator(kind: str, api_version: str, version: str) -> Draft202012Validator:
    """Strict: what the version does not know is refused.

    Raises:
        FileNotFoundError: the version has no such kind.
    """
    # rbac.authorization.k8s.io/v1 is in rbac-v1.
    group = re.sub(r"^([^./]*)(?:\.[^/]*)?/", r"\1-", api_version)
    schema = schema_contents(f"{_folder(version)}/{kind.lower()}-{group}.json", version)
    return Draft202012Validator(schema, registry=Resource.from_contents(schema) @ _schemas(version))


def _folder(version: str) -> str:
    return f"kubernetes-json-schema/v{version}.0-local-strict"
