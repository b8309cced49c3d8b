"""DeepSeek-V3 (DeepSeek-AI, 2024): latent attention, then experts chosen by group, one of them shared by all tokens.

Attention runs on latents: a query's part without positions is taken through the key projection into latent space, so
that the cache holds one small vector a token for all heads, and what comes out goes through the value projection
(section 2.1 of DeepSeek-V2, 2024; "absorbed"). Legend: T packed tokens, A heads of this rank, C latent size, R size of
the part with positions, P of the part without, V of a value head, L = C + R.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.architectures.blocks import (
    Block,
    PreNormLayer,
    check_activation,
    expert_numbers,
    make_experts,
    make_mlp,
)
from model.architectures.interface import Architecture, DecoderLayer, StageParts, Weights
from model.layers.linear import LinearKernel, RowParallelLinear, Weight, make_linear
from model.layers.mlp import MLPWeights
from model.layers.norm import RMSNorm
from model.layers.workspace import Workspace
from model.weights.quantised import BlockFP8Weight

_LATENT_EPSILON = 1e-6
"""Of the norms of latents, whatever config.json says of the others."""


class LatentAttention:
    """x -> o(values(attention([keys^T(q), rotate(q)], [latent, rotate(k)], latent)))"""

    def __init__(self, weights: Weights, index: int, stage_index: int, parts: StageParts) -> None:
        prefix, space, shard = f"model.layers.{index}.self_attn", parts.workspace, parts.context.shard
        latent = parts.config.latent
        assert latent is not None
        self._sizes, self._heads, self._space = latent, len(shard.heads.slots), space
        first_head, head = shard.heads.query_heads.start, latent.nope_head_dim + latent.rope_head_dim
        self._query_latent: LinearKernel | None = None
        name = "q_proj"
        if latent.query_rank is not None:
            name = "q_b_proj"
            self._query_latent = make_linear(_take(weights, f"{prefix}.q_a_proj", parts), None, space, "query latent")
            self._query_norm = _norm(weights, f"{prefix}.q_a_layernorm", space)
        self._queries = make_linear(_take(weights, f"{prefix}.{name}", parts, first_head * head), None, space, "qkv")
        compressed = _take(weights, f"{prefix}.kv_a_proj_with_mqa", parts)
        self._latent = make_linear(compressed, None, space, "latent")
        self._latent_norm = _norm(weights, f"{prefix}.kv_a_layernorm", space)
        expanded = latent.nope_head_dim + latent.value_head_dim
        both = _take(weights, f"{prefix}.kv_b_proj", parts, first_head * expanded)
        both_NC = both if isinstance(both, Tensor) else both.expand(space.dtype)
        both_ANC = both_NC.view(self._heads, expanded, -1)
        keys_APC, values_AVC = both_ANC[:, : latent.nope_head_dim], both_ANC[:, latent.nope_head_dim :]
        self._keys = [make_linear(keys_PC.t().contiguous(), None, space, "absorbed") for keys_PC in keys_APC]
        self._values = [make_linear(values_VC.contiguous(), None, space, "value head") for values_VC in values_AVC]
        first_column = first_head * latent.value_head_dim
        output = _take(weights, f"{prefix}.o_proj", parts, column_offset=first_column)
        self.output = RowParallelLinear(output, None, parts.context.tensor_group, space)
        self._rotary, self._backend, self._layer = parts.rotary, parts.attention, stage_index

    def __call__(self, x_TH: Tensor, positions_T: Tensor) -> Tensor:
        tokens, sizes, heads = x_TH.shape[0], self._sizes, self._heads
        compressed_TL = self._latent(x_TH)
        latent_TC = self._latent_norm(compressed_TL[:, : sizes.rank].contiguous())
        if self._query_latent is not None:
            x_TH = self._query_norm(self._query_latent(x_TH))
        queries_TAN = self._queries(x_TH).view(tokens, heads, -1)
        rotated_TAR = self._rotate(queries_TAN[..., sizes.nope_head_dim :], compressed_TL, positions_T)
        # Heads in the order of the backend: queries, the one key, the one value; the value is filled up with zeros.
        packed_TAL = x_TH.new_zeros(tokens, heads + 2, sizes.cached_size)
        for head, absorb in enumerate(self._keys):
            packed_TAL[:, head, : sizes.rank] = absorb(queries_TAN[:, head, : sizes.nope_head_dim].contiguous())
        packed_TAL[:, heads:, : sizes.rank] = latent_TC[:, None]
        packed_TAL[:, : heads + 1, sizes.rank :] = rotated_TAR
        attended_TAL = self._backend.attend(packed_TAL.view(tokens, -1), self._layer).view(tokens, heads, -1)
        values_TAV = x_TH.new_empty(tokens, heads, sizes.value_head_dim)
        for head, expand in enumerate(self._values):
            values_TAV[:, head] = expand(attended_TAL[:, head, : sizes.rank].contiguous())
        return self.output(values_TAV.view(tokens, -1))

    def _rotate(self, queries_TAR: Tensor, compressed_TL: Tensor, positions_T: Tensor) -> Tensor:
        """The parts with positions of all queries, then of the key."""
        rotated_TAR = torch.cat((queries_TAR, compressed_TL[:, None, self._sizes.rank :]), 1)
        if self._sizes.interleaved:
            # Neighbours (2i, 2i + 1) become the pair (i, i + R/2) that the kernel rotates; scores do not change.
            rotated_TAR = torch.cat((rotated_TAR[..., 0::2], rotated_TAR[..., 1::2]), -1)
        flat_TN = rotated_TAR.view(rotated_TAR.shape[0], -1)
        self._rotary(flat_TN, positions_T, self._heads + 1)
        return rotated_TAR


def _norm(weights: Weights, name: str, space: Workspace) -> RMSNorm:
    return RMSNorm(weights.pop(f"{name}.weight"), _LATENT_EPSILON, space, name.rpartition(".")[2])


def _layer(weights: Weights, index: int, stage_index: int, parts: StageParts) -> DecoderLayer:
    check_activation(parts, "silu")
    prefix, shard = f"model.layers.{index}.mlp", parts.context.shard
    attention = LatentAttention(weights, index, stage_index, parts)
    mlp: Block
    if parts.config.is_sparse(index):
        held = shard.experts
        experts = [
            _take_mlp(weights, f"{prefix}.experts.{expert}", parts, held.intermediate.start)
            for expert in expert_numbers(parts)
        ]
        shared = None
        if held.shared_intermediate.size:
            shared = _take_mlp(weights, f"{prefix}.shared_experts", parts, held.shared_intermediate.start)
        router = (weights.pop(f"{prefix}.gate.weight"), None)
        correction = weights.pop(f"{prefix}.gate.e_score_correction_bias")
        mlp = make_experts(router, experts, parts, shared=shared, correction_E=correction)
    else:
        mlp = make_mlp(_take_mlp(weights, prefix, parts, shard.intermediate.start), parts)
    return PreNormLayer(weights, index, attention, mlp, parts)


def _take_mlp(weights: Weights, prefix: str, parts: StageParts, first_column: int) -> MLPWeights:
    gate, up = (_take(weights, f"{prefix}.{name}", parts, first_column) for name in ("gate_proj", "up_proj"))
    return MLPWeights(gate, up, _take(weights, f"{prefix}.down_proj", parts, column_offset=first_column))


def _take(weights: Weights, name: str, parts: StageParts, row_offset: int = 0, column_offset: int = 0) -> Weight:
    """A product's weight; where it is quantised, the offsets say where this rank's slice lies in the whole."""
    quantisation = parts.config.quantisation
    if quantisation is None:
        weight: Weight = weights.pop(f"{name}.weight")
        return weight
    block = quantisation.block
    eighths, scales = weights.pop(f"{name}.weight"), weights.pop(f"{name}.weight_scale_inv")
    return BlockFP8Weight(eighths, scales, block, row_offset % block, column_offset % block)


DEEPSEEK_V3 = Architecture(build_layer=_layer)
