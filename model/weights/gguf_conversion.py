"""Turns a GGUF file of the Llama family into an ordinary checkpoint directory. Knows two file formats, no serving.

Weights are expanded to float32. GGUF (ggml/docs/gguf.md) names tensors its own way, and stores query and key rows
with the two halves of each rotary pair interleaved; a checkpoint keeps the halves apart.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import safetensors.numpy
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from model.weights.safety import StoreError

OnTensor = Callable[[int, int], None]
"""Called with (tensors done, tensors in all)."""

_GLOBAL_TENSORS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}

_CONTROL_TOKEN = int(gguf.TokenType.CONTROL)


class ConversionError(StoreError):
    """The GGUF file is of a kind that is not converted; the message names the key."""


def convert(source: Path, destination: Path, on_tensor: OnTensor) -> None:
    """Write config.json, generation_config.json, tokenizer files, chat template and model.safetensors.

    `destination` must exist. Tied embeddings are stored once, without an `lm_head`.

    Raises:
        ConversionError: another architecture or tokenizer, or a tensor that this family does not have.
    """
    reader = gguf.GGUFReader(source)
    fields: dict[str, Any] = {key: field.contents() for key, field in reader.fields.items()}
    if fields["general.architecture"] != "llama":
        raise ConversionError(f"general.architecture {fields['general.architecture']!r} is not converted; known: llama")
    config = _config(fields, tied=all(tensor.name != "output.weight" for tensor in reader.tensors))
    _write_json(destination / "config.json", config)
    _write_json(destination / "generation_config.json", _special_ids(fields))
    _tokenizer(fields).save(str(destination / "tokenizer.json"))
    _write_json(destination / "tokenizer_config.json", _tokenizer_config(fields))
    if template := fields.get("tokenizer.chat_template"):
        (destination / "chat_template.jinja").write_text(template)
    weights: dict[str, np.ndarray] = {}
    for done, tensor in enumerate(reader.tensors, start=1):
        name = checkpoint_name(tensor.name)
        weights[name] = _weight(name, tensor, config)
        on_tensor(done, len(reader.tensors))
    weights_file = destination / "model.safetensors"
    safetensors.numpy.save_file(weights, weights_file, metadata={"format": "pt"})
    weights_file.chmod(0o644)  # the library leaves it readable by its owner alone


def checkpoint_name(name: str) -> str:
    """`blk.3.attn_q.weight` → `model.layers.3.self_attn.q_proj.weight`.

    Raises:
        ConversionError: the Llama family has no such tensor.
    """
    if name in _GLOBAL_TENSORS:
        return _GLOBAL_TENSORS[name]
    match name.split("."):
        case ["blk", layer, part, "weight" | "bias" as kind] if part in _LAYER_TENSORS:
            return f"model.layers.{layer}.{_LAYER_TENSORS[part]}.{kind}"
    raise ConversionError(f"tensor {name!r} does not belong to the Llama family")


def _weight(name: str, tensor: gguf.ReaderTensor, config: Mapping[str, Any]) -> np.ndarray:
    values = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
    if ".q_proj." in name:
        values = _split_rotary_halves(values, config["num_attention_heads"])
    elif ".k_proj." in name:
        values = _split_rotary_halves(values, config["num_key_value_heads"])
    return np.ascontiguousarray(values)


def _split_rotary_halves(rows: np.ndarray, num_heads: int) -> np.ndarray:
    """Rows [head, pair, half] → [head, half, pair], the order that rotate-half embedding expects."""
    return rows.reshape(num_heads, -1, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def _config(fields: Mapping[str, Any], *, tied: bool) -> dict[str, Any]:
    hidden_size, num_heads = fields["llama.embedding_length"], fields["llama.attention.head_count"]
    if "llama.rope.scaling.type" in fields:
        raise ConversionError("llama.rope.scaling: scaled rotary embeddings are not converted")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float32",
        "vocab_size": len(fields["tokenizer.ggml.tokens"]),
        "hidden_size": hidden_size,
        "intermediate_size": fields["llama.feed_forward_length"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": num_heads,
        "num_key_value_heads": fields.get("llama.attention.head_count_kv", num_heads),
        "head_dim": fields.get("llama.rope.dimension_count", hidden_size // num_heads),
        "max_position_embeddings": fields["llama.context_length"],
        "rms_norm_eps": fields["llama.attention.layer_norm_rms_epsilon"],
        "rope_theta": fields.get("llama.rope.freq_base", 10_000.0),
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": tied,
        **_special_ids(fields),
    }


def _special_ids(fields: Mapping[str, Any]) -> dict[str, int]:
    kinds = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
    found = {ours: fields.get(f"tokenizer.ggml.{theirs}_token_id") for ours, theirs in kinds.items()}
    return {name: token_id for name, token_id in found.items() if token_id is not None}


def _tokenizer(fields: Mapping[str, Any]) -> Tokenizer:
    """Byte-level BPE. GGUF only names its splitting rule (`tokenizer.ggml.pre`), so the rules themselves stand here."""
    model, splitting = fields["tokenizer.ggml.model"], fields.get("tokenizer.ggml.pre", "default")
    if model != "gpt2" or splitting not in ("smollm", "gpt-2"):
        raise ConversionError(f"tokenizer.ggml.model {model!r} with tokenizer.ggml.pre {splitting!r} is not converted")
    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in fields["tokenizer.ggml.merges"]]
    vocab = {token: token_id for token_id, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    by_bytes = pre_tokenizers.ByteLevel(add_prefix_space=bool(fields.get("tokenizer.ggml.add_space_prefix", False)))
    digit_by_digit = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digit_by_digit, by_bytes]) if splitting == "smollm" else by_bytes
    tokenizer.decoder = decoders.ByteLevel()
    kinds = fields["tokenizer.ggml.token_type"]
    tokenizer.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token, kind in zip(tokens, kinds, strict=True)
            if kind == _CONTROL_TOKEN
        ]
    )
    return tokenizer


def _tokenizer_config(fields: Mapping[str, Any]) -> dict[str, Any]:
    tokens = fields["tokenizer.ggml.tokens"]
    names = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    ids = {ours: fields.get(f"tokenizer.ggml.{theirs}_token_id") for ours, theirs in names.items()}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": fields["llama.context_length"],
        "add_bos_token": bool(fields.get("tokenizer.ggml.add_bos_token", False)),
        "clean_up_tokenization_spaces": False,
        **{name: tokens[token_id] for name, token_id in ids.items() if token_id is not None},
    }


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
