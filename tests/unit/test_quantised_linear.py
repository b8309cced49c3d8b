"""8-bit and 4-bit weights: what they stand for, products that are exact on them, rows that depend on no other row."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from model.config import ModelConfig
from model.kernels import matmul
from model.layers.integer_linear import IntegerGatedLinear, IntegerLinear
from model.layers.workspace import Workspace
from model.parallel.dims import ParallelDims
from model.parallel.partition import partition
from model.quantization import GROUP, Quantization, cut_quantum
from model.weights.loader import load_stage_weights
from model.weights.quantised import Int4Weight, Int8Weight, IntegerWeight
from model.weights.tables import spec_for, weight_bytes
from tests.support.passes import Passes
from tests.support.thread_ranks import run_threads
from tests.support.tiny_llama import save_tiny

ROOT = Path(__file__).parents[2]
FORMS: list[type[IntegerWeight]] = [Int8Weight, Int4Weight]
KINDS: list[Quantization] = ["int8", "int4"]
PROMPT = np.random.default_rng(5).integers(0, 320, 301).tolist()


def random(*shape: int, seed: int = 3) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rounded(x_TK: Tensor) -> Tensor:
    """Each group of 32 neighbours as multiples of its largest magnitude / 127."""
    tokens, size = x_TK.shape
    groups = torch.nn.functional.pad(x_TK, (0, -size % GROUP)).view(tokens, -1, GROUP)
    scales = groups.abs().amax(-1, keepdim=True) / 127
    return ((groups / scales.clamp_min(1e-30)).round() * scales).flatten(1)[:, :size]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tiny")
    save_tiny(directory)
    return directory


def test_int4_keeps_weights_that_lie_on_its_grid() -> None:
    """As those of a GGUF file in Q4_1: nothing is lost a second time."""
    scales, minima = random(40, 3).abs().half().float(), random(40, 3, seed=4).half().float()
    integers = torch.randint(0, 16, (40, 3, GROUP), generator=torch.Generator().manual_seed(5))
    integers[..., 0], integers[..., 1] = 0, 15
    weight = (integers * scales[..., None] + minima[..., None]).flatten(1)
    assert torch.equal(Int4Weight.of(weight).expand(torch.float32), weight)


def test_errors_are_at_most_half_a_step() -> None:
    weight = random(50, 70)
    steps = weight.abs().amax(1, keepdim=True) / 127
    assert ((Int8Weight.of(weight).expand(torch.float32) - weight).abs() <= steps * 0.501).all()
    four = Int4Weight.of(weight)
    steps = four.scales.float().repeat_interleave(GROUP, 1)[:, :70]
    # float16 scales and minima add a little to half a step.
    assert ((four.expand(torch.float32) - weight).abs() <= steps * 0.5 + 0.008).all()


@pytest.mark.parametrize("form", FORMS)
def test_rows_of_zeros_stay_zeros(form: type[IntegerWeight]) -> None:
    """The padding of heads."""
    assert not form.of(torch.zeros(3, 64)).expand(torch.float32).any()


def test_weights_that_float16_cannot_scale_are_refused() -> None:
    with pytest.raises(ValueError, match="use quantization int8 or none"):
        Int4Weight.of(torch.full((1, 32), 1e6))


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize(("out_features", "in_features"), [(960, 576), (576, 1536), (77, 33), (5, 32)])
@pytest.mark.parametrize("form", FORMS)
def test_products_of_any_height(
    form: type[IntegerWeight], out_features: int, in_features: int, num_threads: int
) -> None:
    x, weight, bias = random(200, in_features), form.of(random(out_features, in_features)), random(out_features)
    space = workspace(num_threads)
    linear = IntegerLinear(weight, bias, space, "y")
    whole = linear(x).clone()
    expected = rounded(x).double() @ weight.expand(torch.float64).T + bias
    torch.testing.assert_close(whole.double(), expected, rtol=1e-5, atol=1e-4)
    for rows in [*range(1, 20), 63, 95, 96, 97, 199]:
        assert torch.equal(linear(x[:rows]), whole[:rows]), rows
    hot = x[:30].clone()
    hot[:29] *= 1000
    assert torch.equal(linear(hot)[29], whole[29])


@pytest.mark.parametrize("form", FORMS)
def test_gated_products(form: type[IntegerWeight]) -> None:
    gate, up = form.of(random(100, 96)), form.of(random(100, 96, seed=4))
    biases = random(100, seed=6), random(100, seed=7)
    x = random(130, 96, seed=8)
    gated = IntegerGatedLinear((gate, up), biases, workspace(2), "y")
    whole = gated(x).clone()
    gates, ups = (
        rounded(x).double() @ weight.expand(torch.float64).T + bias
        for weight, bias in zip((gate, up), biases, strict=True)
    )
    torch.testing.assert_close(whole.double(), torch.nn.functional.silu(gates) * ups, rtol=1e-4, atol=1e-4)
    for rows in (1, 7, 8, 9, 97):
        assert torch.equal(gated(x[:rows]), whole[:rows]), rows


def workspace(num_threads: int) -> Workspace:
    space = Workspace(torch.device("cpu"), torch.float32)
    space.threads = num_threads
    scratch = torch.zeros(matmul.scratch_elements(num_threads))
    space.scratch, space._scratch = scratch.data_ptr(), scratch
    return space


DIGESTS = """
import hashlib
from tests.unit.test_quantised_linear import FORMS, IntegerLinear, random, workspace
for form in FORMS:
    y = IntegerLinear(form.of(random(77, 160)), random(77), workspace(1), "y")(random(9, 160) * 3)
    print(hashlib.sha256(y.numpy().tobytes()).hexdigest())
"""


@pytest.mark.parametrize("features", ["+avx2,+fma,+f16c,+avx,+sse4.2", "+sse4.2"])
def test_every_processor_gives_the_same_bits(features: str) -> None:
    """This one's own instructions against those of older ones: kernels are compiled anew for them."""

    def digests(**changes: str) -> str:
        run = [sys.executable, "-c", DIGESTS]
        environment = {**os.environ, **changes}
        return subprocess.run(run, cwd=ROOT, env=environment, check=True, capture_output=True, text=True).stdout

    assert digests(NUMBA_CPU_NAME="x86-64", NUMBA_CPU_FEATURES=features) == digests()


def last_logits(passes: Passes, prompt: list[int], chunk: int) -> Tensor:
    running = passes.add(prompt)
    while running.computed + chunk < len(prompt):
        passes.step([(running, chunk)])
    with torch.inference_mode():
        return passes.shard.stage.forward(passes.batch([(running, len(prompt) - running.computed)])).clone()[0]


@pytest.mark.parametrize("quantization", KINDS)
def test_a_models_rows_have_the_same_bits_in_chunks_and_in_company(directory: Path, quantization: Quantization) -> None:
    passes = Passes.load(directory, quantization=quantization)
    alone = last_logits(passes, PROMPT, len(PROMPT))
    for chunk in (1, 7, 100):
        assert torch.equal(last_logits(passes, PROMPT, chunk), alone), chunk
    generator = np.random.default_rng(6)
    company = [passes.add(generator.integers(0, 320, int(n)).tolist()) for n in generator.integers(1, 60, 12)]
    company.insert(5, passes.add(PROMPT))
    with torch.inference_mode():
        logits = passes.shard.stage.forward(passes.batch([(each, len(each.tokens)) for each in company]))
    assert torch.equal(logits[5], alone)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("quantization", "most"), [("int8", 0.05), ("int4", 0.30)])
def test_logits_are_near_those_of_the_checkpoint(
    tmp_path: Path, quantization: Quantization, most: float, tied: bool
) -> None:
    """A wrong layout would be off by more than 1."""
    save_tiny(tmp_path, tie_word_embeddings=tied, attention_bias=True, initializer_range=0.05)
    exact = last_logits(Passes.load(tmp_path), PROMPT, 50)
    found = last_logits(Passes.load(tmp_path, quantization=quantization), PROMPT, 50)
    assert 0 < (found - exact).norm() / exact.norm() <= most


@pytest.mark.parametrize(
    ("quantization", "dims", "most"),
    [
        ("int4", ParallelDims(2), 1e-4),  # cuts lie between groups, so only the order of sums differs
        ("int4", ParallelDims(2, 2), 1e-4),
        ("int8", ParallelDims(2), 0.05),  # a rank's columns have a scale of their own
        ("int8", ParallelDims(1, 2), 0.0),
    ],
)
def test_ranks_compute_what_one_process_does(
    tmp_path: Path, quantization: Quantization, dims: ParallelDims, most: float
) -> None:
    directory = tmp_path
    save_tiny(directory, head_dim=32, initializer_range=0.05)
    config = ModelConfig.from_checkpoint(directory)
    alone = last_logits(Passes.load(directory, quantization=quantization), PROMPT, len(PROMPT))

    def run(context: object) -> Tensor | None:
        passes = Passes.load(directory, context, quantization=quantization)  # type: ignore[arg-type]
        running = passes.add(PROMPT)
        batch = passes.batch([(running, len(PROMPT))])
        result = passes.shard.stage.forward(batch)
        if not passes.context.shard.is_last_stage:
            passes.context.links.send(result)
            return None
        return result.clone()[-1]

    results = run_threads(config, dims, run, quantum=cut_quantum(quantization))
    logits = torch.cat([result for result in results if result is not None])
    assert (logits - alone).norm() / alone.norm() <= most


@pytest.mark.parametrize(("quantization", "most"), [("int8", 0.28), ("int4", 0.23)])
def test_a_rank_holds_as_few_bytes_as_are_planned(directory: Path, quantization: Quantization, most: float) -> None:
    config = ModelConfig.from_checkpoint(directory)
    shard = partition(config, ParallelDims(2), quantum=cut_quantum(quantization))[1]
    counted: list[tuple[int, int]] = []
    note: Callable[[int, int], None] = lambda done, total: counted.append((done, total))  # noqa: E731
    spec = spec_for(config, quantization)
    loaded = load_stage_weights(directory, config, shard, spec, dtype=torch.float32, device="cpu", on_progress=note)
    held = sum(weight.nbytes for weight in loaded.values())
    assert held == weight_bytes(config, shard, 4, quantization) == counted[-1][0] == counted[-1][1]
    assert held <= most * weight_bytes(config, shard, 4)
