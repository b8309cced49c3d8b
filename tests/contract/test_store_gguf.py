"""GGUF conversion against the reference library's own reading of the same file, and the default model as pulled."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import safetensors.numpy
from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel

from model.config import ModelConfig
from model.weights.gguf_conversion import ConversionError, convert
from model.weights.safety import check_directory

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, INTERMEDIATE, LAYERS = 96, 3, 1, 32, 64, 2
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
VOCAB = [*SPECIAL, *sorted(ByteLevel.alphabet()), "Ġt", "he", "Ġthe", "12"]
MERGES = ["Ġ t", "h e", "Ġt he", "1 2"]


def write_gguf(path: Path, *, tied: bool = True, **changes: str) -> Path:
    """A random model of the Llama family: norms in float32, projections in 4 and 8 bits, 3 query heads on 1 KV head."""
    writer = gguf.GGUFWriter(path, changes.get("architecture", "llama"))
    add_shape(writer)
    add_tokenizer(writer, changes.get("splitting", "smollm"))
    random = np.random.default_rng(7)
    for name, (kind, shape) in tensors(tied=tied, extra=changes.get("extra_tensor")).items():
        values = random.normal(size=shape).astype(np.float32)
        writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_shape(writer: gguf.GGUFWriter) -> None:
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INTERMEDIATE)
    writer.add_block_count(LAYERS)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_rope_freq_base(50_000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(VOCAB))


def add_tokenizer(writer: gguf.GGUFWriter, splitting: str) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(splitting)
    writer.add_token_list(VOCAB)
    kinds = [gguf.TokenType.CONTROL if token in SPECIAL else gguf.TokenType.NORMAL for token in VOCAB]
    writer.add_token_types(kinds)
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template("{{ messages[0]['content'] }}")


def tensors(*, tied: bool, extra: str | None) -> dict[str, tuple[gguf.GGMLQuantizationType, tuple[int, ...]]]:
    """Name → how it is stored, and its shape."""
    q8, q4, f32 = gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.Q4_1, gguf.GGMLQuantizationType.F32
    query_rows, kv_rows = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    layer_tensors = {
        "attn_norm": (f32, (HIDDEN,)),
        "attn_q": (q4, (query_rows, HIDDEN)),
        "attn_k": (q4, (kv_rows, HIDDEN)),
        "attn_v": (q8, (kv_rows, HIDDEN)),
        "attn_output": (q4, (HIDDEN, query_rows)),
        "ffn_norm": (f32, (HIDDEN,)),
        "ffn_gate": (q4, (INTERMEDIATE, HIDDEN)),
        "ffn_up": (q8, (INTERMEDIATE, HIDDEN)),
        "ffn_down": (q4, (HIDDEN, INTERMEDIATE)),
    }
    return {
        "token_embd.weight": (q8, (len(VOCAB), HIDDEN)),
        **{f"blk.{layer}.{name}.weight": value for layer in range(LAYERS) for name, value in layer_tensors.items()},
        "output_norm.weight": (f32, (HIDDEN,)),
        **({} if tied else {"output.weight": (q8, (len(VOCAB), HIDDEN))}),
        **({extra: (f32, (HIDDEN,))} if extra else {}),
    }


def converted(source: Path, destination: Path) -> Path:
    destination.mkdir()
    seen: list[tuple[int, int]] = []
    convert(source, destination, lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] == len(seen)
    return destination


@pytest.mark.parametrize("tied", [True, False])
def test_weights_are_bit_equal_to_the_reference_library(tmp_path: Path, tied: bool) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    source = write_gguf(tmp_path / "tiny.gguf", tied=tied)
    directory = converted(source, tmp_path / "tiny")
    reference = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=source.name, dtype=torch.float32)
    expected = {name: tensor.numpy() for name, tensor in reference.state_dict().items()}
    if tied:
        del expected["lm_head.weight"]  # the embedding again, stored once
    found = safetensors.numpy.load_file(directory / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], values, err_msg=name)

    config = ModelConfig.from_checkpoint(directory)
    assert (config.num_heads, config.num_kv_heads, config.head_dim) == (HEADS, KV_HEADS, HEAD_DIM)
    assert (config.hidden_size, config.intermediate_size, config.num_layers) == (HIDDEN, INTERMEDIATE, LAYERS)
    assert (config.vocab_size, config.context_length, config.tie_word_embeddings) == (len(VOCAB), 128, tied)
    assert config.rms_norm_eps == reference.config.rms_norm_eps
    assert config.rope.theta == reference.config.rope_parameters["rope_theta"] == 50_000.0
    assert (config.bos_token_id, config.eos_token_ids) == (1, (2,))
    assert (directory / "chat_template.jinja").read_text() == "{{ messages[0]['content'] }}"
    check_directory("tiny", directory)


def test_tokenizer_merges_words_and_splits_numbers(tmp_path: Path) -> None:
    directory = converted(write_gguf(tmp_path / "tiny.gguf"), tmp_path / "tiny")
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    assert tokenizer.encode("<|im_start|> the 12").tokens == ["<|im_start|>", "Ġthe", "Ġ", "1", "2"]
    text = "naïve 東京 the 12\n"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_numbers_merge_where_the_rule_says_so(tmp_path: Path) -> None:
    directory = converted(write_gguf(tmp_path / "tiny.gguf", splitting="gpt-2"), tmp_path / "tiny")
    assert Tokenizer.from_file(str(directory / "tokenizer.json")).encode("12").tokens == ["12"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "gemma2"}, "general.architecture 'gemma2' is not converted; known: llama, gemma3"),
        ({"splitting": "llama-bpe"}, "tokenizer.ggml.pre 'llama-bpe' is not converted"),
        ({"extra_tensor": "blk.0.ssm_a"}, "tensor 'blk.0.ssm_a' does not belong to the Llama family"),
        ({"extra_tensor": "rope_freqs.weight"}, "tensor 'rope_freqs.weight' does not belong"),
    ],
)
def test_other_kinds_are_refused_by_name(tmp_path: Path, change: dict[str, str], message: str) -> None:
    source = write_gguf(tmp_path / "tiny.gguf", **change)
    (tmp_path / "tiny").mkdir()
    with pytest.raises(ConversionError, match=message):
        convert(source, tmp_path / "tiny", lambda done, total: None)


@pytest.mark.model
def test_default_model_is_an_ordinary_checkpoint(smollm2_dir: Path) -> None:
    check_directory("smollm2", smollm2_dir)
    config = ModelConfig.from_checkpoint(smollm2_dir)
    assert (config.num_heads, config.num_kv_heads, config.num_layers, config.vocab_size) == (9, 3, 30, 49152)
    template = (smollm2_dir / "chat_template.jinja").read_text()
    assert "add_generation_prompt" in template
    assert json.loads((smollm2_dir / "tokenizer_config.json").read_text())["eos_token"] == "<|im_end|>"
    tokenizer = Tokenizer.from_file(str(smollm2_dir / "tokenizer.json"))
    prompt = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n"
    assert tokenizer.encode(prompt).ids == [1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198]
