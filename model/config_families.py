"""How each family's config.json is read: keys and defaults as the models' own code has them. Returns plain fields.

`common_fields` reads what all share; a family's function gives the fields in which it differs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from model.config_parts import ExpertsConfig, LatentConfig, Quantisation, RopeConfig, UnsupportedModelError

Raw = Mapping[str, Any]
Fields = dict[str, Any]


def common_fields(raw: Raw, generation: Raw) -> Fields:
    """Fields of `ModelConfig` that are called the same in every family."""
    num_heads = int(raw["num_attention_heads"])
    eos = generation.get("eos_token_id", raw.get("eos_token_id"))
    return {
        "architecture": raw["architectures"][0],
        "vocab_size": int(raw["vocab_size"]),
        "hidden_size": int(raw["hidden_size"]),
        "intermediate_size": int(raw["intermediate_size"]),
        "num_layers": int(raw["num_hidden_layers"]),
        "num_heads": num_heads,
        "num_kv_heads": int(raw.get("num_key_value_heads") or num_heads),
        "head_dim": int(raw.get("head_dim") or raw["hidden_size"] // num_heads),
        "context_length": int(raw["max_position_embeddings"]),
        "rms_norm_eps": float(raw["rms_norm_eps"]),
        "rope": _rope(raw, raw.get("rope_parameters") or {}),
        "tie_word_embeddings": bool(raw.get("tie_word_embeddings", False)),
        "hidden_act": str(raw.get("hidden_act") or raw.get("hidden_activation") or "silu"),
        "bos_token_id": raw.get("bos_token_id"),
        "eos_token_ids": tuple(eos) if isinstance(eos, list) else (() if eos is None else (int(eos),)),
        "quantisation": _quantisation(raw),
    }


def _rope(raw: Raw, parameters: Raw) -> RopeConfig:
    """transformers 5 writes rope_parameters; earlier versions rope_theta and rope_scaling."""
    theta = parameters.get("rope_theta", raw.get("rope_theta", 10_000.0))
    scaling = raw.get("rope_scaling") or (dict(parameters) if parameters else None)
    if scaling is not None and scaling.get("rope_type", scaling.get("type", "default")) == "default":
        scaling = None
    return RopeConfig(theta=float(theta), scaling=scaling)


def _quantisation(raw: Raw) -> Quantisation | None:
    stored = raw.get("quantization_config")
    if stored is None:
        return None
    family, method = raw["architectures"][0], stored.get("quant_method")
    if method == "mxfp4" and family == "GptOssForCausalLM":
        return Quantisation("mxfp4", 32)
    if method == "fp8" and family == "DeepseekV3ForCausalLM":
        rows, columns = stored.get("weight_block_size") or (0, 0)
        if rows == columns > 0:
            return Quantisation("fp8", int(rows))
    raise UnsupportedModelError(
        f"quantization_config {method!r} of {family} is not served; supported: mxfp4 of gpt-oss, "
        "fp8 in square blocks of DeepSeek-V3, or weights that are not quantised"
    )


def _windows(raw: Raw, fallback: Callable[[int], bool]) -> Fields:
    """Windows by layer: as layer_types says, or `fallback(layer)` for older files."""
    size, layers = raw.get("sliding_window"), int(raw["num_hidden_layers"])
    if not size:
        return {}
    types = raw.get("layer_types")
    slides = [types[i] == "sliding_attention" if types else fallback(i) for i in range(layers)]
    return {"windows": tuple(int(size) if slid else 0 for slid in slides)} if any(slides) else {}


def _llama(raw: Raw, _: Fields) -> Fields:
    return {"attention_bias": bool(raw.get("attention_bias", False)), "mlp_bias": bool(raw.get("mlp_bias", False))}


def _qwen2(raw: Raw, fields: Fields) -> Fields:
    """Layers from max_window_layers on slide, if use_sliding_window says so. Qwen2's biases are not configurable."""
    first = int(raw.get("max_window_layers", fields["num_layers"]))
    return _windows(raw, lambda layer: layer >= first) if raw.get("use_sliding_window") else {}


def _qwen3(raw: Raw, fields: Fields) -> Fields:
    own = {"head_dim": int(raw.get("head_dim") or 128), "attention_bias": bool(raw.get("attention_bias", False))}
    return own | _qwen2(raw, fields)


def _qwen3_moe(raw: Raw, fields: Fields) -> Fields:
    step, only_dense = int(raw.get("decoder_sparse_step", 1)), raw.get("mlp_only_layers") or []
    layers = range(fields["num_layers"])
    experts = ExpertsConfig(
        num_experts=int(raw["num_experts"] if "num_experts" in raw else raw["num_local_experts"]),
        top_k=int(raw["num_experts_per_tok"]),
        intermediate_size=int(raw["moe_intermediate_size"]),
        normalise=bool(raw.get("norm_topk_prob", False)),
        dense_layers=tuple(layer for layer in layers if layer in only_dense or (layer + 1) % step),
    )
    slides = _windows(raw, lambda _: True) if raw.get("use_sliding_window") else {}
    bias = bool(raw.get("attention_bias", False))
    return {"head_dim": int(raw.get("head_dim") or 128), "attention_bias": bias, "experts": experts} | slides


def _mixtral(raw: Raw, fields: Fields) -> Fields:
    experts = ExpertsConfig(
        num_experts=int(raw["num_local_experts"]),
        top_k=int(raw["num_experts_per_tok"]),
        intermediate_size=fields["intermediate_size"],
    )
    return {"experts": experts} | _windows(raw, lambda _: True)


def _gemma3(raw: Raw, fields: Fields) -> Fields:
    """Every sixth layer sees everything and has the long rope; the others slide."""
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        if raw.get(key) is not None:
            raise UnsupportedModelError(f"{key} {raw[key]!r} is not served; supported: null")
    if raw.get("use_bidirectional_attention"):
        raise UnsupportedModelError("use_bidirectional_attention is not served; supported: false")
    head_dim = int(raw.get("head_dim") or 256)
    pattern = int(raw.get("sliding_window_pattern") or raw.get("_sliding_window_pattern") or 6)
    parameters = raw.get("rope_parameters") or {}
    if "full_attention" in parameters:
        rope, local = (_rope({}, parameters[kind]) for kind in ("full_attention", "sliding_attention"))
    else:
        rope = _rope({"rope_theta": 1_000_000.0, **raw}, {})
        local = RopeConfig(theta=float(raw.get("rope_local_base_freq", 10_000.0)))
    return {
        "head_dim": head_dim,
        "hidden_act": str(raw.get("hidden_activation") or "gelu_pytorch_tanh"),
        "tie_word_embeddings": bool(raw.get("tie_word_embeddings", True)),
        "attention_bias": bool(raw.get("attention_bias", False)),
        "attention_scale": float(raw.get("query_pre_attn_scalar", 256)) ** -0.5,
        "rope": rope,
        "local_rope": local,
    } | _windows({"sliding_window": 4096, **raw}, lambda layer: (layer + 1) % pattern != 0)


def _gpt_oss(raw: Raw, fields: Fields) -> Fields:
    experts = ExpertsConfig(
        num_experts=int(raw["num_local_experts"]),
        top_k=int(raw["num_experts_per_tok"]),
        intermediate_size=fields["intermediate_size"],
        scoring="softmax of chosen",
        normalise=False,
    )
    bias, limit = bool(raw.get("attention_bias", True)), float(raw.get("swiglu_limit", 7.0))
    own = {"attention_bias": bias, "experts": experts, "swiglu_limit": limit, "attention_sinks": True}
    return (
        own
        | {"head_dim": int(raw.get("head_dim", 64))}
        | _windows({"sliding_window": 128, **raw}, lambda layer: layer % 2 == 0)
    )


def _deepseek_v3(raw: Raw, fields: Fields) -> Fields:
    if raw.get("attention_bias"):
        raise UnsupportedModelError("attention_bias true is not served for DeepSeek-V3; supported: false")
    latent = LatentConfig(
        query_rank=None if raw.get("q_lora_rank") is None else int(raw["q_lora_rank"]),
        rank=int(raw["kv_lora_rank"]),
        nope_head_dim=int(raw["qk_nope_head_dim"]),
        rope_head_dim=int(raw["qk_rope_head_dim"]),
        value_head_dim=int(raw["v_head_dim"]),
        interleaved=bool(raw.get("rope_interleave", True)),
    )
    experts = ExpertsConfig(
        num_experts=int(raw["n_routed_experts"]),
        top_k=int(raw["num_experts_per_tok"]),
        intermediate_size=int(raw["moe_intermediate_size"]),
        shared_intermediate_size=int(raw["moe_intermediate_size"]) * int(raw.get("n_shared_experts") or 0),
        scoring="sigmoid",
        normalise=bool(raw.get("norm_topk_prob", True)),
        num_groups=int(raw.get("n_group") or 1),
        top_groups=int(raw.get("topk_group") or 1),
        scaling_factor=float(raw.get("routed_scaling_factor", 1.0)),
        dense_layers=tuple(range(int(raw.get("first_k_dense_replace", 0)))),
    )
    scaling = fields["rope"].scaling or {}
    # YaRN sharpens attention where it stretches positions; DeepSeek applies that to the scores.
    all_dim, factor = scaling.get("mscale_all_dim", 0), float(scaling.get("factor", 1.0))
    sharpening = 0.1 * all_dim * math.log(factor) + 1.0 if all_dim and factor > 1 else 1.0
    scale = (latent.nope_head_dim + latent.rope_head_dim) ** -0.5 * sharpening**2
    own = {"head_dim": latent.rope_head_dim, "num_kv_heads": fields["num_heads"], "attention_scale": scale}
    return own | {"latent": latent, "experts": experts}


FAMILIES: Mapping[str, Callable[[Raw, Fields], Fields]] = {
    "LlamaForCausalLM": _llama,
    "Qwen2ForCausalLM": _qwen2,
    "Qwen3ForCausalLM": _qwen3,
    "Qwen3MoeForCausalLM": _qwen3_moe,
    "MixtralForCausalLM": _mixtral,
    "Gemma3ForCausalLM": _gemma3,
    "GptOssForCausalLM": _gpt_oss,
    "DeepseekV3ForCausalLM": _deepseek_v3,
}
"""By the architecture that config.json names."""
