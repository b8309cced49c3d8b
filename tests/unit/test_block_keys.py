"""Block keys name exactly what a block's keys and values depend on; the prefix index counts leading blocks."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cluster.prefix import block_keys, child_key, root_key

tokens = st.lists(st.integers(0, 2**32 - 1), max_size=100)


@given(tokens, tokens, st.integers(1, 20))
def test_keys_are_equal_exactly_as_far_as_the_tokens_are(first: list[int], second: list[int], size: int) -> None:
    keys = block_keys(b"d", "r", first, size), block_keys(b"d", "r", second, size)
    common = next((i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), None)
    if common is None:
        common = min(len(first), len(second))
    assert keys[0][: common // size] == keys[1][: common // size]
    assert not set(keys[0][common // size :]) & set(keys[1][common // size :])
    assert len(keys[0]) == len(first) // size


def test_domain_and_revision_separate() -> None:
    prompt = list(range(64))
    roots = [(b"a", "b"), (b"ab", ""), (b"", "ab"), (b"", ""), (b"a", "c")]
    keys = [tuple(block_keys(domain, revision, prompt, 16)) for domain, revision in roots]
    assert len({key for chain in keys for key in chain}) == len(roots) * 4


def test_a_chain_grows_block_by_block() -> None:
    key = root_key(b"d", "r")
    for start in range(0, 48, 16):
        key = child_key(key, range(start, start + 16))
    assert key == block_keys(b"d", "r", list(range(50)), 16)[-1]


def test_a_key_never_changes() -> None:
    """Replicas of one version and routers of another must agree: this value may change only with the protocol."""
    assert block_keys(b"tenant", "revision", range(16), 16)[0].hex() == "82132f79f51d23fdf265dd88498e409e"
