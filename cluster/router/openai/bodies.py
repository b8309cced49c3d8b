"""What clients of the OpenAI API send, field by field. Knows JSON and types; neither tokens nor models.

Source: the OpenAI API reference. Fields that would change the answer and are not served are refused by name; those
that only label a request are taken and not used. Beyond the reference are the sampling fields that vLLM's server takes.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

_Count = Annotated[int, Field(ge=0, lt=2**32)]
_TokenId = Annotated[int, Field(ge=0, lt=2**32)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Labels(_Body):
    """What says something about a request and changes nothing in its answer."""

    user: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    service_tier: Literal["auto", "default", "flex", "priority"] | None = None
    """flex: may be refused when replicas are busy."""


class Sampled(Labels):
    """What every way to ask has in common."""

    model: str
    temperature: float | None = None
    top_p: float | None = None
    stream: bool | None = None
    top_k: _Count | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: _Count | None = None
    ignore_eos: bool | None = None
    stop_token_ids: list[_TokenId] | None = None


class StreamOptions(_Body):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None
    """Taken and not done: lengths of chunks are what they are."""


class Completing(Sampled):
    """What the two older ways have in common."""

    max_tokens: _Count | None = None
    n: _Count | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    stream_options: StreamOptions | None = None


class TextPart(_Body):
    type: Literal["text", "input_text", "output_text"]
    text: str
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None


class FunctionCall(_Body):
    name: str
    arguments: str


class ToolCall(_Body):
    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class Message(_Body):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None


class Function(_Body):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(_Body):
    type: Literal["function"]
    function: Function


class FunctionName(_Body):
    name: str


class ChosenTool(_Body):
    type: Literal["function"]
    function: FunctionName


class JsonSchema(_Body):
    name: str
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema", default_factory=lambda: {"type": "object"})
    strict: bool | None = None


class TextFormat(_Body):
    type: Literal["text"]


class JsonObjectFormat(_Body):
    type: Literal["json_object"]


class JsonSchemaFormat(_Body):
    type: Literal["json_schema"]
    json_schema: JsonSchema


class ChatBody(Completing):
    """`POST /v1/chat/completions`."""

    messages: list[Message]
    max_completion_tokens: _Count | None = None
    logprobs: bool | None = None
    top_logprobs: _Count | None = None
    response_format: Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")] | None = (
        None
    )
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | ChosenTool | None = None
    parallel_tool_calls: bool | None = None


class CompletionBody(Completing):
    """`POST /v1/completions`."""

    prompt: str | list[str] | list[_TokenId] | list[list[_TokenId]]
    logprobs: _Count | None = None
    echo: Literal[False] | None = None
    best_of: Literal[1] | None = None
    suffix: None = None


class InputMessage(_Body):
    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    id: str | None = None
    status: str | None = None


class InputCall(_Body):
    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str
    id: str | None = None
    status: str | None = None


class InputResult(_Body):
    type: Literal["function_call_output"]
    call_id: str
    output: str
    id: str | None = None
    status: str | None = None


class FlatTool(Function):
    type: Literal["function"]


class FlatChosenTool(_Body):
    type: Literal["function"]
    name: str


class FlatJsonSchemaFormat(JsonSchema):
    type: Literal["json_schema"]


class TextSettings(_Body):
    format: Annotated[TextFormat | JsonObjectFormat | FlatJsonSchemaFormat, Field(discriminator="type")] | None = None
    verbosity: None = None


class ResponsesBody(Sampled):
    """`POST /v1/responses`. Nothing is stored, so nothing can be referred to by `previous_response_id`."""

    input: str | list[InputCall | InputResult | InputMessage]
    instructions: str | None = None
    max_output_tokens: _Count | None = None
    text: TextSettings | None = None
    tools: list[FlatTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | FlatChosenTool | None = None
    parallel_tool_calls: bool | None = None
    truncation: Literal["disabled"] | None = None
    previous_response_id: None = None
    background: Literal[False] | None = None
    include: list[str] | None = None
