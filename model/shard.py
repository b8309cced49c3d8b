"""One rank's model, ready to run passes: what a worker owns. Knows files, devices and the order of a pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from model.architectures.interface import StageParts, Weights
from model.attention.interface import AttentionBackend, AttentionShape
from model.attention.select import make_attention
from model.batch import Batch, Sampled, SamplingRow
from model.config import ModelConfig, RopeConfig
from model.kernels.compile import one_at_a_time
from model.layers.rotary import RotaryEmbedding
from model.layers.workspace import Workspace
from model.parallel.context import ParallelContext, single_rank_context
from model.parallel.dims import ParallelDims
from model.parallel.partition import partition
from model.quantization import Quantization
from model.registry import find_architecture
from model.sampler import Sampler
from model.sampling_params import SamplingParams
from model.stage import Stage
from model.weights.loader import load_stage_weights
from model.weights.quantised import Int8Weight
from model.weights.tables import spec_for

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class ShardOptions:
    """What a rank needs to know besides its place among the others."""

    directory: Path
    """Checkpoint: config.json and *.safetensors."""
    dtype: str
    """Of weights, activations and KV cache: a key of `DTYPES`."""
    device: str
    """As torch spells it."""
    num_blocks: int
    """KV blocks."""
    block_size: int
    """Tokens of a block."""
    deterministic: bool
    """A row's bits do not depend on its neighbours. Always so on CPU."""
    allow_untested_gpu: bool = False
    """Run code that was never run on a GPU."""
    quantization: Quantization = "none"
    """What weights are made into as they are loaded."""


class Shard:
    """A rank's layers, KV cache and sampler."""

    def __init__(self, config: ModelConfig, weights: Weights, options: ShardOptions, context: ParallelContext) -> None:
        """Repacks and uses up `weights`. Collective over the tensor group on the last stage."""
        device, dtype = torch.device(options.device), DTYPES[options.dtype]
        if device.type == "cpu" and dtype != torch.float32:
            raise ValueError(f"dtype {options.dtype!r} is not served on CPU; use float32")
        self._context, self._options = context, options
        workspace = Workspace(device, dtype)
        self.attention = _attention(config, options, context, dtype, device)
        rotary = RotaryEmbedding(config.rope, config.head_dim, workspace)
        local = RotaryEmbedding(config.local_rope, config.head_dim, workspace) if config.local_rope else None
        parts = StageParts(config, context, workspace, self.attention, rotary, local)
        self.stage = Stage(find_architecture(config.architecture), weights, parts)
        self._sampler: Sampler | None = None
        if context.shard.is_last_stage:
            self._sampler = Sampler(context.shard.vocab, context.tensor_group)

    @classmethod
    def load(cls, options: ShardOptions, context: ParallelContext, on_progress: Callable[[int, int], None]) -> Shard:
        """Read this rank's slices of the checkpoint. `on_progress(bytes so far, bytes in all)`.

        Raises:
            WeightsError: the files do not hold what config.json promises.
            UnsupportedModelError: the architecture, or one of its options, is not served.
        """
        config = ModelConfig.from_checkpoint(options.directory)
        weights = load_stage_weights(
            options.directory,
            config,
            context.shard,
            spec_for(config, options.quantization),
            dtype=DTYPES[options.dtype],
            device=torch.device(options.device),
            on_progress=on_progress,
        )
        return cls(config, weights, options, context)

    @torch.inference_mode()
    def run(self, batch: Batch) -> Sampled | None:
        """One pass: receive, layers, then send on, or sample on the last stage.

        Returns:
            On the last stage one token for each of `batch.sampling`, the same on all its ranks; elsewhere None.

        Raises:
            CollectiveError: a peer is gone or late. The shard cannot go on.
        """
        progress = self._context.progress
        self.attention.cache.copy_blocks(batch.block_copies)
        result = self.stage.forward(batch)
        if self._sampler is None:
            progress.bump("send hidden states")
            self._context.links.send(result)
            sampled = None
        else:
            progress.bump("sample")
            sampled = self._sampler.sample(result.float(), batch.sampling)
        progress.bump("idle")
        return sampled

    def warm_up(self) -> None:
        """Compile the kernels, or load them from disk. Talks to no other rank."""
        if torch.device(self._options.device).type == "cpu":
            warm_up_kernels(self._options.block_size)


def warm_up_kernels(block_size: int = 16) -> None:
    """Run tiny models, so that every kernel of a Llama is compiled and kept on disk for later processes."""
    context = single_rank_context(partition(_TINY, ParallelDims())[0])
    options = ShardOptions(Path(), "float32", "cpu", num_blocks=2, block_size=block_size, deterministic=True)
    drawn = SamplingRow(0, SamplingParams(), choice=0, position=0)
    one, two = np.ones(1, np.int32), np.array([0, 1], np.int32)
    batch = Batch(two, two, 2 * two, 2 * one, np.zeros((1, 1), np.int32), (drawn,))
    # Products take 8-bit and 4-bit weights by the same kernels.
    small = {name: Int8Weight.of(weight) if weight.dim() == 2 else weight for name, weight in _tiny_weights().items()}
    with one_at_a_time():
        for weights in (_tiny_weights(), small):
            Shard(_TINY, weights, options, context).run(batch)


_TINY = ModelConfig(
    architecture="LlamaForCausalLM",
    vocab_size=32,
    hidden_size=16,
    intermediate_size=16,
    num_layers=1,
    num_heads=1,
    num_kv_heads=1,
    head_dim=16,
    context_length=16,
    rms_norm_eps=1e-5,
    rope=RopeConfig(),
    tie_word_embeddings=True,
)


def _tiny_weights() -> Weights:
    """Ones for `_TINY`: kernels are compiled for any size."""
    square = torch.ones(16, 16)
    layer = "model.layers.0"
    projections = [f"{layer}.self_attn.{part}_proj.weight" for part in "qkvo"]
    projections += [f"{layer}.mlp.{part}_proj.weight" for part in ("gate", "up", "down")]
    norms = [f"{layer}.{part}_layernorm.weight" for part in ("input", "post_attention")] + ["model.norm.weight"]
    weights = {"model.embed_tokens.weight": torch.ones(32, 16)}
    return weights | dict.fromkeys(projections, square) | {name: torch.ones(16) for name in norms}


def _attention(
    config: ModelConfig, options: ShardOptions, context: ParallelContext, dtype: torch.dtype, device: torch.device
) -> AttentionBackend:
    heads = context.shard.heads
    # Latent attention: all query heads of a rank read one key, the latent and the part with positions.
    kv_heads, size = heads.kv_heads.size, config.head_dim
    if config.latent is not None:
        kv_heads, size = 1, config.latent.cached_size
    shape = AttentionShape(
        len(heads.slots), kv_heads, size, options.block_size, config.attention_scale, config.attention_sinks
    )
    return make_attention(
        shape,
        context.shard.layers.size,
        options.num_blocks,
        dtype=dtype,
        device=device,
        deterministic=options.deterministic,
        allow_untested_gpu=options.allow_untested_gpu,
    )
