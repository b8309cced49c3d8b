"""Resume tokens and checkpoints: how a client proves to any router what it asked and got. Knows keys and hashes; no
streams, no text.

A token is a 32-byte tag over a `ResumeTicket`, then the ticket. It names the request, its tenant, the seed, a digest of
the specification and an end. A checkpoint is a tag over every token that was sent so far. Both are made with a key that
the routers of a service share, so a client can go on only from what it was given, and otherwise learns only "no".
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from google.protobuf.message import DecodeError

from argosy.internal.v1 import replica_pb2, resume_pb2
from argosy.v1 import inference_pb2 as api
from cluster.config import ArgosyConfig
from cluster.errors import Reason, ServiceError
from cluster.identity.keys import SECRET_FILE, read_secret
from cluster.ids import RequestId, TenantId, new_request_id

GRACE_SECONDS = 60.0
"""A request may be resumed for so long after its deadline: clocks differ, and clients back off."""
LONGEST_SECONDS = 3600.0
"""However late the deadline is."""
TAG_BYTES = 32
CHECKPOINT_BYTES = 16


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an answer starts: at its beginning, or where another router left off."""

    request_id: RequestId
    seed: int
    ticket: resume_pb2.ResumeTicket | None = None
    """None at the beginning."""
    sequence: int = 0
    """Of the last delta that the client has."""
    checkpoint: bytes = b""
    received: dict[int, list[int]] = field(default_factory=dict)
    """Tokens that the client says it has, by choice."""

    @property
    def num_received(self) -> int:
        return sum(map(len, self.received.values()))


class Checkpoints:
    """Proofs of what one client was sent: a few microseconds a delta, however long the answer is."""

    def __init__(self, key: bytes, request_id: str, choices: Iterable[int]) -> None:
        self._base = hashlib.blake2b(request_id.encode(), key=key, digest_size=CHECKPOINT_BYTES, person=b"argosy delta")
        self._choices = {choice: hashlib.blake2b(digest_size=16) for choice in choices}

    def add(self, choice: int, token_ids: Sequence[int], sequence: int) -> bytes:
        """The proof after the delta of that number."""
        self._choices[choice].update(struct.pack(f"<{len(token_ids)}I", *token_ids))
        proof = self._base.copy()
        proof.update(struct.pack("<Q", sequence))
        for tokens in self._choices.values():
            proof.update(tokens.digest())
        return proof.digest()


class Tickets:
    """Issues and reads resume tokens under one key."""

    def __init__(self, key: bytes) -> None:
        self._tag_key = _derived(key, b"resume token")
        self._checkpoint_key = _derived(key, b"checkpoint")

    def issue(self, ticket: resume_pb2.ResumeTicket) -> bytes:
        """The token of a ticket."""
        inside = ticket.SerializeToString()
        return self._tag(inside) + inside

    def origin(self, request: api.GenerateRequest, tenant: TenantId, now: float) -> Origin:
        """Where a request starts.

        Args:
            now: Unix seconds.

        Raises:
            ServiceError: RESUME_REFUSED, the token is not ours, not this tenant's, or no longer good.
        """
        if not request.HasField("resume"):
            return Origin(new_request_id(), secrets.randbits(64))
        resume = request.resume
        ticket = self._open(resume.token)
        if ticket is None or ticket.tenant != tenant or now > ticket.expires_at:
            raise ServiceError(Reason.RESUME_REFUSED)
        received: dict[int, list[int]] = {}
        for entry in resume.received:
            received.setdefault(entry.choice, []).extend(entry.token_ids)
        request_id = RequestId(ticket.request_id)
        return Origin(request_id, ticket.seed, ticket, resume.last_sequence, resume.checkpoint, received)

    def checkpoints(self, origin: Origin, spec: replica_pb2.GenerationSpec, digest: bytes) -> Checkpoints:
        """The proofs of an answer, from where it starts on.

        Args:
            spec: as it was before its first token.
            digest: of the specification that the client now asks for.

        Raises:
            ServiceError: RESUME_REFUSED, another answer was begun, or what the client says it has was never sent.
        """
        choices = [choice.index for choice in spec.choices]
        proofs = Checkpoints(self._checkpoint_key, spec.request_id, choices)
        if origin.ticket is None:
            return proofs
        if origin.ticket.digest != digest or not origin.received.keys() <= set(choices):
            raise ServiceError(Reason.RESUME_REFUSED)
        proof = b""
        for choice in choices:
            proof = proofs.add(choice, origin.received.get(choice, ()), origin.sequence)
        # Before the first delta there is nothing to prove.
        nothing = not origin.sequence and not origin.num_received
        if not nothing and not hmac.compare_digest(proof, origin.checkpoint):
            raise ServiceError(Reason.RESUME_REFUSED)
        return proofs

    def _open(self, token: bytes) -> resume_pb2.ResumeTicket | None:
        tag, inside = token[:TAG_BYTES], token[TAG_BYTES:]
        if not hmac.compare_digest(tag, self._tag(inside)):
            return None
        try:
            return resume_pb2.ResumeTicket.FromString(inside)
        except DecodeError:
            return None

    def _tag(self, inside: bytes) -> bytes:
        return hmac.digest(self._tag_key, inside, "sha256")


def digest_of(spec: replica_pb2.GenerationSpec, stop: api.Stop, model_revision: str) -> bytes:
    """Of everything that decides an answer. `spec` must be as it was before its first token and its first attempt."""
    digest = hashlib.blake2b(digest_size=16)
    for part in (spec.SerializeToString(deterministic=True), model_revision.encode(), *map(str.encode, stop.strings)):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.digest()


def resume_key(config: ArgosyConfig, *, shares_ledger: bool) -> bytes:
    """The key that this router shares with all those where its clients may resume.

    That is `router.resume_key`, else one made of the secret beside the ledger, which routers that share a ledger share;
    a router without either is alone, and its key ends with its process.

    Raises:
        ConfigurationError: a secret cannot be read.
    """
    path: Path | None = config.router.resume_key
    if path is not None:
        return read_secret(path.expanduser())
    if shares_ledger:
        return _derived(read_secret(config.ledger_path.with_name(SECRET_FILE)), b"resume")
    return secrets.token_bytes(32)


def _derived(key: bytes, purpose: bytes) -> bytes:
    return hmac.digest(key, b"argosy " + purpose, "sha256")
