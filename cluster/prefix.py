"""Names of KV blocks: a hash over everything that a block's keys and values depend on. Knows no caches, no requests.

A block's key covers the tenant's cache domain, the model's revision and every token up to the block's end (each key
covers its parent's), so equal keys mean interchangeable blocks, in any process of any region, and a tenant can
neither hit nor guess another domain's blocks. Router and replica compute the same keys from this one file.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from typing import TypeAlias

BlockKey: TypeAlias = bytes
"""Names a whole block and, through its parents, the whole prefix before it."""

KEY_BYTES = 16
"""128 bits: among 10^12 blocks the chance of any collision is below 10^-14."""


def root_key(cache_domain: bytes, revision: str) -> bytes:
    """The parent of a sequence's first block.

    Args:
        cache_domain: only requests of equal domain share blocks.
        revision: the model's revision (`cluster.revision.model_revision`).
    """
    # The domain's length goes in front, so that no pair (domain, revision) can spell another pair's bytes.
    message = len(cache_domain).to_bytes(4, "little") + cache_domain + revision.encode()
    return hashlib.blake2b(message, digest_size=KEY_BYTES, person=b"argosy-root").digest()


def child_key(parent: bytes, tokens: Sequence[int]) -> bytes:
    """The key of the block that holds `tokens` after the block (or root) named `parent`."""
    return hashlib.blake2b(
        parent + array("I", tokens).tobytes(), digest_size=KEY_BYTES, person=b"argosy-block"
    ).digest()


def block_name(key: BlockKey) -> int:
    """A key's first 64 bits: what replicas and routers call a block when they talk about who holds it.

    Two blocks of one name (a chance of 10^-8 among a million) cost a wrong guess, never a wrong answer.
    """
    return int.from_bytes(key[:8], "big")


def block_level(name: int) -> int:
    """How many zero bits a name begins with. A sample of level n knows the blocks of level n and above: 1 in 2^n."""
    return 64 - name.bit_length()


def block_keys(cache_domain: bytes, revision: str, tokens: Sequence[int], block_size: int) -> list[bytes]:
    """Keys of the whole blocks of `tokens`, first block first; the last `len(tokens) % block_size` tokens have none."""
    key = root_key(cache_domain, revision)
    keys = []
    for start in range(0, len(tokens) - block_size + 1, block_size):
        key = child_key(key, tokens[start : start + block_size])
        keys.append(key)
    return keys
