"""Shapes of well-known and of reference models, to plan for without a checkpoint; as in their config.json.

`reference-1.8t` is a made-up model of a size that is often talked about: 1.8 trillion parameters in 16 experts.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cluster.config import default_store
from cluster.errors import ConfigurationError
from model.config import ModelConfig, UnsupportedModelError

_FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}
REFERENCES: dict[str, dict[str, Any]] = {
    "llama-3.1-70b": {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 128_256,
        "hidden_size": 8192,
        "intermediate_size": 28_672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500_000.0,
    },
    "gpt-oss-120b": {
        "architectures": ["GptOssForCausalLM"],
        "vocab_size": 201_088,
        "hidden_size": 2880,
        "intermediate_size": 2880,
        "num_hidden_layers": 36,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 150_000.0,
        "num_local_experts": 128,
        "num_experts_per_tok": 4,
        "sliding_window": 128,
        "quantization_config": {"quant_method": "mxfp4"},
    },
    "deepseek-v3": {
        "architectures": ["DeepseekV3ForCausalLM"],
        "vocab_size": 129_280,
        "hidden_size": 7168,
        "intermediate_size": 18_432,
        "num_hidden_layers": 61,
        "num_attention_heads": 128,
        "num_key_value_heads": 128,
        "max_position_embeddings": 163_840,
        "rms_norm_eps": 1e-6,
        "q_lora_rank": 1536,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "n_routed_experts": 256,
        "n_shared_experts": 1,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 2048,
        "n_group": 8,
        "topk_group": 4,
        "first_k_dense_replace": 3,
        "routed_scaling_factor": 2.5,
        "quantization_config": _FP8,
    },
    "reference-1.8t": {
        "architectures": ["MixtralForCausalLM"],
        "vocab_size": 100_256,
        "hidden_size": 12_288,
        "intermediate_size": 25_088,
        "num_hidden_layers": 120,
        "num_attention_heads": 96,
        "num_key_value_heads": 8,
        "max_position_embeddings": 32_768,
        "rms_norm_eps": 1e-5,
        "num_local_experts": 16,
        "num_experts_per_tok": 2,
    },
}


def read_model(name: str) -> ModelConfig:
    """A built-in reference, a config.json, a directory with one (or a hub's cache, with `snapshots/`), a pulled model.

    Raises:
        ConfigurationError: there is none, or it cannot be served.
    """
    try:
        if name in REFERENCES:
            return ModelConfig.from_dict(REFERENCES[name])
        path = Path(name).expanduser()
        if not path.exists():
            path = default_store() / name
        if path.is_dir():
            found = [path / "config.json", *sorted(path.glob("snapshots/*/config.json"), reverse=True)]
            path = next((file for file in found if file.is_file()), path / "config.json")
        return ModelConfig.from_dict(json.loads(path.read_text()))
    except OSError:
        raise ConfigurationError(
            f"{name} is neither a directory with a config.json, nor a pulled model, nor one of {', '.join(REFERENCES)}"
        ) from None
    except UnsupportedModelError as error:
        raise ConfigurationError(f"{name}: {error}") from None
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigurationError(f"{name}: config.json is damaged: {error!r}") from None
