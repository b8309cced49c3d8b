"""Templates render as transformers renders them, and cannot reach, loop or grow beyond their sandbox."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from argosy.v1 import inference_pb2 as api
from cluster.errors import ConfigurationError
from cluster.router.chat_template import ChatTemplate, TemplateRefusedError
from cluster.router.tokenizer import ModelTokenizer, special_tokens, template_source

CONVERSATIONS: list[list[dict[str, str]]] = [
    [{"role": "user", "content": "What is the capital of France?"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
    [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b\n"},
        {"role": "user", "content": "  <|im_end|> {{ 7 * 7 }} grüße 世界 🎉  "},
    ],
    [{"role": "user", "content": ""}],
]

# Shapes that published templates have: loops with controls, namespaces, filters, macros, whitespace control, errors.
TEMPLATES = {
    "chatml": "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "llama2": "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content | trim }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content.strip() }} {{ eos_token }}{% else %}<<SYS>>{{ m.content }}<</SYS>>"
    "{% endif %}{% endfor %}",
    "namespace": "{%- set ns = namespace(count=0) -%}\n{%- for m in messages %}\n  {%- set ns.count = ns.count + 1 %}\n"
    "{{ ns.count }}: {{ m | tojson }}\n{% if loop.index > 1 %}{% break %}{% endif %}\n{%- endfor %}{{ ns.count }}",
    "macro": "{% macro turn(m) %}<{{ m.role }}>{{ m['content'] | upper }}{% endmacro %}{% for m in messages[::-1] %}"
    "{{ turn(m) }}{% endfor %}{{ messages | map(attribute='role') | join(',') }}{{ tools is none }}",
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
}


@pytest.fixture(scope="module")
def reference(smollm2_dir: Path) -> Any:
    """The library that templates are written for."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(smollm2_dir)


@pytest.fixture(scope="module")
def tokenizer(smollm2_dir: Path) -> ModelTokenizer:
    return ModelTokenizer.load(smollm2_dir)


@pytest.mark.model
@pytest.mark.parametrize("name", [None, *TEMPLATES])
@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_templates_render_as_the_library_renders_them(
    reference: Any, smollm2_dir: Path, name: str | None, messages: list[dict[str, str]]
) -> None:
    source = TEMPLATES[name] if name else template_source(smollm2_dir, {})
    assert source is not None
    special = {key: str(value) for key, value in reference.special_tokens_map.items()}
    expected = reference.apply_chat_template(messages, chat_template=source, tokenize=False, add_generation_prompt=True)
    assert ChatTemplate(source, special).render(messages) == expected


@pytest.mark.model
@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_chats_become_the_librarys_tokens(
    reference: Any, tokenizer: ModelTokenizer, messages: list[dict[str, str]]
) -> None:
    expected = reference.apply_chat_template(messages, add_generation_prompt=True)
    expected = expected["input_ids"] if not isinstance(expected, list) else expected
    turns = [
        api.ChatMessage(role=f"ROLE_{message['role'].upper()}", content=message["content"]) for message in messages
    ]
    assert tokenizer.encode_chat(api.Chat(messages=turns)) == expected


@pytest.mark.model
@pytest.mark.parametrize("text", ["Hello", "grüße 世界 🎉", "<|im_start|>system\n", "a" * 5000, "\x00\n\t "])
def test_plain_text_becomes_the_librarys_tokens(reference: Any, tokenizer: ModelTokenizer, text: str) -> None:
    assert tokenizer.encode(text) == reference.encode(text)


def render(source: str, **message: str) -> str:
    return ChatTemplate(source, {}).render([{"role": "user", "content": "x", **message}])


def test_a_templates_own_refusal_is_its_message() -> None:
    with pytest.raises(TemplateRefusedError, match="^roles must alternate$"):
        render("{{ raise_exception('roles must alternate') }}")


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__ }}{{ ''.__class__.__bases__[0].__subclasses__() }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ raise_exception.__globals__['json'] }}",
        "{{ messages.append({}) }}",
        "{% set n = namespace() %}{% set n.__class__ = 1 %}",
        "{{ ('%s' | format(messages)).__class__.__name__ }}",
        "{{ ('{0.__class__}').format(messages) }}{{ raise_exception('reached') if false }}{{ [].pop() }}",
    ],
)
def test_the_sandbox_holds(source: str) -> None:
    with pytest.raises(TemplateRefusedError):
        render(source)


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'a' * 10**9 }}",
        "{{ [0] * 10**9 }}",
        "{{ 10**9 * 'a' }}",
        "{{ 9 ** (9 ** 9) }}",
        "{% for i in range(10**9) %}{% endfor %}",
        "{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}",
        "{% for i in range(90000) %}{{ 'a' * 10000 }}{% endfor %}",
    ],
)
def test_no_template_grows_or_loops_without_bound(source: str) -> None:
    with pytest.raises(TemplateRefusedError):
        render(source)


@pytest.mark.parametrize(
    "source", ["{{ 1 / 0 }}", "{{ messages[7].role.x }}", "{{ none + 1 }}", "{{ undefined_thing() }}"]
)
def test_a_template_that_fails_refuses(source: str) -> None:
    with pytest.raises(TemplateRefusedError):
        render(source)


def test_content_is_text_not_template() -> None:
    assert render("{{ messages[0].content }}", content="{{ 7 * 7 }}") == "{{ 7 * 7 }}"


def test_the_template_file_wins_over_the_settings(tmp_path: Path) -> None:
    several = {"chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]}
    assert template_source(tmp_path, {}) is None
    assert template_source(tmp_path, {"chat_template": "s"}) == "s"
    assert template_source(tmp_path, several) == "d"
    (tmp_path / "chat_template.jinja").write_text("f")
    assert template_source(tmp_path, several) == "f"


def test_special_tokens_may_be_text_or_objects() -> None:
    settings = {"bos_token": {"content": "<s>", "lstrip": False}, "eos_token": "</s>", "pad_token": None}
    assert special_tokens(settings, {"bos_token": "other", "unk_token": "<unk>"}) == {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }


@pytest.mark.parametrize("content", [None, "{", "{}", '{"model": 3}'])
def test_a_missing_or_broken_tokenizer_is_named(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigurationError, match=re.escape(str(path))):
        ModelTokenizer.load(tmp_path)
