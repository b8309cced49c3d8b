"""Exactly once: however deltas are cut, repeated or resumed, each token of a choice is accepted once and in order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from argosy.internal.v1 import replica_pb2
from cluster.router.attempt import ReplicaLostError
from cluster.router.continuation import News, Positions


def delta(first_index: int, token_ids: list[int], choice: int = 0, end: int = 0) -> replica_pb2.TokenDelta:
    return replica_pb2.TokenDelta(choice=choice, first_index=first_index, token_ids=token_ids, end=end)  # type: ignore[arg-type]


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 8)), max_size=20))
def test_overlapping_deltas_give_each_token_once(pieces: list[tuple[int, int]]) -> None:
    """Each piece begins some tokens back from what is known, as after a move, and may bring nothing new."""
    tokens = list(range(1000, 1200))
    positions = Positions([0], len(tokens))
    accepted: list[int] = []
    for back, size in [*pieces, (0, len(tokens))]:
        first = max(0, len(accepted) - back)
        last = min(first + size, len(tokens))
        known = len(accepted)
        news: dict[int, News] = {}
        positions.accept(delta(first, tokens[first:last]), news)
        accepted += [token for entry in news.values() for token in entry.token_ids]
        assert accepted == tokens[: max(known, last)]
    assert positions.is_over


def test_a_gap_is_a_broken_replica() -> None:
    positions = Positions([0], 10)
    positions.accept(delta(0, [1, 2]), {})
    with pytest.raises(ReplicaLostError, match="skipped 1"):
        positions.accept(delta(3, [4]), {})
    assert positions.emitted[0] == [1, 2]


@pytest.mark.parametrize("end", [replica_pb2.END_REASON_STOP, replica_pb2.END_REASON_LENGTH])
def test_an_ended_choice_takes_nothing_more(end: int) -> None:
    positions = Positions([0, 1], 10)
    news: dict[int, News] = {}
    positions.accept(delta(0, [7], end=end), news)
    positions.accept(delta(1, [8]), news)
    assert news[0] == News(0, [7], [], end)
    assert not positions.is_over
    assert list(positions.emitted) == [1]


def test_an_error_is_no_ending_of_the_choice() -> None:
    positions = Positions([0], 10)
    news: dict[int, News] = {}
    positions.accept(delta(0, [7], end=replica_pb2.END_REASON_ERROR), news)
    positions.accept(delta(1, [], end=replica_pb2.END_REASON_ERROR), news)
    assert news == {0: News(0, [7])}
    assert positions.emitted == {0: [7]}


def test_the_last_token_ends_a_choice_even_if_nobody_says_so() -> None:
    positions = Positions([0], 2)
    news: dict[int, News] = {}
    positions.accept(delta(0, [7, 8]), news)
    assert news[0].end == replica_pb2.END_REASON_LENGTH
    assert positions.is_over


def test_several_deltas_of_one_choice_become_one_piece_of_news() -> None:
    positions = Positions([0], 10)
    news: dict[int, News] = {}
    for index in range(3):
        positions.accept(delta(index, [index]), news)
    assert news == {0: News(0, [0, 1, 2])}


def test_log_probabilities_keep_to_their_tokens() -> None:
    positions = Positions([0], 10)
    positions.accept(delta(0, [1, 2]), {})
    again = delta(1, [2, 3])
    again.logprobs.add(logprob=-2.0)
    again.logprobs.add(logprob=-3.0)
    news: dict[int, News] = {}
    positions.accept(again, news)
    assert [entry.logprob for entry in news[0].logprobs] == [-3.0]
