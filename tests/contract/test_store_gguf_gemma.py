"""A small Gemma 3 GGUF file against the reference library's own reading of it: logits and tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from model.config import ModelConfig
from model.parallel.dims import ParallelDims
from model.weights.gguf_conversion import ConversionError, convert
from model.weights.safety import check_directory
from tests.support.traces import check_logits

HIDDEN, INNER, HEADS, KV_HEADS, HEAD_DIM, LAYERS, WINDOW = 256, 256, 4, 1, 256, 7, 9
CONTROL = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>"]
USER_DEFINED = ["\n", "\n\n", "  ", "   ", "<b>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
WORDS = ["▁t", "he", "in", "▁the", "th", "▁the▁", "▁▁the", "ing", "<0", "<0x", "0A", "0A>", *"▁abcdefghinotöß東.<x0A>/"]
VOCAB = [*CONTROL, *USER_DEFINED, *BYTES, *WORDS]
KINDS = [
    *[gguf.TokenType.CONTROL] * len(CONTROL),
    *[gguf.TokenType.USER_DEFINED] * len(USER_DEFINED),
    *[gguf.TokenType.BYTE] * len(BYTES),
    *[gguf.TokenType.NORMAL] * len(WORDS),
]
BYTE = "<0x0A>"
Quant = gguf.GGMLQuantizationType


def write_gguf(path: Path, **extra: float) -> Path:
    """A random model with every kind of number that the published file has; the first layer with the long rope too."""
    writer = gguf.GGUFWriter(path, "gemma3")
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_block_count(LAYERS)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_key_length(HEAD_DIM)
    writer.add_value_length(HEAD_DIM)
    writer.add_rope_freq_base(1e6)
    writer.add_sliding_window(WINDOW)
    writer.add_layer_norm_rms_eps(1e-6)
    for key, value in extra.items():
        writer.add_float32(key, value)
    add_tokenizer(writer)
    random = np.random.default_rng(7)
    for name, (kind, shape) in tensors().items():
        writer.add_tensor(name, stored(random, kind, shape), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_tokenizer(writer: gguf.GGUFWriter) -> None:
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(VOCAB)
    writer.add_token_scores([-float(index) for index in range(len(VOCAB))])
    writer.add_token_types(KINDS)
    for special, add in (("pad", 0), ("eos", 1), ("bos", 2), ("unk", 3)):
        getattr(writer, f"add_{special}_token_id")(add)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)


def tensors() -> dict[str, tuple[gguf.GGMLQuantizationType, tuple[int, ...]]]:
    """Name → how it is stored, and its shape."""
    queries, keys = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    layer = {
        "attn_q": (Quant.Q5_0, (queries, HIDDEN)),
        "attn_k": (Quant.Q5_0, (keys, HIDDEN)),
        "attn_v": (Quant.Q8_0, (keys, HIDDEN)),
        "attn_output": (Quant.Q5_0, (HIDDEN, queries)),
        "ffn_gate": (Quant.Q4_K, (INNER, HIDDEN)),
        "ffn_up": (Quant.Q5_0, (INNER, HIDDEN)),
        "ffn_down": (Quant.Q6_K, (HIDDEN, INNER)),
        "attn_q_norm": (Quant.F32, (HEAD_DIM,)),
        "attn_k_norm": (Quant.F32, (HEAD_DIM,)),
    }
    norms = ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm")
    layer |= dict.fromkeys(norms, (Quant.F32, (HIDDEN,)))
    return {
        "token_embd.weight": (Quant.Q8_0, (len(VOCAB), HIDDEN)),
        "output_norm.weight": (Quant.F32, (HIDDEN,)),
        **{f"blk.{index}.{name}.weight": value for index in range(LAYERS) for name, value in layer.items()},
    }


def stored(random: np.random.Generator, kind: gguf.GGMLQuantizationType, shape: tuple[int, ...]) -> np.ndarray:
    """Random numbers as GGUF stores them. The library cannot write 4- and 6-bit blocks: theirs are random bits."""
    if kind is Quant.F32:
        return random.uniform(0.5, 1.5, shape).astype(np.float32)
    if kind not in (Quant.Q4_K, Quant.Q6_K):
        return gguf.quantize(random.normal(0, 0.2, shape).astype(np.float32), kind)
    elements, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = random.integers(0, 256, (shape[0] * shape[1] // elements, size), np.uint8)
    # Factors of a block are half floats: the first two of Q4_K, the last of Q6_K.
    if kind is Quant.Q4_K:
        blocks[:, :4] = random.uniform(1e-3, 2e-3, (len(blocks), 2)).astype(np.float16).view(np.uint8)
    else:
        blocks[:, -2:] = random.uniform(1e-5, 4e-5, (len(blocks), 1)).astype(np.float16).view(np.uint8)
    return blocks.reshape(shape[0], -1)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file, and beside it the directory that it was converted to."""
    source = write_gguf(tmp_path_factory.mktemp("gemma") / "tiny.gguf")
    directory = source.with_suffix("")
    directory.mkdir()
    convert(source, directory, lambda done, total: None)
    return directory


def reference(gguf_file: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        gguf_file.parent, gguf_file=gguf_file.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def reference_tokenizer(gguf_file: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name)


def test_logits_are_the_reference_librarys(small: Path) -> None:
    check_directory("tiny", small)
    config = ModelConfig.from_checkpoint(small)
    assert config.windows == (WINDOW,) * 5 + (0, WINDOW)
    assert (config.bos_token_id, config.eos_token_ids, config.tie_word_embeddings) == (2, (1,), True)
    check_logits(small, reference(small.with_suffix(".gguf")), [ParallelDims(2, 2)], (7,))


@pytest.fixture(scope="module")
def tokenizers(small: Path) -> tuple[Tokenizer, Any]:
    """Ours and the reference's."""
    return Tokenizer.from_file(str(small / "tokenizer.json")), reference_tokenizer(small.with_suffix(".gguf"))


@settings(deadline=None)
@given(
    text=st.text(st.sampled_from("the the ing\n\n  <b>öß東🎉.\tx0A/▁"), max_size=40).filter(
        lambda text: BYTE not in text
    )
)
def test_tokens_are_the_reference_librarys(tokenizers: tuple[Tokenizer, Any], text: str) -> None:
    ours, theirs = tokenizers
    ids = ours.encode(text).ids
    assert ids == theirs(text).input_ids
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


def test_a_text_begins_with_its_token_and_specials_stay_whole(tokenizers: tuple[Tokenizer, Any]) -> None:
    ours, _ = tokenizers
    assert ours.encode("<start_of_turn>the  the🎉\n").tokens == [
        *("<bos>", "<start_of_turn>", "t", "he", "▁▁", "t", "he", "<0xF0>", "<0x9F>", "<0x8E>", "<0x89>", "\n")
    ]
    # The name of a byte is text like any other, as in SentencePiece; the reference library takes it for the byte.
    assert ours.encode(BYTE).tokens == ["<bos>", "<0x", "0A>"]


@pytest.mark.parametrize("key", ["gemma3.rope.scaling.factor", "gemma3.final_logit_softcapping"])
def test_what_is_not_converted_is_refused_by_name(tmp_path: Path, key: str) -> None:
    source = write_gguf(tmp_path / "tiny.gguf", **{key: 8.0})
    (tmp_path / "tiny").mkdir()
    with pytest.raises(ConversionError, match=f"{key}: .* not converted"):
        convert(source, tmp_path / "tiny", lambda done, total: None)
