"""The Python SDKs of openai and anthropic, and openai-agents: tools, streams and structured output on nano."""

import asyncio
from enum import StrEnum

import pytest
from pydantic import BaseModel
from test_answers import ABOUT, HELLO, PARAMETERS, SUM

pytest.importorskip("llguidance")
TOOL = {"type": "function", "function": {**ABOUT, "parameters": PARAMETERS}}
OFF = {"thinking": {"type": "disabled"}}


class Color(StrEnum):
    RED = "red"
    GREEN = "grün"


class Lamp(BaseModel):
    on: bool
    color: Color
    others: tuple[Color, Color] | None


class Shelf(BaseModel):
    """Without tuples: of these the SDK of anthropic only tells that they are lists."""

    on: bool
    colors: list[Color] | None


@pytest.fixture
def url(server) -> str:
    return str(server.http.base_url)


def test_openai_streams_tool_calls(openai):
    messages = [{"role": "user", "content": SUM}]
    with openai.chat.completions.stream(model="nano", messages=messages, tools=[TOOL], extra_body=OFF) as stream:
        kinds = [event.type for event in stream]
        call = stream.get_final_completion().choices[0].message.tool_calls[0]
    assert call.function.name == "calculator" and "17*23" in call.function.arguments
    assert "tool_calls.function.arguments.done" in kinds


def test_openai_parses_structured_output(openai):
    messages = [{"role": "user", "content": "What of the lamp?"}]
    whole = openai.chat.completions.parse(model="nano", messages=messages, response_format=Lamp, extra_body=OFF)
    assert isinstance(whole.choices[0].message.parsed, Lamp)
    with openai.chat.completions.stream(
        model="nano", messages=messages, response_format=Lamp, extra_body=OFF, temperature=0
    ) as stream:
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Lamp)
    more = {"model": "nano", "input": "What of the lamp?", "reasoning": {"effort": "none"}}
    assert isinstance(openai.responses.parse(text_format=Lamp, **more).output_parsed, Lamp)
    with openai.responses.stream(text_format=Lamp, **more) as stream:
        assert isinstance(stream.get_final_response().output_parsed, Lamp)


def test_anthropic_streams_tool_calls(anthropic):
    tool = {**ABOUT, "input_schema": PARAMETERS}
    messages = [{"role": "user", "content": SUM}]
    with anthropic.messages.stream(model="nano", max_tokens=200, messages=messages, tools=[tool]) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_message()
    assert final.stop_reason == "tool_use" and "17*23" in final.content[-1].input["expression"]
    assert kinds.count("message_stop") == 1 and "content_block_stop" in kinds


def test_anthropic_parses_structured_output(anthropic):
    messages = [{"role": "user", "content": "Is the lamp on?"}]
    whole = anthropic.messages.parse(model="nano", max_tokens=300, messages=messages, output_format=Shelf)
    assert isinstance(whole.parsed_output, Shelf)


@pytest.fixture
def agents(url):
    """`agents(dialect, **about)`: an agent of openai-agents on nano."""
    sdk, openai = pytest.importorskip("agents"), pytest.importorskip("openai")
    sdk.set_tracing_disabled(True)
    models = {"chat": sdk.OpenAIChatCompletionsModel, "responses": sdk.OpenAIResponsesModel}

    def made(dialect: str, **about):
        client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0)
        settings = sdk.ModelSettings(temperature=0, extra_body=OFF if dialect == "chat" else None)
        model = models[dialect](model="nano", openai_client=client)
        return sdk.Agent(name="a", model=model, model_settings=settings, **about)

    return made


@pytest.mark.parametrize("dialect", ["chat", "responses"])
def test_an_agent_of_openai_calls_tools_and_streams(agents, dialect):
    import agents as sdk

    called = []

    @sdk.function_tool
    def calculator(expression: str) -> str:
        """Evaluate an arithmetic expression"""
        called.append(expression)
        return "391"

    async def play():
        agent = agents(dialect, tools=[calculator])
        whole = await sdk.Runner.run(agent, SUM)
        stream = sdk.Runner.run_streamed(agent, SUM)
        kinds = [event.type async for event in stream.stream_events()]
        return whole.final_output, stream.final_output, kinds

    whole, streamed, kinds = asyncio.run(play())
    assert called == ["17*23"] * 2 and "391" in whole and "391" in streamed
    assert {"raw_response_event", "run_item_stream_event"} <= set(kinds)


@pytest.mark.parametrize("dialect", ["chat", "responses"])
def test_an_agent_of_openai_gets_structured_output(agents, dialect):
    import agents as sdk

    async def play():
        return (await sdk.Runner.run(agents(dialect, output_type=Lamp), HELLO)).final_output

    assert isinstance(asyncio.run(play()), Lamp)
