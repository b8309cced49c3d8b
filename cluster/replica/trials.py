"""Lets a request that may be what kills ranks run its first steps alone. Knows keys and order; no scheduler, no ranks.

Whoever is in its first steps when a rank is lost is suspect, and a request that is suspect twice is refused. So that no
innocent is, a suspect begins only when nobody else is in its first steps, and nobody else begins until it has a token,
or is gone: whoever is there at the second loss is the cause. Requests enter in the order in which they came.
"""

from __future__ import annotations

from collections import deque

from cluster.replica.plan import RequestKey


class Trials:
    """The door of one epoch."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[RequestKey, bool]] = deque()
        self._beginning: set[RequestKey] = set()
        """Entered, and without a token so far."""
        self._has_suspect = False
        """Then it is the only one in `_beginning`."""

    def enter(self, key: RequestKey, *, is_suspect: bool) -> list[RequestKey]:
        """A request has come; it if it may begin, else nobody."""
        self._waiting.append((key, is_suspect))
        return self._open()

    def begun(self, key: RequestKey) -> list[RequestKey]:
        """A request has its first token here, or is gone; who may begin now."""
        if key in self._beginning:
            self._beginning.discard(key)
            self._has_suspect = False
        elif self._waiting:
            self._waiting = deque(entry for entry in self._waiting if entry[0] != key)
        return self._open() if self._waiting else []

    def _open(self) -> list[RequestKey]:
        entered = []
        while self._waiting and not self._has_suspect:
            key, is_suspect = self._waiting[0]
            if is_suspect and self._beginning:
                break
            self._waiting.popleft()
            self._beginning.add(key)
            self._has_suspect = is_suspect
            entered.append(key)
        return entered
