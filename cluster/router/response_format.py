"""`ResponseFormat`, the shape that a client wants its answer to have: checking it, judging it, passing it on.

Knows the public field and the replica's; what a grammar is knows `cluster.grammar`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from argosy.internal.v1 import replica_pb2
from argosy.v1 import inference_pb2 as api
from cluster.errors import FieldViolation, Reason, ServiceError
from cluster.grammar.language import MAX_GRAMMAR_BYTES, Grammar, GrammarError, Kind, TokenizerUnusableError
from cluster.grammar.probe import GrammarProbe, ProbeBusyError

KINDS: Final[dict[str, Kind]] = {"json_schema": "json_schema", "regex": "regex", "grammar": "lark"}
"""By field of `ResponseFormat`."""
STOPS: Final = ("strings", "token_ids", "ignore_end_of_text", "min_tokens")
"""Fields of `Stop`, each of which could end a constrained answer before it is whole, or keep it from ending."""
RETRY_SECONDS: Final = 1.0


def problems(request: api.GenerateRequest) -> Iterator[tuple[str, str]]:
    """What is wrong with the format whatever its text means: field and description."""
    if not request.HasField("response_format"):
        return
    field = request.response_format.WhichOneof("format")
    if field is None:
        yield "response_format", "is empty; set json_schema, regex or grammar"
        return
    size = len(getattr(request.response_format, field).encode())
    if not 1 <= size <= MAX_GRAMMAR_BYTES:
        yield f"response_format.{field}", f"has {size} bytes; 1 to {MAX_GRAMMAR_BYTES} are allowed"
    for stop in STOPS:
        if getattr(request.stop, stop):
            yield f"stop.{stop}", "cannot be set together with response_format, which says where an answer ends"


async def judge(request: api.GenerateRequest, probe: GrammarProbe) -> None:
    """Return if the format of a checked request can be followed, or if there is none.

    Raises:
        ServiceError: INVALID_FIELD with what is wrong, UNSUPPORTED, or OVERLOADED.
    """
    if not request.HasField("response_format"):
        return
    field = request.response_format.WhichOneof("format") or ""
    try:
        await probe.check(_grammar(request, field))
    except GrammarError as error:
        violation = FieldViolation(f"response_format.{field}", str(error))
        raise ServiceError(Reason.INVALID_FIELD, violations=(violation,)) from None
    except TokenizerUnusableError as error:
        raise ServiceError(Reason.UNSUPPORTED, f"response_format: model {request.model!r}: {error}") from None
    except ProbeBusyError:
        raise ServiceError(
            Reason.OVERLOADED, "response_format: no time to compile it now", retry_after=RETRY_SECONDS
        ) from None


def grammar_spec(request: api.GenerateRequest) -> replica_pb2.GrammarSpec | None:
    """The format as replicas read it; None for free text."""
    field = request.response_format.WhichOneof("format")
    if field is None:
        return None
    grammar = _grammar(request, field)
    return replica_pb2.GrammarSpec(**{grammar.kind: grammar.text})


def _grammar(request: api.GenerateRequest, field: str) -> Grammar:
    return Grammar(KINDS[field], getattr(request.response_format, field))
