"""Which architectures are served, by their name in config.json."""

from __future__ import annotations

from model.architectures.deepseek_v3 import DEEPSEEK_V3
from model.architectures.gemma3 import GEMMA3
from model.architectures.gpt_oss import GPT_OSS
from model.architectures.interface import Architecture
from model.architectures.llama import LLAMA, QWEN2
from model.architectures.mixtral import MIXTRAL
from model.architectures.qwen3 import QWEN3, QWEN3_MOE
from model.config import UnsupportedModelError

ARCHITECTURES: dict[str, Architecture] = {
    "LlamaForCausalLM": LLAMA,
    "Qwen2ForCausalLM": QWEN2,
    "Qwen3ForCausalLM": QWEN3,
    "Qwen3MoeForCausalLM": QWEN3_MOE,
    "MixtralForCausalLM": MIXTRAL,
    "Gemma3ForCausalLM": GEMMA3,
    "GptOssForCausalLM": GPT_OSS,
    "DeepseekV3ForCausalLM": DEEPSEEK_V3,
}


def find_architecture(name: str) -> Architecture:
    """Raises `UnsupportedModelError` naming those that are served."""
    if name not in ARCHITECTURES:
        raise UnsupportedModelError(f"architecture {name!r} is not served; supported: {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]
