"""The client's decisions, without a network: what is asked next, whom, and when it gives up."""

from __future__ import annotations

import random

import grpc
import pytest

from argosy.client import RequestError, RetryPolicy, chat_request
from argosy.client.exchange import Exchange, Failure
from argosy.v1 import inference_pb2 as api

LOST = Failure(grpc.StatusCode.UNAVAILABLE, "connection reset")
DRAINING = Failure(grpc.StatusCode.UNAVAILABLE, "shutting down", "SHUTTING_DOWN", 1.0)
QUOTA = Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, "a limit", "QUOTA_EXCEEDED", 7.0)
INVALID = Failure(grpc.StatusCode.INVALID_ARGUMENT, "max_tokens", "INVALID_FIELD")
BREAKS = Failure(grpc.StatusCode.FAILED_PRECONDITION, "twice", "QUARANTINED")
ASK = api.GenerateRequest(model="m", prompt="p", num_choices=2, idempotency_key="mine")


def exchange(num_routers: int = 2, deadline: float = 100.0, **policy: float) -> Exchange:
    return Exchange(ASK, num_routers, deadline, RetryPolicy(**policy), random.Random(3))


def started(token: bytes) -> api.GenerateResponse:
    return api.GenerateResponse(started=api.Started(request_id="req_1", resume_token=token))


def delta(sequence: int, choice: int, *token_ids: int) -> api.GenerateResponse:
    checkpoint = b"after %d" % sequence
    fields = api.Delta(sequence=sequence, choice=choice, token_ids=token_ids, checkpoint=checkpoint)
    return api.GenerateResponse(delta=fields)


def test_a_request_is_asked_again_until_a_router_accepts_it_and_resumed_from_then_on() -> None:
    one = exchange()
    assert one.next_request() == ASK
    one.failed(LOST, 0.0)
    assert one.next_request() == ASK
    assert one.take(started(b"first"))
    one.failed(LOST, 0.0)
    assert one.next_request().resume == api.Resume(token=b"first")
    assert not one.take(started(b"second")), "the caller has seen one"
    for event in (delta(1, 0, 7, 8), delta(2, 1, 9), delta(3, 0, 10)):
        assert one.take(event)
    one.failed(LOST, 0.0)
    again = one.next_request()
    assert again.resume.token == b"second"
    assert (again.resume.last_sequence, again.resume.checkpoint) == (3, b"after 3")
    assert {entry.choice: list(entry.token_ids) for entry in again.resume.received} == {0: [7, 8, 10], 1: [9]}
    again.ClearField("resume")
    assert again == ASK, "all else is as it was"


def test_a_gap_is_no_answer() -> None:
    one = exchange()
    one.take(started(b"t"))
    one.take(delta(1, 0, 5))
    with pytest.raises(RequestError, match="delta 3 came after delta 1"):
        one.take(delta(3, 0, 6))


def test_another_router_is_asked_at_once_and_the_same_one_after_a_while() -> None:
    one = exchange(num_routers=3)
    assert [one.router, one.failed(DRAINING, 0.0) <= 0.1, one.router] == [0, True, 1]
    assert [one.failed(LOST, 0.0) <= 0.1, one.router] == [True, 2]
    assert one.failed(DRAINING, 0.0) >= 1.0, "all were asked: now RetryInfo counts"
    assert one.router == 0


def test_a_limit_of_the_tenant_is_waited_for_where_it_is() -> None:
    one = exchange()
    assert one.failed(QUOTA, 0.0) >= 7.0
    assert one.router == 0


def test_waits_double_up_to_a_longest_one() -> None:
    longest = [0.0] * 7
    for seed in range(200):
        one = Exchange(ASK, 1, 1e9, RetryPolicy(first_wait_seconds=1.0, longest_wait_seconds=8.0), random.Random(seed))
        for number in range(7):
            longest[number] = max(longest[number], one.failed(LOST, 0.0))
    for wait, most in zip(longest, [1, 2, 4, 8, 8, 8, 8], strict=True):
        assert 0.9 * most <= wait <= most


@pytest.mark.parametrize("failure", [INVALID, BREAKS])
def test_what_cannot_succeed_is_not_tried_again(failure: Failure) -> None:
    with pytest.raises(RequestError) as caught:
        exchange().failed(failure, 0.0)
    assert caught.value.failure is failure


def test_it_gives_up_after_failures_in_a_row_and_before_its_deadline() -> None:
    one = exchange(max_failures=3)
    one.take(started(b"t"))
    one.failed(LOST, 0.0)
    one.failed(LOST, 0.0)
    one.take(delta(1, 0, 5))
    one.failed(LOST, 0.0)
    one.failed(LOST, 0.0)
    with pytest.raises(RequestError) as caught:
        one.failed(LOST, 0.0)
    assert caught.value.request_id == "req_1"
    with pytest.raises(RequestError):
        exchange(deadline=5.0).failed(QUOTA, 0.0)


def test_a_conversation_from_plain_values() -> None:
    request = chat_request("m", "Hello", max_tokens=5, temperature=0.0, seed=7)
    assert request.chat.messages[0].role == api.ROLE_USER
    assert (request.max_tokens, request.sampling.seed) == (5, 7)
    assert request.sampling.HasField("temperature")
    both = chat_request("m", [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}])
    assert [message.role for message in both.chat.messages] == [api.ROLE_SYSTEM, api.ROLE_USER]
    with pytest.raises(ValueError, match="role 'robot' is not one of system, user, assistant, tool"):
        chat_request("m", [{"role": "robot", "content": "Hi"}])
    with pytest.raises(ValueError):
        chat_request("m", "Hi", colour="red")
