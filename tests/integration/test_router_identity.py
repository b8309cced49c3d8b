"""Who gets in: every method against every bad credential, tenants against each other, keys over their lives."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf import duration_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from argosy.v1 import admin_pb2, models_pb2
from argosy.v1 import inference_pb2 as api
from cluster import rpc
from cluster.errors import ConfigurationError, Reason, ServiceError
from cluster.identity.policy import METHODS, PUBLIC
from tests.support.fake_replica import FakeReplica, hashed_tokens
from tests.support.guarded_world import Credentials, GuardedWorld, bearer, guarded_world
from tests.support.identity_provider import AUDIENCE, forge, identity_provider
from tests.support.router_world import MODEL, request, router_world, run_async

pytestmark = pytest.mark.model


def replica() -> FakeReplica:
    return FakeReplica(hashed_tokens(range(1000, 20000)), step_seconds=0.002)


async def verdict(channel: grpc.aio.Channel, method: str, credentials: Credentials) -> grpc.StatusCode:
    """Call a method with an empty message, whatever kind it is; the status."""
    call = channel.stream_stream(method)(iter([b""]), timeout=10, metadata=credentials)
    try:
        async for _ in call:
            call.cancel()
            break
    except grpc.aio.AioRpcError as error:
        return error.code()
    except asyncio.CancelledError:
        pass
    return grpc.StatusCode.OK


async def served_methods(address: str, credentials: Credentials) -> list[str]:
    """Every method, as reflection tells."""

    def ask() -> list[str]:
        class Signed(grpc.StreamStreamClientInterceptor):
            def intercept_stream_stream(self, continuation: Any, details: Any, requests: Any) -> Any:
                return continuation(details._replace(metadata=credentials), requests)

        with grpc.insecure_channel(address) as plain:
            database = ProtoReflectionDescriptorDatabase(grpc.intercept_channel(plain, Signed()))
            methods = []
            for service in database.get_services():
                package, _, name = service.rpartition(".")
                file = database.FindFileContainingSymbol(service)
                assert file.package == package
                [found] = [entry for entry in file.service if entry.name == name]
                methods += [f"/{service}/{method.name}" for method in found.method]
            return methods

    return await asyncio.to_thread(ask)


async def bad_credentials(world: GuardedWorld) -> dict[str, Credentials]:
    """One of each kind that must open nothing."""
    good = await world.key("acme")
    head, key_id, secret = good.split("_", 2)
    expired = await world.key("acme", lifetime=duration_pb2.Duration(nanos=1000))
    revoked = await world.key("acme")
    await world.administration.revoke_key(admin_pb2.RevokeKeyRequest(key_id=revoked.split("_")[1]), "test")
    await world.tenant("gone")
    disabled = await world.key("gone")
    tenant = admin_pb2.Tenant(tenant="gone", disabled=True)
    await world.administration.set_tenant(admin_pb2.SetTenantRequest(tenant=tenant), "test")
    return {
        "none": (),
        "empty": (("authorization", ""),),
        "no token": (("authorization", "Bearer "),),
        "another scheme": (("authorization", f"Basic {good}"),),
        "twice": bearer(good) + bearer(good),
        "unknown key": bearer(f"{head}_{'0' * 16}_{secret}"),
        "another secret": bearer(f"{head}_{key_id}_{'A' * 43}"),
        "cut": bearer(good[:-1]),
        "longer": bearer(good + "A"),
        "9 KiB": bearer("a" * 9 * 1024),
        "no key at all": bearer("x.y.z"),
        "expired": bearer(expired),
        "revoked": bearer(revoked),
        "tenant disabled": bearer(disabled),
    }


@run_async
async def test_every_method_refuses_every_bad_credential(smollm2_dir: Path, tmp_path: Path) -> None:
    """T38, for keys: methods are found by reflection, so that a new one cannot be forgotten."""
    async with guarded_world(smollm2_dir, tmp_path, replica()) as world:
        good = await world.tenant("acme")
        methods = await served_methods(world.addresses[0], good)
        assert len(methods) >= 14
        assert set(METHODS) <= set(methods)
        assert "/grpc.health.v1.Health/List" in methods, "served by the library, in no table of ours"
        bad = await bad_credentials(world)
        for method in methods:
            if method not in METHODS:
                assert await verdict(world.channels[0], method, good) is grpc.StatusCode.PERMISSION_DENIED, method
                continue
            if METHODS[method] is PUBLIC:
                continue
            for name, credentials in bad.items():
                code = await verdict(world.channels[0], method, credentials)
                assert code is grpc.StatusCode.UNAUTHENTICATED, (method, name)
        admin_only = [method for method in methods if "AdminService" in method]
        assert len(admin_only) == 6
        for method in admin_only:
            assert await verdict(world.channels[0], method, good) is grpc.StatusCode.PERMISSION_DENIED, method
        assert await verdict(world.channels[0], "/grpc.health.v1.Health/Check", ()) is grpc.StatusCode.OK


@run_async
async def test_a_tenant_gets_its_models_only(smollm2_dir: Path, tmp_path: Path) -> None:
    fake = replica()
    async with guarded_world(smollm2_dir, tmp_path, fake) as world:
        other = await world.tenant("other", models=["another-model"])
        abroad = await world.tenant("abroad", regions=["eu-north"])
        own = await world.tenant("own", models=[MODEL], regions=["local"])
        for who in (other, abroad):
            assert (await world.refusal(request(), who)).reason is Reason.FORBIDDEN
        assert not fake.submits
        await world.generate(request(max_tokens=2), own)


@run_async
async def test_a_tenants_requests_are_no_more_urgent_than_its_class(smollm2_dir: Path, tmp_path: Path) -> None:
    fake = replica()
    async with guarded_world(smollm2_dir, tmp_path, fake) as world:
        plain = await world.tenant("plain")
        slow = await world.tenant("slow", priority_class=api.PRIORITY_CLASS_BATCH)
        for who in (plain, slow):
            for asked in (api.PRIORITY_CLASS_INTERACTIVE, api.PRIORITY_CLASS_BATCH):
                await world.generate(request(max_tokens=1, priority_class=asked), who)
        assert [spec.priority for spec in fake.submits] == [0, 2, 2, 2]
        for wrong in ({"priority_class": 9}, {"home_region": "No Region"}):
            with pytest.raises(ServiceError) as caught:
                await world.tenant("wrong", **wrong)
            [violation] = caught.value.violations
            assert violation.field == f"tenant.policy.{next(iter(wrong))}"


@run_async
async def test_tenants_share_no_cached_prefixes(smollm2_dir: Path, tmp_path: Path) -> None:
    fake = replica()
    async with guarded_world(smollm2_dir, tmp_path, fake) as world:
        for name in ("acme", "beta"):
            await world.generate(request(max_tokens=2), await world.tenant(name))
        assert [bytes(spec.cache_domain) for spec in fake.submits] == [b"acme", b"beta"]


@run_async
async def test_a_key_lives_rotates_and_ends(smollm2_dir: Path, tmp_path: Path) -> None:
    async with guarded_world(smollm2_dir, tmp_path, replica()) as world:
        boss = await world.tenant("ops", "admin")
        assert (await world.refusal(request(), boss)).reason is Reason.FORBIDDEN, "scopes contain each other not"
        tenant = admin_pb2.Tenant(tenant="acme")
        await world.admin.SetTenant(admin_pb2.SetTenantRequest(tenant=tenant), metadata=boss)
        made = await world.admin.CreateKey(admin_pb2.CreateKeyRequest(tenant="acme", label="ci"), metadata=boss)
        await world.generate(request(max_tokens=1), bearer(made.secret))
        rotated = await world.admin.RotateKey(
            admin_pb2.RotateKeyRequest(key_id=made.key.key_id, overlap=duration_pb2.Duration(seconds=60)), metadata=boss
        )
        for secret in (made.secret, rotated.secret):
            await world.generate(request(max_tokens=1), bearer(secret))
        await world.admin.RevokeKey(admin_pb2.RevokeKeyRequest(key_id=made.key.key_id), metadata=boss)
        assert (await world.refusal(request(), bearer(made.secret))).reason is Reason.UNAUTHENTICATED
        await world.generate(request(max_tokens=1), bearer(rotated.secret))
        listed = (await world.admin.ListKeys(admin_pb2.ListKeysRequest(tenant="acme"), metadata=boss)).keys
        assert {key.label for key in listed} == {"ci"}
        assert [
            key.HasField("revoked_at") for key in sorted(listed, key=lambda key: key.created_at.ToNanoseconds())
        ] == [
            True,
            False,
        ]
        stored = str(await world.query("SELECT * FROM api_keys"))
        assert made.secret not in stored
        assert made.secret.rpartition("_")[2] not in stored
        actions = [row[0] for row in await world.query("SELECT action FROM audit WHERE actor LIKE 'key:%' ORDER BY at")]
        assert actions == ["set tenant", "create key", "rotate key", "revoke key"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"tenant": "nobody"},
        {"tenant": "acme", "scopes": ["root"]},
        {"tenant": "acme", "label": "x" * 129},
        {"tenant": "acme", "lifetime": {"seconds": -1}},
    ],
)
@run_async
async def test_a_wrong_key_request_makes_no_key(smollm2_dir: Path, tmp_path: Path, wrong: dict[str, Any]) -> None:
    async with guarded_world(smollm2_dir, tmp_path) as world:
        boss = await world.tenant("acme", "admin")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await world.admin.CreateKey(admin_pb2.CreateKeyRequest(**wrong), metadata=boss)
        assert rpc.to_service_error(caught.value).reason in {Reason.INVALID_FIELD, Reason.UNKNOWN_RESOURCE}
        assert await world.query("SELECT COUNT(*) FROM api_keys") == [(1,)]


@run_async
async def test_anonymous_calls_are_served_where_allowed_and_manage_nothing(smollm2_dir: Path, tmp_path: Path) -> None:
    async with guarded_world(smollm2_dir, tmp_path, replica(), mode="anonymous") as world:
        await world.generate(request(max_tokens=2))
        assert await world.query("SELECT tenant FROM requests") == [("anonymous",)]
        for method, scope in METHODS.items():
            if "Admin" in method:
                assert scope is not None
                assert await verdict(world.channels[0], method, ()) is grpc.StatusCode.PERMISSION_DENIED
        bad = bearer("argosy_0000000000000000_" + "A" * 43)
        assert (await world.refusal(request(), bad)).reason is Reason.UNAUTHENTICATED, "a bad key is not nobody"


@run_async
async def test_a_router_that_others_reach_must_be_told_whom_to_serve(smollm2_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="identity.mode"):
        async with guarded_world(smollm2_dir, tmp_path, mode="auto", router={"listen": "0.0.0.0:0"}):
            pass
    async with guarded_world(smollm2_dir, tmp_path, replica(), mode="auto") as world:
        await world.generate(request(max_tokens=1))


@run_async
async def test_no_store_means_no_entry(smollm2_dir: Path, tmp_path: Path) -> None:
    """The store of keys is locked by somebody: unknown callers are refused with a retry, never let in."""
    import sqlite3

    async with guarded_world(smollm2_dir, tmp_path, replica()) as world:
        key = bearer(await world.key("acme")) if await world.tenant("acme") else ()
        blocker = sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)
        blocker.execute("BEGIN EXCLUSIVE")
        error = await world.refusal(request(), key)
        assert error.reason is Reason.LEDGER_UNAVAILABLE
        assert error.retry_after
        blocker.execute("ROLLBACK")
        blocker.close()
        await asyncio.sleep(0.6)
        await world.generate(request(max_tokens=1), key)


@run_async
async def test_without_a_ledger_there_is_nothing_to_manage(smollm2_dir: Path) -> None:
    async with router_world(smollm2_dir, replica()) as world:
        assert await verdict(world.channel, "/argosy.v1.AdminService/ListTenants", ()) is grpc.StatusCode.UNIMPLEMENTED
        assert (await world.models.ListModels(models_pb2.ListModelsRequest())).models
        with pytest.raises(ServiceError):
            raise rpc.to_service_error(await _refused(world.channel))


async def _refused(channel: grpc.aio.Channel) -> grpc.aio.AioRpcError:
    stub: Any = channel.unary_unary("/argosy.v1.ModelService/ListModels")
    try:
        await stub(b"", metadata=bearer("x"))
    except grpc.aio.AioRpcError as error:
        return error
    raise AssertionError("a bad credential was ignored")


@run_async
async def test_a_providers_users_are_let_in_as_their_tenant(smollm2_dir: Path, tmp_path: Path) -> None:
    """T38, for tokens: login elsewhere, token here, stream, usage record; and what is no good opens no method."""
    with identity_provider() as provider:
        oidc = {"issuer": provider.issuer, "audience": AUDIENCE}
        sections = {"identity": {"mode": "required", "oidc": [oidc]}}
        async with guarded_world(smollm2_dir, tmp_path, replica(), **sections) as world:
            token = bearer(provider.token())
            assert (await world.refusal(request(), token)).reason is Reason.UNAUTHENTICATED, "no such tenant"
            await world.tenant("acme")
            await asyncio.sleep(0)
            token = bearer(provider.token(sub="u2"))
            reply = await world.generate(request(max_tokens=3), token)
            record = await world.record(reply.started.request_id, token)
            assert (record.tenant, record.subject) == ("acme", f"{provider.issuer}#u2")
            bad = {
                "expired": provider.token(exp=1),
                "audience": provider.token(aud="x"),
                "alg none": forge({"alg": "none", "kid": "rsa-1"}, {"iss": provider.issuer}),
            }
            for method, scope in METHODS.items():
                if scope is PUBLIC:
                    continue
                for name, value in bad.items():
                    code = await verdict(world.channels[0], method, bearer(value))
                    assert code is grpc.StatusCode.UNAUTHENTICATED, (method, name)
                if "Admin" in method:
                    assert await verdict(world.channels[0], method, token) is grpc.StatusCode.PERMISSION_DENIED
            boss = bearer(provider.token(scope="argosy:admin"))
            assert (await world.admin.ListTenants(admin_pb2.ListTenantsRequest(), metadata=boss)).tenants
