"""Who holds how much of a prompt: every block near by, a sample from afar, promises until they are kept or lapse."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cluster.prefix import block_keys, block_level, block_name
from cluster.replica.prefix_log import SUMMARY_NAMES, SUMMARY_SECONDS, PrefixLog, sample
from cluster.router.prefixes import PROMISE_SECONDS, PrefixIndex


def names_of(tokens: range, domain: bytes = b"tenant") -> list[int]:
    return [block_name(key) for key in block_keys(domain, "revision", tokens, 16)]


PROMPT = names_of(range(16 * 400))


def test_only_leading_blocks_count() -> None:
    index = PrefixIndex()
    whole, gap, none = index.join(), index.join(), index.join()
    index.hear(whole, PROMPT, (), complete=True)
    index.hear(gap, PROMPT[:2] + PROMPT[3:], (), complete=True)
    assert index.cached_blocks(PROMPT) == [400, 2, 0]
    assert index.cached_blocks(names_of(range(1, 100))) == [0, 0, 0]
    assert index.cached_blocks([]) == [0, 0, 0]
    assert index.cached_blocks(PROMPT)[none] == 0


def test_another_tenants_prompt_is_found_nowhere() -> None:
    index = PrefixIndex()
    index.hear(index.join(), PROMPT, (), complete=True)
    assert index.cached_blocks(names_of(range(16 * 400), domain=b"other")) == [0]


def test_events_come_and_go() -> None:
    index = PrefixIndex()
    slot = index.join()
    index.hear(slot, PROMPT[:10], (), complete=True)
    index.hear(slot, PROMPT[10:12], PROMPT[8:9], complete=False)
    assert index.cached_blocks(PROMPT) == [8]
    index.hear(slot, PROMPT[8:9], (), complete=False)
    assert index.cached_blocks(PROMPT) == [12]
    index.hear(slot, PROMPT[:1], (), complete=True)
    assert index.cached_blocks(PROMPT) == [1]


def test_a_promise_counts_until_it_is_kept_or_lapses() -> None:
    index = PrefixIndex()
    slot = index.join()
    index.promise(slot, PROMPT[:4], now=0.0)
    assert index.cached_blocks(PROMPT) == [4]
    index.hear(slot, PROMPT[:2], (), complete=False)
    index.promise(slot, (), now=PROMISE_SECONDS)
    assert index.cached_blocks(PROMPT) == [2], "what was told stays"
    index.promise(slot, PROMPT[:4], now=PROMISE_SECONDS)
    index.hear(slot, (), PROMPT[:1], complete=False)
    assert index.cached_blocks(PROMPT) == [0]


def test_who_leaves_is_forgotten_and_the_place_is_free() -> None:
    index = PrefixIndex()
    first, second = index.join(), index.join()
    index.hear(first, PROMPT, (), complete=True)
    index.promise(first, names_of(range(160)), now=0.0)
    index.summarise(second, 3, [name for name in PROMPT if block_level(name) >= 3])
    index.leave(first)
    index.leave(second)
    assert len(index) == 0
    assert index.join() == first
    assert index.cached_blocks(PROMPT) == [0]


@given(st.integers(0, 6), st.integers(0, 400))
def test_a_sample_is_never_too_long_and_rarely_much_too_short(level: int, held: int) -> None:
    index = PrefixIndex()
    near, far = index.join(), index.join()
    index.hear(near, PROMPT[:held], (), complete=True)
    index.summarise(far, level, [name for name in PROMPT[:held] if block_level(name) >= level])
    told = [depth for depth, name in enumerate(PROMPT[:held], 1) if block_level(name) >= level]
    assert index.cached_blocks(PROMPT) == [held, told[-1] if told else 0]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 400), st.booleans()), max_size=12))
def test_the_index_agrees_with_plain_sets(steps: list[tuple[int, int, bool]]) -> None:
    """The same said of sets, one a replica."""
    index = PrefixIndex()
    slots = [index.join() for _ in range(4)]
    held: list[set[int]] = [set() for _ in slots]
    for slot, count, comes in steps:
        if comes:
            index.hear(slot, PROMPT[:count], (), complete=False)
            held[slot] |= set(PROMPT[:count])
        else:
            index.hear(slot, (), PROMPT[count:], complete=False)
            held[slot] -= set(PROMPT[count:])
    expected = [next((depth for depth, name in enumerate(PROMPT) if name not in its), 400) for its in held]
    assert index.cached_blocks(PROMPT) == expected


def test_a_sample_fits_its_budget_and_says_which_blocks_could_be_in_it() -> None:
    held = {name for start in range(40) for name in names_of(range(start, start + 16 * 400))}
    level, names = sample(held, SUMMARY_NAMES)
    assert SUMMARY_NAMES / 3 < len(names) <= SUMMARY_NAMES
    assert set(names) == {name for name in held if block_level(name) >= level}
    assert sample(set(PROMPT), SUMMARY_NAMES) == (0, list(set(PROMPT)))


def test_summaries_are_few_and_small() -> None:
    log, now, summaries = PrefixLog(), 0.0, []
    keys = block_keys(b"tenant", "revision", range(16 * 3000), 16)
    for key in keys:
        log.stored(key)
        now += 0.01
        if not summaries or log.summary(now) is not summaries[-1]:
            summaries.append(log.summary(now))
    assert len(summaries) <= 1 + now / SUMMARY_SECONDS
    sizes = [summary.ByteSize() for summary in summaries]
    assert max(sizes) <= 8 * SUMMARY_NAMES + 32
    assert [summary.version for summary in summaries] == sorted({summary.version for summary in summaries})


def test_a_router_is_told_everything_once_then_changes() -> None:
    log = PrefixLog()
    keys = block_keys(b"tenant", "revision", range(16 * 300), 16)
    for key in keys[:200]:
        log.stored(key)
    news = log.listen()
    first = news.take()
    assert first.complete
    assert set(first.stored) == {block_name(key) for key in keys[:200]}
    assert news.is_empty
    log.stored(keys[200])
    log.evicted(keys[200])
    log.evicted(keys[0])
    second = news.take()
    assert (second.complete, list(second.stored)) == (False, [])
    assert set(second.evicted) == {block_name(keys[0]), block_name(keys[200])}


def test_a_router_that_never_reads_costs_no_more_than_the_cache() -> None:
    log = PrefixLog()
    news = log.listen()
    news.take()
    keys = block_keys(b"tenant", "revision", range(16 * 3000), 16)
    for old, new in zip([None] * 50 + keys, keys, strict=False):
        if old is not None:
            log.evicted(old)
        log.stored(new)
    assert len(news._changes) <= 64 + 2 * 51
    told = news.take()
    assert told.complete
    assert set(told.stored) == {block_name(key) for key in keys[-50:]}
