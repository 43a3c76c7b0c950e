# SPDX-License-Identifier: Apache-2.0
"""The bodies of requests for answers, as OpenAI's client sends them.

What the client can send and this server has no use for is accepted and without effect. What would change the answers
and is not done here is refused, so that nobody takes an answer for something that it is not.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from moored.service.problems import wrong
from moored.service.question import Question

MOST_ANSWERS = 32
MOST_PROMPTS = 32
MOST_TOOLS = 128
DEFAULT_COMPLETION = 16
"""Tokens of a completion whose request does not say."""

Unused = Annotated[Any, Field(default=None, description="accepted, and without effect on this server")]
NotDone = Annotated[Any, Field(default=None, description="not done by this server: must be left out")]


class _Body(BaseModel):
    """Base of bodies: an unknown key is an error."""

    model_config = ConfigDict(extra="forbid")


class StreamOptions(_Body):
    """What a stream holds beside text."""

    include_usage: bool | None = None
    include_obfuscation: Unused


class TextPart(_Body):
    """A part of a message; only text is read."""

    type: Literal["text"]
    text: str
    prompt_cache_breakpoint: Unused


class CalledFunction(_Body):
    """The function of a tool call."""

    name: str
    arguments: str


class ToolCall(_Body):
    """A call of a tool, in an earlier turn."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class Turn(_Body):
    """One message of a chat."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    audio: NotDone
    function_call: NotDone
    annotations: Unused

    def turn(self) -> dict[str, Any]:
        """As a chat template reads it."""
        content = self.content if self.content is not None else self.refusal or ""
        text = content if isinstance(content, str) else "".join(part.text for part in content)
        made: dict[str, Any] = {"role": self.role, "content": text}
        if self.name is not None:
            made["name"] = self.name
        if self.tool_calls:
            made["tool_calls"] = [call.model_dump(exclude_none=True) for call in self.tool_calls]
        if self.tool_call_id is not None:
            made["tool_call_id"] = self.tool_call_id
        return made


class Function(_Body):
    """A function that the model is told of."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(_Body):
    """A tool that the model is told of."""

    type: Literal["function"]
    function: Function


class ResponseFormat(BaseModel):
    """The form of an answer."""

    model_config = ConfigDict(extra="allow")
    type: str


def _several(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class Asking(_Body):
    """What chats and completions have in common."""

    model: str = Field(min_length=1, max_length=256)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    n: int | None = Field(default=None, ge=1, le=MOST_ANSWERS)
    stop: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=256)]] | None,
        BeforeValidator(_several, json_schema_input_type=str | list[str] | None),
    ] = Field(default=None, max_length=4, description="texts that end an answer")
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    max_tokens: int | None = Field(default=None, ge=1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    frequency_penalty: float | None = Field(default=None, description="0; anything else is not done by this server")
    presence_penalty: float | None = Field(default=None, description="0; anything else is not done by this server")
    logit_bias: dict[str, float] | None = Field(default=None, description="empty; not done by this server")

    def check(self) -> None:
        """Refuse what this server does not do.

        Raises:
            ApiProblem: 400, names the parameter.
        """
        for name in ("frequency_penalty", "presence_penalty", "logit_bias", *_not_done(type(self))):
            if getattr(self, name):
                raise wrong(f"`{name}` is not supported by this server; leave it out.", name, "unsupported_parameter")
        if self.stream_options is not None and not self.stream:
            raise wrong("`stream_options` is only allowed when `stream` is true.", "stream_options")

    def drawn(self) -> dict[str, Any]:
        """How answers are drawn. Without a seed, a new one each time."""
        return {
            "temperature": 1.0 if self.temperature is None else self.temperature,
            "top_p": 1.0 if self.top_p is None else self.top_p,
            "seed": secrets.randbits(63) if self.seed is None else self.seed,
            "stop": tuple(self.stop or ()),
            "n": self.n or 1,
        }


class Chat(Asking):
    """The body of a chat completion."""

    messages: list[Turn] = Field(min_length=1, max_length=2048)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    response_format: ResponseFormat | None = None
    tools: list[Tool] | None = Field(default=None, max_length=MOST_TOOLS)
    tool_choice: str | dict[str, Any] | None = Field(
        default=None, description="accepted: the chat template tells the model of the tools, and its answers are text"
    )
    parallel_tool_calls: Unused
    safety_identifier: Unused
    metadata: Unused
    store: Unused
    service_tier: Unused
    reasoning_effort: Unused
    verbosity: Unused
    prediction: Unused
    prompt_cache_key: Unused
    prompt_cache_options: Unused
    prompt_cache_retention: Unused
    modalities: list[str] | None = None
    audio: NotDone
    functions: NotDone
    function_call: NotDone
    moderation: NotDone
    web_search_options: NotDone

    @field_validator("modalities")
    @classmethod
    def _text_alone(cls, value: list[str] | None) -> list[str] | None:
        if value not in (None, ["text"]):
            raise ValueError("answers are text alone")
        return value

    def question(self, most_tokens: int) -> Question:
        """What the engine is asked.

        Args:
            most_tokens: the longest answer that is served.

        Raises:
            ApiProblem: 400, names the parameter.
        """
        self.check()
        if self.response_format is not None and self.response_format.type != "text":
            raise wrong(
                f"Answers of the form {self.response_format.type!r} are not supported by this server; only 'text' is.",
                "response_format",
                "unsupported_parameter",
            )
        if self.top_logprobs is not None and not self.logprobs:
            raise wrong("`top_logprobs` needs `logprobs` to be true.", "top_logprobs")
        for number, turn in enumerate(self.messages):
            for name in _not_done(Turn):
                if getattr(turn, name):
                    raise wrong(f"`{name}` is not supported by this server.", f"messages[{number}].{name}")
        return Question(
            messages=tuple(turn.turn() for turn in self.messages),
            tools=tuple(tool.model_dump(exclude_none=True) for tool in self.tools or ()),
            max_tokens=_longest(self, ("max_completion_tokens", "max_tokens"), most_tokens),
            most_tokens=most_tokens,
            chances=(self.top_logprobs or 0) if self.logprobs else None,
            **self.drawn(),
        )


class Completion(Asking):
    """The body of a completion."""

    prompt: str | list[int] | list[str] | list[list[int]] = Field(description="text or tokens, one or several")
    best_of: int | None = Field(default=None, ge=1, description="must be `n`")
    echo: bool | None = None
    logprobs: int | None = Field(default=None, ge=0, le=5)
    suffix: NotDone

    def prompts(self) -> list[str | tuple[int, ...]]:
        """Text or tokens of each prompt.

        Raises:
            ApiProblem: 400: none, or too many.
        """
        given: Any = self.prompt
        if isinstance(given, str) or (given and isinstance(given[0], int)):
            given = [given]
        if not 1 <= len(given) <= MOST_PROMPTS:
            raise wrong(f"`prompt` must hold 1 to {MOST_PROMPTS} prompts; got {len(given)}.", "prompt")
        return [each if isinstance(each, str) else tuple(each) for each in given]

    def questions(self, most_tokens: int) -> list[Question]:
        """What the engine is asked, one question for each prompt.

        Args:
            most_tokens: the longest answer that is served.

        Raises:
            ApiProblem: 400, names the parameter.
        """
        self.check()
        if self.best_of not in (None, self.n or 1):
            raise wrong("`best_of` is not supported by this server; leave it out.", "best_of", "unsupported_parameter")
        if self.echo and self.logprobs is not None:
            raise wrong("`echo` with `logprobs` is not supported by this server: the prompt has none.", "echo")
        longest = _longest(self, ("max_tokens",), most_tokens)
        prompts = self.prompts()
        if self.echo and not all(isinstance(prompt, str) for prompt in prompts):
            raise wrong("`echo` needs prompts that are text.", "echo")
        asked: Mapping[str, Any] = {
            "max_tokens": min(DEFAULT_COMPLETION, most_tokens) if longest is None else longest,
            "most_tokens": most_tokens,
            "chances": self.logprobs,
            **self.drawn(),
        }
        return [Question(prompt=prompt, **asked) for prompt in prompts]


def _longest(body: BaseModel, names: tuple[str, ...], most: int) -> int | None:
    """The first of these limits that is given."""
    for name in names:
        wanted = getattr(body, name)
        if wanted is not None and wanted > most:
            raise wrong(
                f"{name} is too large: {wanted}. This server answers with at most {most} tokens.", name, "invalid_value"
            )
        if wanted is not None:
            return int(wanted)
    return None


def _not_done(body: type[BaseModel]) -> list[str]:
    said = "not done by this server: must be left out"
    return [name for name, field in body.model_fields.items() if field.description == said]
