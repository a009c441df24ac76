"""Schemas of the six tools nano is trained to call. Plain data: nothing here runs anything."""


def _tool(name: str, description: str, *parameters: str) -> dict:
    properties = {parameter: {"type": "string"} for parameter in parameters}
    schema = {"type": "object", "properties": properties, "required": list(parameters)}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": schema}}


TOOLS = [
    _tool("calculator", "Evaluate an arithmetic expression", "expression"),
    _tool("clock", "Tell the date and time"),
    _tool("read_file", "Read a text file", "path"),
    _tool("list_folder", "List the files in a folder", "path"),
    _tool("search_text", "Search files for a text", "pattern", "path"),
    _tool("run_shell", "Run a shell command", "command"),
]
BY_NAME = {tool["function"]["name"]: tool for tool in TOOLS}
