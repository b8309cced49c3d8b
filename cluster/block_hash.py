"""Names of KV blocks: a digest of all that a block's keys and values depend on. Knows no pool, no request, no wire.

Router and replica name blocks alike, so that a router can tell which replica holds a prompt's prefix. Keys are
BLAKE2b (RFC 7693): who cannot find a collision cannot make one tenant's prompt read another's blocks.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from hashlib import blake2b
from typing import NewType

BlockKey = NewType("BlockKey", bytes)
"""32 bytes that name a full block and, through its parents, the whole prefix before it."""

_KEY_SIZE = 32


def root_key(cache_domain: bytes, model_revision: bytes, block_size: int) -> BlockKey:
    """The parent of every first block: only prompts of equal domain, model and block size can share blocks."""
    digest = blake2b(digest_size=_KEY_SIZE, person=b"argosy.kv.root")
    for part in (cache_domain, model_revision, block_size.to_bytes(8, "little")):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return BlockKey(digest.digest())


def child_key(parent: BlockKey, token_ids: Sequence[int]) -> BlockKey:
    """The key of a block that holds `token_ids` (each in [0, 2^32)) after `parent`."""
    packed = struct.pack(f"<{len(token_ids)}I", *token_ids)
    return BlockKey(blake2b(parent + packed, digest_size=_KEY_SIZE).digest())


def block_keys(root: BlockKey, token_ids: Sequence[int], block_size: int) -> list[BlockKey]:
    """Keys of all full blocks of a sequence, in order; a last, partial block has none."""
    keys: list[BlockKey] = []
    packed = struct.pack(f"<{len(token_ids)}I", *token_ids)
    parent, width = root, 4 * block_size
    for end in range(width, len(packed) + 1, width):
        parent = BlockKey(blake2b(parent + packed[end - width : end], digest_size=_KEY_SIZE).digest())
        keys.append(parent)
    return keys
