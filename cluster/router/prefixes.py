"""What one replica's prefix cache probably holds: keys of the blocks that this router sent there, latest kept longest.

An estimate: it knows nothing of other routers' requests or of what the replica gave up early. A wrong guess costs time,
never correctness.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence


class PrefixIndex:
    """Block keys in order of their last use, at most as many as the replica has blocks."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._keys: OrderedDict[bytes, None] = OrderedDict()

    def cached_blocks(self, keys: Sequence[bytes]) -> int:
        """How many leading blocks are there."""
        known = self._keys
        for index, key in enumerate(keys):
            if key not in known:
                return index
        return len(keys)

    def promise(self, keys: Sequence[bytes]) -> None:
        """A request with these blocks was sent: they will be there soon."""
        # Last block first: a chain is given up from its end, for its beginning serves more requests.
        for key in reversed(keys):
            self._keys[key] = None
            self._keys.move_to_end(key)
        while len(self._keys) > self._capacity:
            self._keys.popitem(last=False)
