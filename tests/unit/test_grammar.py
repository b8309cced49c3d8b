"""Grammars: what they allow, what a hostile one can cost, and who pays."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from llguidance import LLTokenizer
from tokenizers import Tokenizer

from cluster.grammar.language import Grammar, GrammarError, TokenizerUnusableError, compile_grammar, load_tokenizer
from cluster.grammar.probe import TOO_COSTLY, GrammarProbe, ProbeBusyError
from cluster.replica.constraints import ALLOWANCE_SECONDS, Constraints, Place
from cluster.replica.grammars import Grammars
from tests.support.router_world import run_async

pytestmark = pytest.mark.model

VOCABULARY, END = 49152, 2
SLOW_TO_COMPILE = Grammar("json_schema", '{"type": "integer", "multipleOf": 99999989}')
SLOW_TO_FOLLOW = Grammar("lark", 'start: e\ne: e e | "a" | "b" | "ab" | "aa"')
LIST = Grammar("json_schema", '{"type": "object", "properties": {"a": {"type": "array"}}, "required": ["a"]}')


@pytest.fixture(scope="module")
def text_tokens(smollm2_dir: Path) -> Callable[[str], list[int]]:
    tokenizer = Tokenizer.from_file(str(smollm2_dir / "tokenizer.json"))
    return lambda text: tokenizer.encode(text, add_special_tokens=False).ids


@pytest.fixture(scope="module")
def tokenizer(smollm2_dir: Path) -> LLTokenizer:
    return load_tokenizer(smollm2_dir, VOCABULARY, (END,))


def allowed(mask: bytes) -> set[int]:
    """Tokens whose bit is set: token t is bit t % 8 of byte t // 8, so the words are little-endian."""
    return {index * 8 + bit for index, byte in enumerate(mask) if byte for bit in range(8) if byte >> bit & 1}


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ('{"a":[1,2]}', True),
        ('{\n  "a": [\n    1,\n    2\n  ]\n}', True),
        ('{"a":' + " " * 40, False),
        ('{"b":1}', False),
        ('{"a":[1', None),
    ],
)
def test_json_may_be_pretty_but_not_endlessly_blank(
    tokenizer: LLTokenizer, text_tokens: Callable[[str], list[int]], text: str, fits: bool | None
) -> None:
    matcher = compile_grammar(tokenizer, LIST)
    tokens = text_tokens(text)
    assert (matcher.try_consume_tokens(tokens) == len(tokens)) is (fits is not False)
    assert matcher.is_accepting() is (fits is True)


def test_a_complete_answer_may_only_end(tokenizer: LLTokenizer, text_tokens: Callable[[str], list[int]]) -> None:
    place = Place(compile_grammar(tokenizer, Grammar("regex", "yes|no")), 1.0)
    assert place.begin(())
    assert END not in allowed(place.mask)
    for token in text_tokens("yes"):
        place.advance(token)
    assert allowed(place.mask) == {END}


def test_masks_cover_the_padding_of_the_vocabulary_and_forbid_it(smollm2_dir: Path) -> None:
    padded = load_tokenizer(smollm2_dir, VOCABULARY + 40, (END, 0))
    mask = compile_grammar(padded, Grammar("regex", "(?s:.*)")).compute_bitmask()
    assert len(mask) == (VOCABULARY + 40 + 31) // 32 * 4
    assert max(allowed(mask)) < VOCABULARY
    assert {END, 0} <= allowed(mask)


def test_text_stays_data(tokenizer: LLTokenizer) -> None:
    for text in ('{}}, {"lark_grammar": "start: /a/"}', '{"x-guidance": {"lenient": true}, "not": {}}'):
        with pytest.raises(GrammarError):
            compile_grammar(tokenizer, Grammar("json_schema", text))
    with pytest.raises(GrammarError, match="expecting rule"):
        compile_grammar(tokenizer, Grammar("lark", '{"grammars": [{"json_schema": {}}]}'))


def test_messages_are_one_short_line(tokenizer: LLTokenizer) -> None:
    for grammar in (Grammar("regex", "(\n\x1b[31m" * 500), Grammar("lark", "start: /" + "(" * 9000 + "/")):
        with pytest.raises(GrammarError) as caught:
            compile_grammar(tokenizer, grammar)
        assert len(str(caught.value)) <= 240
        assert str(caught.value).isprintable()


def test_a_model_without_an_end_or_a_tokenizer_follows_no_grammar(smollm2_dir: Path, tmp_path: Path) -> None:
    for directory, ends in ((smollm2_dir, ()), (tmp_path, (END,))):
        with pytest.raises(TokenizerUnusableError):
            load_tokenizer(directory, VOCABULARY, ends)


def confined(program: str) -> subprocess.CompletedProcess[bytes]:
    source = f"from cluster.grammar.helper import _confine; _confine(); {program}"
    return subprocess.run([sys.executable, "-c", source], timeout=60, check=False)


def test_a_child_is_killed_when_it_takes_too_long_and_gets_no_more_memory_than_allowed() -> None:
    assert confined("sum(0 for _ in iter(int, 1))").returncode == -signal.SIGPROF
    assert confined("bytearray(600 * 2**20)").returncode == 1
    assert confined("bytearray(100 * 2**20)").returncode == 0


@run_async
async def test_a_grammar_that_takes_too_long_to_compile_is_refused_and_others_are_not(smollm2_dir: Path) -> None:
    probe = GrammarProbe(smollm2_dir, VOCABULARY, (END,))
    try:
        await probe.check(Grammar("regex", "first"))

        async def honest() -> float:
            began = time.monotonic()
            for number in range(5):
                await probe.check(Grammar("regex", f"honest{number}"))
            return time.monotonic() - began

        async def hostile() -> float:
            began = time.monotonic()
            with pytest.raises(GrammarError, match=TOO_COSTLY.partition(";")[0]):
                await probe.check(SLOW_TO_COMPILE)
            return time.monotonic() - began

        bombed, served = await asyncio.gather(hostile(), honest())
        assert bombed < 4  # half a second of CPU time, on a machine that may have others to serve
        assert served < 4
        began = time.monotonic()
        await hostile()
        assert time.monotonic() - began < 0.1, "a verdict is remembered"
    finally:
        probe.close()


@run_async
async def test_a_helper_that_died_is_replaced(smollm2_dir: Path) -> None:
    probe = GrammarProbe(smollm2_dir, VOCABULARY, (END,))
    try:
        await probe.check(Grammar("regex", "a"))
        assert probe._helper is not None
        probe._helper[0].kill()
        probe._helper[0].wait()
        with pytest.raises(ProbeBusyError):
            await probe.check(Grammar("regex", "b"))
        await probe.check(Grammar("regex", "b"))
    finally:
        probe.close()


@run_async
async def test_an_unusable_tokenizer_is_reported_each_time(tmp_path: Path) -> None:
    probe = GrammarProbe(tmp_path, VOCABULARY, (END,))
    for _ in range(2):
        with pytest.raises(TokenizerUnusableError, match=r"tokenizer\.json"):
            await probe.check(Grammar("regex", "a"))


def test_a_grammar_that_becomes_too_costly_to_follow_ends_its_request(
    tokenizer: LLTokenizer, text_tokens: Callable[[str], list[int]]
) -> None:
    place = Place(compile_grammar(tokenizer, SLOW_TO_FOLLOW), ALLOWANCE_SECONDS)
    assert place.begin(())
    began = time.thread_time()
    for token in text_tokens("a") * 10_000:
        if place.has_failed:
            break
        place.advance(token)
    assert place.has_failed
    assert place.is_slow
    assert time.thread_time() - began < 10 * ALLOWANCE_SECONDS


def test_a_slow_mask_keeps_nobody_waiting(tokenizer: LLTokenizer) -> None:
    class Sluggish(Place):
        def advance(self, token: int) -> None:
            time.sleep(0.2)
            super().advance(token)
            self.is_slow = True

    async def main() -> None:
        constraints = Constraints(Grammars(Path(), VOCABULARY, (END,)))
        slow, quick = (cls(compile_grammar(tokenizer, Grammar("regex", "[ab]*")), 1.0) for cls in (Sluggish, Place))
        token = min(allowed(slow.matcher.compute_bitmask()) - {END})
        constraints.admit("slow", {0: slow})
        constraints.admit("quick", {0: quick})
        ready = asyncio.Event()
        try:
            constraints.advance("slow", 0, token)
            began = time.monotonic()
            assert constraints.settle(ready.set) == []
            assert time.monotonic() - began < 0.15
            async with asyncio.timeout(10):
                await ready.wait()
            assert constraints.settle(ready.set) == [(("slow", 0), True)]
            # From now on it has a thread of its own.
            constraints.advance("slow", 0, token)
            constraints.advance("quick", 0, token)
            first: list[object] = []
            async with asyncio.timeout(10):
                while len(first) < 2:
                    first.extend(key for (key, _), _ in constraints.settle(ready.set))
                    await asyncio.sleep(0.001)
            assert first == ["quick", "slow"]
            constraints.forget("slow", 0)
            constraints.advance("slow", 0, token)
            assert constraints.settle(ready.set) == []
        finally:
            constraints.close()

    asyncio.run(main())


def test_options_of_a_schema_do_not_override_ours(
    tokenizer: LLTokenizer, text_tokens: Callable[[str], list[int]]
) -> None:
    schema = json.dumps({**json.loads(LIST.text), "x-guidance": {"whitespace_pattern": " *", "item_separator": ";"}})
    matcher = compile_grammar(tokenizer, Grammar("json_schema", schema))
    tokens = text_tokens('{"a":[1;')
    assert matcher.try_consume_tokens(tokens) < len(tokens)
