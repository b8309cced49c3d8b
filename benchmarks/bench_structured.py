"""Constrained answers: fifty schemas with four seeds each, all of which must parse and validate, and what masks cost.

Engine and workers are the real ones, without Ray; the model is SmolLM2-135M from the store. Free answers of the same
lengths, decoded after the constrained ones in equally large batches, say what constraints cost a whole step.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonschema
from tokenizers import Tokenizer

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]

from support.replicas import replica_spec, running_replica  # noqa: E402
from support.router_stream import Answer, RouterStream, router_stream, sampling, spec_of  # noqa: E402
from support.schemas import SCHEMAS  # noqa: E402

from argosy.internal.v1 import replica_pb2  # noqa: E402
from cluster.config import default_store  # noqa: E402
from cluster.grammar.language import Grammar, compile_grammar, load_tokenizer  # noqa: E402
from cluster.replica.constraints import Place  # noqa: E402
from cluster.router.tokenizer import ModelTokenizer  # noqa: E402
from model.config import ModelConfig  # noqa: E402

BATCH = 32
MAX_TOKENS = 200
TASK = "Invent an example. Answer in JSON that fits this schema:\n"

Job = tuple[str, int]
"""Name of a schema, seed."""


async def decode(router: RouterStream, specs: Sequence[replica_pb2.GenerationSpec]) -> tuple[list[Answer], float]:
    """The answers, `BATCH` of them at a time, and the seconds that they took together."""
    slots = asyncio.Semaphore(BATCH)

    async def one(spec: replica_pb2.GenerationSpec) -> Answer:
        async with slots:
            return await router.generate(spec)

    began = time.perf_counter()
    answers = await asyncio.gather(*(one(spec) for spec in specs))
    return answers, time.perf_counter() - began


async def measure(directory: Path, jobs: Sequence[Job], tp: int, pp: int) -> tuple[list[Answer], float, float]:
    """Constrained answers, their seconds, and the seconds of free ones of the same lengths."""
    text, ends = ModelTokenizer.load(directory), ModelConfig.from_checkpoint(directory).eos_token_ids
    replica = replica_spec(directory, tp=tp, pp=pp, num_blocks=1024, context_length=1024, max_sequences=BATCH)

    def spec(job: Job, max_tokens: int, **fields: Any) -> replica_pb2.GenerationSpec:
        name, seed = job
        prompt = text.encode_chat([{"role": "user", "content": TASK + json.dumps(SCHEMAS[name])}])
        draws = sampling(temperature=0.8, seed=seed)
        return spec_of(prompt, max_tokens, seconds=900, sampling=draws, request_id=f"{name}/{seed}", **fields)

    def constrained(job: Job) -> replica_pb2.GenerationSpec:
        grammar = replica_pb2.GrammarSpec(json_schema=json.dumps(SCHEMAS[job[0]]))
        return spec(job, MAX_TOKENS, grammar=grammar, stop_token_ids=ends)

    async with running_replica(replica) as running, router_stream(running.addresses.service) as router:
        await decode(router, [spec(job, 1) for job in jobs])  # every prompt is in the prefix cache from here on
        answers, seconds = await decode(router, [constrained(job) for job in jobs])
        _, free = await decode(router, [spec(job, len(a.tokens[0])) for job, a in zip(jobs, answers, strict=True)])
    return answers, seconds, free


def mask_milliseconds(directory: Path, jobs: Sequence[Job], answers: Sequence[Answer]) -> list[float]:
    """CPU time of each token's mask, from following the answers once more, each grammar compiled anew."""
    config, costs = ModelConfig.from_checkpoint(directory), []
    vocabulary = load_tokenizer(directory, config.vocab_size, config.eos_token_ids)
    for (name, _), answer in zip(jobs, answers, strict=True):
        place = Place(compile_grammar(vocabulary, Grammar("json_schema", json.dumps(SCHEMAS[name]))), 1.0)
        place.begin(())
        for token in answer.tokens[0]:
            began = time.thread_time()
            place.advance(token)
            costs.append((time.thread_time() - began) * 1e3)
    return costs


def problem(name: str, answer: Answer, text: str) -> str | None:
    """What is wrong with an answer."""
    if answer.ends[0] != replica_pb2.END_REASON_STOP:
        return f"ends with {replica_pb2.EndReason.Name(answer.ends[0])} {answer.details}"
    try:
        jsonschema.validate(json.loads(text), SCHEMAS[name])
    except (ValueError, jsonschema.ValidationError) as error:
        return str(error).partition("\n")[0]
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--layout", default="1x1", help="TPxPP")
    parser.add_argument("--model", type=Path, default=default_store() / "smollm2-135m-instruct")
    arguments = parser.parse_args()
    tp, pp = map(int, arguments.layout.split("x"))
    jobs = [(name, seed) for name in SCHEMAS for seed in range(arguments.seeds)]
    answers, seconds, free = asyncio.run(measure(arguments.model, jobs, tp, pp))
    tokenizer = Tokenizer.from_file(str(arguments.model / "tokenizer.json"))
    texts = [tokenizer.decode(answer.tokens[0]) for answer in answers]
    wrong = 0
    for (name, seed), answer, text in zip(jobs, answers, texts, strict=True):
        if found := problem(name, answer, text):
            wrong += 1
            print(f"{name}/{seed}: {found}: {text!r}")
    tokens = sum(len(answer.tokens[0]) for answer in answers)
    costs = mask_milliseconds(arguments.model, jobs, answers)
    p99 = statistics.quantiles(costs, n=100)[98]
    print(f"answers that parse and validate: {len(jobs) - wrong} of {len(jobs)}, {tokens} tokens")
    print(f"mask, ms a token: mean {statistics.mean(costs):.3f}, p99 {p99:.3f}, most {max(costs):.3f}")
    print(f"tokens/s in batches of {BATCH}: {tokens / seconds:.1f} constrained, {tokens / free:.1f} free")
    if wrong:
        sys.exit(1)


if __name__ == "__main__":
    main()
