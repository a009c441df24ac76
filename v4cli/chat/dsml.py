"""DSML, V4's tool-call markup: the tools text of the prompt and the rendering of calls (spec 5.3, 5.4)."""

import json

from v4cli import jsonfile
from v4cli.chat.special import DSML

CLOSER = f"</{DSML}"  # begins every closing tag
CALLS_OPEN = f"<{DSML}tool_calls>"
CALLS_CLOSE = f"{CLOSER}tool_calls>"
INVOKE_CLOSE = f"{CLOSER}invoke>"
PARAMETER_CLOSE = f"{CLOSER}parameter>"
MAX_CALLS = 32  # in one block

TOOLS_HEAD = f"""## Tools

You have access to a set of tools to help answer the user's question. You can invoke tools by writing a "{CALLS_OPEN}" block like the following:

{CALLS_OPEN}
<{DSML}invoke name="$TOOL_NAME">
<{DSML}parameter name="$PARAMETER_NAME" string="true|false">$PARAMETER_VALUE{PARAMETER_CLOSE}
...
{INVOKE_CLOSE}
<{DSML}invoke name="$TOOL_NAME2">
...
{INVOKE_CLOSE}
{CALLS_CLOSE}

String parameters should be specified as is and set `string="true"`. For all other types (numbers, booleans, arrays, objects), pass the value in JSON format and set `string="false"`.

If thinking_mode is enabled (triggered by <think>), you MUST output your complete reasoning inside <think>...</think> BEFORE any tool calls or final response.

Otherwise, output directly after </think> with tool calls or final response.

### Available Tool Schemas

"""  # noqa: E501
TOOLS_TAIL = "\n\nYou MUST strictly follow the above defined tool name and parameter schemas to invoke tool calls.\n"


def write_tools(out, tools: list[dict]) -> None:
    """The tools block of a prompt; schemas are text, the frame is markup."""
    out.markup(TOOLS_HEAD)
    out.text("\n".join(to_json(tool["function"]) for tool in tools))
    out.markup(TOOLS_TAIL)


def write_calls(out, calls: list[dict], empty_line: bool = True) -> None:
    """A block of tool calls. `empty_line`: a call without arguments keeps an empty line inside (April)."""
    out.markup(f"\n\n{CALLS_OPEN}\n")
    for i, call in enumerate(calls):
        function = call["function"]
        out.markup(f'\n<{DSML}invoke name="' if i else f'<{DSML}invoke name="')
        out.text(function["name"])
        out.text('">\n')
        parameters = _parameters(function.get("arguments", ""))
        for j, (key, value) in enumerate(parameters):
            is_text = isinstance(value, str)
            out.markup(f'\n<{DSML}parameter name="' if j else f'<{DSML}parameter name="')
            out.text(f'{key}" string="{"true" if is_text else "false"}">')
            out.text(value if is_text else to_json(value))
            out.markup(PARAMETER_CLOSE)
        out.markup(("\n" if parameters or empty_line else "") + INVOKE_CLOSE)
    out.markup(f"\n{CALLS_CLOSE}")


def _parameters(arguments) -> list[tuple[str, object]]:
    """Arguments (JSON text or an object) as pairs; text that is not a JSON object is one parameter "arguments"."""
    if isinstance(arguments, dict):
        return list(arguments.items())
    try:
        parsed = jsonfile.loads(arguments)
        json.dumps(parsed, allow_nan=False)
    except (ValueError, RecursionError):
        return [("arguments", arguments)]
    return list(parsed.items()) if isinstance(parsed, dict) else [("arguments", arguments)]


def to_json(value) -> str:
    """JSON as the model saw it in training: ", " and ": " separators, non-ASCII kept, key order kept."""
    return json.dumps(value, ensure_ascii=False)
