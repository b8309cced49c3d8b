"""Accepted tokens to public events: text, sequence numbers, outcomes, usage. Knows no replicas and no network."""

from __future__ import annotations

from collections.abc import Sequence

from argosy.internal.v1 import replica_pb2
from argosy.v1 import inference_pb2 as api
from cluster.router.continuation import News
from cluster.router.detokenise import ChoiceText, Piece, StopStrings
from cluster.router.reasoning import ReasoningCounter
from cluster.router.resume import Checkpoints
from cluster.router.tokenizer import ModelTokenizer


class Answer:
    """What one client is told."""

    def __init__(
        self,
        spec: replica_pb2.GenerationSpec,
        stop: api.Stop,
        tokenizer: ModelTokenizer,
        prompt: Sequence[int],
        checkpoints: Checkpoints,
        sequence: int = 0,
    ) -> None:
        """
        Args:
            spec: the request; tokens that its choices have emitted already are taken for told.
            checkpoints: proofs of what was told; they stand where the answer starts.
            sequence: of the last delta that was told.
        """
        self.completion_tokens = 0
        """Accepted so far, all choices together."""
        self.reasoning_tokens = 0
        """Of those, the model's reasoning."""
        self._checkpoints = checkpoints
        stops = StopStrings(stop.strings) if stop.strings else None
        self._texts = {
            choice.index: ChoiceText(tokenizer.decoder(prompt), stops, spec.min_tokens) for choice in spec.choices
        }
        self._reasoning = {}
        if (marks := tokenizer.reasoning) is not None:
            self._reasoning = {choice.index: ReasoningCounter(marks, prompt) for choice in spec.choices}
        self._outcomes: dict[int, api.ChoiceOutcome] = {}
        self._sequence = sequence
        for choice in spec.choices:
            if choice.emitted_token_ids:
                entry = told(choice, spec)
                self._count(entry, self._read(entry).accepted)

    def take(self, news: Sequence[News]) -> list[api.GenerateResponse]:
        """The events that tell the news, one a choice; choices that ended by a stop string are over afterwards."""
        return [self._delta(entry) for entry in news]

    def __len__(self) -> int:
        """Number of choices."""
        return len(self._texts)

    def is_over(self, choice: int) -> bool:
        return choice in self._outcomes

    @property
    def over(self) -> Sequence[int]:
        """The choices that are over."""
        return list(self._outcomes)

    def finished(self, usage: api.Usage, timing: api.Timing) -> api.GenerateResponse:
        """The last event, once every choice is over."""
        outcomes = [self._outcomes[choice] for choice in sorted(self._outcomes)]
        finished = api.Finished(choices=outcomes, usage=usage, last_sequence=self._sequence, timing=timing)
        return api.GenerateResponse(finished=finished)

    def _delta(self, entry: News) -> api.GenerateResponse:
        piece = self._read(entry)
        accepted = piece.accepted
        self._count(entry, accepted)
        self._sequence += 1
        token_ids = entry.token_ids if accepted == len(entry.token_ids) else entry.token_ids[:accepted]
        delta = api.Delta(
            sequence=self._sequence,
            choice=entry.choice,
            text=piece.text,
            token_ids=token_ids,
            checkpoint=self._checkpoints.add(entry.choice, token_ids, self._sequence),
        )
        if entry.logprobs:
            delta.logprobs.extend(map(_logprobs, entry.logprobs[:accepted]))
        return api.GenerateResponse(delta=delta)

    def _count(self, entry: News, accepted: int) -> None:
        self.completion_tokens += accepted
        if (reasoning := self._reasoning.get(entry.choice)) is not None:
            self.reasoning_tokens += reasoning.count(entry.token_ids[:accepted])

    def _read(self, entry: News) -> Piece:
        """The piece of text that the news adds, everything held back included if the choice is over."""
        text = self._texts[entry.choice]
        if not entry.end:
            piece = text.push(entry.token_ids)
        else:
            # A stop token ends the answer and is no part of its text.
            silent = 1 if entry.end == replica_pb2.END_REASON_STOP else 0
            piece = text.push(entry.token_ids[: len(entry.token_ids) - silent])
            if piece.stop_string is None:
                rest = text.finish()
                piece = Piece(piece.text + rest.text, piece.accepted + silent, rest.stop_string)
        if piece.stop_string is not None or entry.end:
            self._outcomes[entry.choice] = _outcome(entry, piece)
        return piece


def told(choice: replica_pb2.ChoiceState, spec: replica_pb2.GenerationSpec) -> News:
    """What a client has of a choice, as the news that it once was. How a choice ends follows from its tokens."""
    token_ids = list(choice.emitted_token_ids)
    end = replica_pb2.END_REASON_UNSPECIFIED
    if token_ids[-1] in spec.stop_token_ids and len(token_ids) > spec.min_tokens:
        end = replica_pb2.END_REASON_STOP
    elif len(token_ids) >= spec.max_tokens:
        end = replica_pb2.END_REASON_LENGTH
    return News(choice.index, token_ids, [], end)


def _outcome(entry: News, piece: Piece) -> api.ChoiceOutcome:
    reason = api.FINISH_REASON_STOP
    if piece.stop_string is None and entry.end == replica_pb2.END_REASON_LENGTH:
        reason = api.FINISH_REASON_LENGTH
    return api.ChoiceOutcome(choice=entry.choice, reason=reason, stop_string=piece.stop_string or "")


def _logprobs(data: replica_pb2.TokenLogprobsData) -> api.TokenLogprobs:
    top = [
        api.TokenLogprob(token_id=token_id, logprob=logprob)
        for token_id, logprob in zip(data.top_token_ids, data.top_logprobs, strict=True)
    ]
    return api.TokenLogprobs(logprob=data.logprob, top=top)
