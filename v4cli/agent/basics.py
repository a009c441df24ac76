"""The tools that need nothing of the machine: a calculator, a clock."""

import ast
import math
import operator
import time

from v4cli.agent.tools import Context, Kind, Tool, ToolError, parameters

MAX_LENGTH = 1000  # characters of an expression
MAX_BITS = 4096  # of a whole number
SPELLINGS = str.maketrans({"×": "*", "÷": "/", "−": "-", "^": "**"})
OPERATORS = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.UAdd: operator.pos, ast.USub: operator.neg,
}  # fmt: skip
CONSTANTS = {"pi": math.pi, "e": math.e}
FUNCTIONS = {
    "abs": abs, "round": round, "min": min, "max": max, "floor": math.floor, "ceil": math.ceil, "sqrt": math.sqrt,
    "exp": math.exp, "log": math.log, "log2": math.log2, "log10": math.log10, "sin": math.sin, "cos": math.cos,
    "tan": math.tan,
}  # fmt: skip


def tools() -> list[Tool]:
    """calculator, clock."""
    expression = parameters(["expression"], expression={"type": "string"})
    return [
        Tool("calculator", "Evaluate an arithmetic expression", expression, Kind.READ, calculator),
        Tool("clock", "Tell the date and time", parameters(), Kind.READ, clock),
    ]


def calculator(arguments: dict, context: Context) -> str:
    """The value of an expression, with at most four decimals; of what is less than 1, four digits."""
    text = arguments["expression"]
    if len(text) > MAX_LENGTH:
        raise ToolError(f"the expression is longer than {MAX_LENGTH} characters")
    try:
        tree = ast.parse(text.translate(SPELLINGS).strip(), mode="eval")
        return _rounded(_value(tree.body))
    except ZeroDivisionError:
        raise ToolError("division by zero") from None
    except OverflowError:
        raise ToolError("the result is too large") from None
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        raise ToolError("this is not an expression of numbers, + - * / // % ** ( ), and functions like sqrt") from None


def clock(arguments: dict, context: Context) -> str:
    """Date, time and day of the week, here."""
    return time.strftime("%Y-%m-%d %H:%M %A")


def _rounded(value: int | float) -> str:
    """A number to be read; what is not 0 does not become 0."""
    if isinstance(value, float):
        value = round(value, 4) if abs(value) >= 1 else float(f"{value:.4g}")
    return str(value).removesuffix(".0")


def _value(node: ast.AST) -> int | float:
    """The number a syntax tree stands for; ValueError for anything but arithmetic."""
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            return _bounded(value)
        case ast.Name(id=name) if name in CONSTANTS:
            return CONSTANTS[name]
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            return _power(_value(left), _value(right))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
            return _bounded(OPERATORS[type(op)](_value(left), _value(right)))
        case ast.UnaryOp(op=op, operand=operand) if type(op) in OPERATORS:
            return OPERATORS[type(op)](_value(operand))
        case ast.Call(func=ast.Name(id=name), args=values, keywords=[]) if name in FUNCTIONS:
            return _bounded(FUNCTIONS[name](*map(_value, values)))
    raise ValueError


def _power(base: int | float, exponent: int | float) -> int | float:
    if isinstance(base, int) and isinstance(exponent, int) and base.bit_length() * abs(exponent) > MAX_BITS:
        raise OverflowError
    return _bounded(base**exponent)


def _bounded(value: int | float) -> int | float:
    if isinstance(value, complex):
        raise ValueError
    if value.bit_length() > MAX_BITS if isinstance(value, int) else not math.isfinite(value):
        raise OverflowError
    return value
