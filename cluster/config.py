"""`argosy.yaml`: what a region should run. Parsed once, unknown keys refused, every field documented.

Knows files and limits; starts nothing. Errors are `ConfigurationError`s of one line that name the key and the fix.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ByteSize,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from cluster.errors import ConfigurationError
from cluster.peers import Identity, PeerFiles, Role, is_loopback
from model.quantization import Quantization


def default_store() -> Path:
    """Where pulled models live: $ARGOSY_HOME/models, else ~/.cache/argosy/models."""
    home = os.environ.get("ARGOSY_HOME")
    return (Path(home) if home else Path.home() / ".cache" / "argosy") / "models"


def default_state() -> Path:
    """Where a region keeps what must outlive it: $ARGOSY_STATE, else ~/.local/state/argosy."""
    state = os.environ.get("ARGOSY_STATE")
    return Path(state) if state else Path.home() / ".local" / "state" / "argosy"


def _check_host_port(value: str) -> str:
    host, _, port = value.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"{value!r} is not host:port, such as 127.0.0.1:50051")
    return value


HostPort = Annotated[str, AfterValidator(_check_host_port)]
Location = tuple[Annotated[float, Field(ge=-90, le=90)], Annotated[float, Field(ge=-180, le=180)]]


REGION_NAME = r"^[a-z0-9][a-z0-9-]{0,62}$"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class EngineConfig(_Section):
    """How one replica batches."""

    max_batch_tokens: int = Field(512, ge=1, le=65536)
    """Most tokens in one step, prefill and decode together."""
    max_sequences: int = Field(64, ge=1, le=4096)
    """Most sequences that hold a slot at once."""
    block_size: Literal[16, 32, 64, 128, 256] = 16
    """Tokens a KV block holds."""
    kv_cache: ByteSize = Field(default="256MiB", validate_default=True)
    """Bytes for keys and values on each rank."""
    prefix_cache: bool = True
    """Keep the blocks of finished requests and reuse them for equal prefixes."""
    deterministic: bool = True
    """A row's result does not depend on its neighbours, so continued streams are bit-exact."""
    allow_untested_gpu: bool = False
    """Run on GPUs although parts of that path never ran on one (docs/gpu-status.md)."""


class ModelSection(_Section):
    """One model and the replicas that serve it."""

    name: str = Field(pattern=r"^[a-zA-Z0-9][a-zA-Z0-9._/-]{0,127}$")
    """The name that clients use."""
    path: Path | None = None
    """Checkpoint directory (config.json, tokenizer.json, *.safetensors). Default: the store's, by name."""
    replicas: int = Field(1, ge=0, le=1024)
    """How many replicas to run."""
    tensor_parallel: int = Field(1, ge=1, le=128)
    """Ranks that share each layer."""
    pipeline_parallel: int = Field(1, ge=1, le=128)
    """Stages that the layers are cut into."""
    expert_parallel: int = Field(1, ge=1, le=128)
    """Groups of tensor ranks that experts are dealt to; divides tensor_parallel. 1: all ranks share every expert."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where ranks run. auto: cuda if the nodes have enough GPUs, else cpu."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Arithmetic type. auto: float32 on cpu, bfloat16 on cuda."""
    quantization: Quantization = "none"
    """What weights are made into as they are loaded. none: they stay as the checkpoint has them. int8: 8-bit integers.
    int4: 4-bit integers in groups of 32, embedding and head int8. What it costs and brings: docs/quantization.md."""
    context_length: int | None = Field(None, ge=16)
    """Most tokens of prompt and answer together. Default: the checkpoint's own limit."""
    threads_per_rank: int | None = Field(None, ge=1, le=256)
    """CPU threads of each rank. Default: the node's cores divided among its ranks, at least 1."""
    collectives: Literal["auto", "nccl", "gloo", "shared_memory"] = "auto"
    """What carries tensors between ranks. auto: nccl on cuda; shared_memory on one CPU host; else gloo."""
    engine: EngineConfig = EngineConfig()
    """Batching and memory of each replica."""
    regions: tuple[str, ...] = ()
    """Regions whose replicas may serve it, as data residency demands. Default: all."""

    def directory(self, store: Path) -> Path:
        return self.path.expanduser() if self.path else store / self.name


class TlsConfig(_Section):
    """Certificates of the public port, PEM. Files that change are taken up without a restart."""

    certificate: Path
    """The router's certificate, with the chain up to its authority."""
    key: Path
    """Its private key."""
    client_authority: Path | None = None
    """Clients must show a certificate of this authority. Default: none is asked for."""


class AdmissionConfig(_Section):
    """When requests that may be refused are: if no replica would give their first token in time."""

    sheddable_seconds: float = Field(10, gt=0)
    """Time to the first token within which a sheddable request must be servable."""
    batch_seconds: float = Field(600, gt=0)
    """The same of batch requests."""


class RouterConfig(_Section):
    """The public gRPC front."""

    tls: TlsConfig | None = None
    """Encrypts the public port. Default: it is not."""

    listen: HostPort = "127.0.0.1:50051"
    """Address that clients call."""
    http_listen: HostPort | None = None
    """Address of the OpenAI-compatible HTTP API, encrypted as `tls` says. Default: it is not offered."""
    console_listen: HostPort | None = None
    """Address of the operators' web page, encrypted as `tls` says; it asks for a key with the scope `admin`. Default:
    it is not offered."""
    reflection: bool = False
    """Offer gRPC server reflection."""
    max_message: ByteSize = Field(default="4MiB", validate_default=True)
    """Largest request message."""
    max_tokens: int = Field(4096, ge=1)
    """Most tokens that one choice may ask for."""
    max_streams: int = Field(1024, ge=1)
    """Most requests in flight at one router process. One tenant gets at most three times what is left for others."""
    max_connections: int = Field(4096, ge=1)
    """Most connections to one router process; keep its limit of open files well above."""
    quota_listen: HostPort | None = None
    """Private address where other regions' routers get slices of the limits of tenants at home here. Default: they get
    none. All routers of a machine share it."""
    default_deadline_seconds: float = Field(600, gt=0)
    """Deadline of a call that brings none."""
    coalesce_seconds: float = Field(0, ge=0, le=1)
    """How long a delta after the first may be held back for others to join it: less CPU a token, later tokens."""
    admission: AdmissionConfig = AdmissionConfig()
    """Early refusal of sheddable and batch requests; interactive ones are never refused for load."""
    processes: int = Field(1, ge=1, le=64)
    """Router processes that share the port; the system deals connections out among them."""
    drain_seconds: float = Field(30, ge=0)
    """How long running streams may take to finish after SIGTERM; then they are told to go elsewhere."""
    resume_key: Path | None = None
    """File with the secret that resume tokens are signed with, made at first use: routers with the same one go on with
    each other's streams. Default: one derived from the secret beside the ledger, which routers that share it share."""


class ControllerConfig(_Section):
    """The region's controller."""

    listen: HostPort = "127.0.0.1:50052"
    """Address of the directory and control services. Keep it private."""
    start_timeout_seconds: float = Field(600, gt=0)
    """A replica that is not ready by then counts as failed."""


class RayConfig(_Section):
    """The Ray cluster that places the ranks."""

    address: str = "local"
    """local: start one on this machine. auto: the one that this process is part of, as in a Ray job. Else the address
    of a running head, such as 10.0.0.1:6379."""
    namespace: str = "argosy"
    """Ray namespace of the region's actors."""
    num_cpus: int | None = Field(None, ge=1)
    """Logical CPUs of a local cluster. Default: as many as the ranks need, so that a laptop can hold them."""


class RegionSection(_Section):
    """A region whose replicas this region's routers may use."""

    name: str = Field(pattern=REGION_NAME)
    """As that region's own configuration names it."""
    controllers: tuple[HostPort, ...] = Field(min_length=1)
    """Its controllers' addresses; the first that answers is listened to."""
    quota: tuple[HostPort, ...] = ()
    """Its routers' `router.quota_listen`: where slices of its tenants' limits come from."""
    round_trip_seconds: float | None = Field(None, gt=0, le=10)
    """How far it is expected to be; what is measured takes the place by and by."""
    location: Location | None = None
    """Latitude and longitude in degrees, for the map of the web page."""
    injected_round_trip_seconds: float = Field(0, ge=0, le=10)
    """Added to every message there and back: lets several regions on one machine behave as if they were far apart."""


class LedgerConfig(_Section):
    """Where usage, tenants and keys are kept."""

    store: Literal["sqlite", "postgres", "memory"] = "sqlite"
    """sqlite: a file that all routers of this machine share. postgres: a server that routers of any machines share.
    memory: nothing is kept, there are no tenants."""
    path: Path | None = None
    """The SQLite file; with postgres its directory takes journals and the secret of keys, which machines must share.
    Default: `REGION/ledger.db` in the state directory ($ARGOSY_STATE, ~/.local/state/argosy)."""
    url: str | None = None
    """postgresql://user@host/database. A password comes from $PGPASSWORD or a password file, never from here."""
    lease_seconds: float = Field(10, gt=0)
    """A router that says nothing for so long is taken for dead, and its open requests are settled."""
    export: str | None = None
    """Where settled requests go as CloudEvents, at least once: file:///path or http(s)://host/path. Default: nowhere,
    they wait."""

    @model_validator(mode="after")
    def _server_is_named(self) -> LedgerConfig:
        if (self.store == "postgres") != (self.url is not None):
            raise ValueError("`url` and `store: postgres` need each other")
        return self


class OidcConfig(_Section):
    """An OpenID Connect provider whose access tokens are accepted."""

    issuer: str
    """Its issuer address, exactly as its tokens name it; https, or http on this machine."""
    audience: str
    """What its tokens for this service carry as `aud`."""
    tenant: str | None = None
    """The tenant of all its users. Default: what `tenant_claim` says."""
    tenant_claim: str = "tenant"
    """The claim that names a user's tenant; the tenant must exist."""
    scope_claim: str = "scope"
    """The claim that lists what a token allows: words in one string, or a list."""
    scopes: dict[str, tuple[Literal["generate", "usage", "admin"], ...]] = {
        "argosy": ("generate", "usage"),
        "argosy:admin": ("admin",),
    }
    """What each of its words allows here."""
    client_id: str = "argosy"
    """As which `argosy login` asks for tokens."""

    @field_validator("issuer")
    @classmethod
    def _issuer_is_safe(cls, value: str) -> str:
        scheme, _, rest = value.partition("://")
        host = rest.partition("/")[0]
        if scheme != "https" and not (scheme == "http" and is_loopback(host if ":" in host else f"{host}:80")):
            raise ValueError(f"{value!r} is not an https address")
        return value


class IdentityConfig(_Section):
    """Who may call the router."""

    mode: Literal["auto", "anonymous", "required"] = "auto"
    """required: calls need credentials. anonymous: calls without any are served too. auto: anonymous while
    `router.listen` is a loopback address, and otherwise the router refuses to start."""
    oidc: tuple[OidcConfig, ...] = ()
    """Providers whose access tokens are accepted beside API keys."""


class PeersConfig(_Section):
    """How our own processes know each other: mutual TLS between routers, controllers, engines and workers.

    In each path `{role}` stands for router, controller, engine, worker or operator, so that one file describes
    processes with certificates of their own. Files that change are taken up without a restart.
    """

    certificate: Path | None = None
    """This process's certificate, PEM, with its chain; its DNS names hold `ROLE.argosy.internal`."""
    key: Path | None = None
    """Its private key."""
    authority: Path | None = None
    """Certificates of the authority that issues those of all processes of all regions."""
    plain: Literal["loopback", "anywhere"] = "loopback"
    """Where private ports may do without certificates. anywhere: whoever reaches them is believed; every port says so
    in the log."""

    @model_validator(mode="after")
    def _files_come_together(self) -> PeersConfig:
        files = (self.certificate, self.key, self.authority)
        if any(files) and not all(files):
            raise ValueError("`certificate`, `key` and `authority` need each other")
        return self

    def identity(self, role: Role) -> Identity:
        """What a process of that role shows and asks for."""
        files = None
        if self.certificate and self.key and self.authority:
            paths = (self.certificate, self.key, self.authority)
            files = PeerFiles(*(Path(str(path).replace("{role}", role.value)).expanduser() for path in paths))
        return Identity(role, files, plain_anywhere=self.plain == "anywhere")


class MetricsConfig(_Section):
    """Where Prometheus scrapes each process: host:port, null exports nothing. If a port is taken, a free one is used.

    The controller lists all of them for Prometheus' HTTP service discovery under /targets. Whoever reaches a port sees
    models, tenants and load.
    """

    controller: HostPort | None = "127.0.0.1:9464"
    """The controller."""
    router: HostPort | None = "127.0.0.1:9465"
    """Each router."""
    engines: HostPort | None = "127.0.0.1:0"
    """Each engine, for itself and its ranks; port 0 takes a free one."""


class TracesConfig(_Section):
    """OpenTelemetry traces, sent over OTLP; needs `pip install argosy[traces]`."""

    endpoint: str | None = None
    """http(s)://host:port of a collector's OTLP/gRPC port. Default: nothing is traced."""
    sample: float = Field(0.05, ge=0, le=1)
    """Share of requests that are traced. What a caller has decided in its `traceparent` stands."""
    step_every: int = Field(50, ge=1)
    """Every so manieth step is a span, if a traced request is in it."""

    @field_validator("endpoint")
    @classmethod
    def _endpoint_is_an_address(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("http://", "https://")):
            raise ValueError(f"{value!r} is not http(s)://host:port, such as http://127.0.0.1:4317")
        return value


class LogConfig(_Section):
    """The log of every process."""

    format: Literal["text", "json"] = "text"
    """On stderr: lines to read, or one JSON object a line."""
    files: bool = True
    """Keep JSON lines in `REGION/logs` of the state directory as well, for `argosy logs`."""


class KubernetesDiscovery(_Section):
    """What the Kubernetes API is asked from inside a pod."""

    namespaces: tuple[str, ...] = ()
    """Where the Services of regions' controllers are, labelled argosy.io/region. Default: the pod's own."""
    link_domain_label: str = "nvidia.com/gpu.clique"
    """Label of nodes that reach each other's GPUs over one fast link."""
    rack_label: str = "topology.kubernetes.io/zone"
    """Label of nodes that are near each other."""
    drain_seconds: float = Field(30, ge=0)
    """How long running answers may take to finish on a node that is cordoned or a pod that is evicted; then they go on
    elsewhere."""


class DiscoveryConfig(_Section):
    """Who else says where things are, beside this file."""

    kubernetes: KubernetesDiscovery | None = None
    """Follow EndpointSlices, pods and nodes. Default: the API is not asked."""


class ArgosyConfig(_Section):
    """A region."""

    region: str = Field("local", pattern=REGION_NAME)
    """The region's name."""
    location: Location | None = None
    """Latitude and longitude in degrees, for the map of the web page."""
    models: tuple[ModelSection, ...] = Field(min_length=1)
    """What is served."""
    regions: tuple[RegionSection, ...] = ()
    """The other regions, whose replicas routers use like their own."""
    model_store: Path = Field(default_factory=default_store)
    """Directory of pulled models."""
    router: RouterConfig = RouterConfig()
    """The public front."""
    controller: ControllerConfig = ControllerConfig()
    """The controller."""
    ray: RayConfig = RayConfig()
    """The Ray cluster."""
    ledger: LedgerConfig = LedgerConfig()
    """Usage, tenants and keys."""
    identity: IdentityConfig = IdentityConfig()
    """Credentials."""
    discovery: DiscoveryConfig = DiscoveryConfig()
    """Where controllers are, and what nodes say of themselves."""
    peers: PeersConfig = PeersConfig()
    """Mutual TLS between our own processes."""

    metrics: MetricsConfig = MetricsConfig()
    """Ports that Prometheus scrapes."""
    traces: TracesConfig = TracesConfig()
    """OpenTelemetry traces."""
    log: LogConfig = LogConfig()
    """Logs."""

    @property
    def serves_anonymous(self) -> bool:
        """Whether calls without credentials are served.

        Raises:
            ConfigurationError: nobody decided it for a router that others can reach, or keys have no place.
        """
        mode = self.identity.mode
        if mode == "required" and self.ledger.store == "memory":
            raise ConfigurationError("identity.mode: `required` needs tenants, and ledger.store: memory has none")
        if mode != "auto":
            return mode == "anonymous"
        doors = {name: getattr(self.router, name) for name in ("listen", "http_listen", "console_listen")}
        for name, address in doors.items():
            if address is not None and not is_loopback(address):
                raise ConfigurationError(
                    f"identity.mode: router.{name} {address} can be reached by others; set `required`, "
                    "or `anonymous` to serve whoever comes"
                )
        return True

    @property
    def ledger_path(self) -> Path:
        """The SQLite file; its directory takes journals and secrets too."""
        path = self.ledger.path
        return path.expanduser() if path else default_state() / self.region / "ledger.db"

    @model_validator(mode="after")
    def _names_are_unique(self) -> ArgosyConfig:
        names = [model.name for model in self.models]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"models: name {name!r} occurs more than once")
        return self

    @model_validator(mode="after")
    def _processes_share_a_port(self) -> ArgosyConfig:
        if self.router.processes > 1 and self.router.listen.endswith(":0"):
            raise ValueError(
                "router.processes: several processes cannot share port 0; set router.listen to a fixed port"
            )
        return self

    @model_validator(mode="after")
    def _regions_are_known(self) -> ArgosyConfig:
        names = [section.name for section in self.regions]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"regions: name {name!r} occurs more than once")
        known = {self.region, *names}
        for model in self.models:
            if unknown := sorted(set(model.regions) - known):
                raise ValueError(
                    f"models: {model.name}: regions: {unknown[0]!r} is not a region; known: {', '.join(sorted(known))}"
                )
        return self


def load_config(path: Path) -> ArgosyConfig:
    """Read and check a configuration file.

    Raises:
        ConfigurationError: the file is missing, is not YAML, or a key is wrong; the message names it.
    """
    try:
        raw = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise ConfigurationError(f"{path}: no such file; `argosy up -f FILE` wants an argosy.yaml") from None
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror}") from None
    except yaml.YAMLError as error:
        problem = " ".join(str(error).split())
        raise ConfigurationError(f"{path}: not valid YAML: {problem}") from None
    return parse_config(raw, source=str(path))


def parse_config(raw: object, source: str = "configuration") -> ArgosyConfig:
    """Check a configuration already read.

    Raises:
        ConfigurationError: a key is unknown, missing or has an impossible value.
    """
    if not isinstance(raw, dict):
        raise ConfigurationError(f"{source}: expected a mapping with the key `models`, got {type(raw).__name__}")
    try:
        return ArgosyConfig.model_validate(raw)
    except ValidationError as error:
        raise ConfigurationError(f"{source}: {'; '.join(_problems(error))}") from None


def _problems(error: ValidationError) -> list[str]:
    problems = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"]) or "top level"
        if item["type"] == "extra_forbidden":
            known = ", ".join(_fields_at(item["loc"][:-1]))
            problems.append(f"unknown key {where!r}; known keys here: {known}")
        else:
            problems.append(f"{where}: {item['msg'].removeprefix('Value error, ')}")
    return problems


def _fields_at(location: tuple[int | str, ...]) -> list[str]:
    section: type[BaseModel] = ArgosyConfig
    for part in location:
        if isinstance(part, int):
            continue
        annotation = section.model_fields[part].annotation
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        section = next(c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel))
    return list(section.model_fields)
