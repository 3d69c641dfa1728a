"""The page of errors: every class with what to do, and every message, as the code that raises it has it."""

from __future__ import annotations

import ast
import inspect
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType

from sum_factory.shared import errors

HOME = Path(__file__).resolve().parents[2]
PACKAGES = ("labelgen", "trainer", "shared")
CALLED = {"len": "count", "path": "file", "reason_of": "reason", "remedy_of": "remedy"}
"""What a message calls that which a function returns."""
WORDS = """# Errors

An error that is the input's fault, or the machine's, is a `SumError`. A command prints it after `error: `: the file or
setting, what was expected, and what to do. Anything that comes with a traceback is a mistake in this software; please
report it.

| exit status | what it means |
|---|---|
| 0 | all is done |
| 1 | an error, or something is left to be done: the message says what |
| 2 | the command was called wrongly: an option that is unknown, missing or of another type |
| 3 | all is done but for something that is named: photos that could not be labelled (`labelgen run`, `labelgen uncertainty`), or broken units that were taken back (`labelgen repair`) |

The messages below are those in the code. A word in braces stands for what is filled in, and `...` for a part that is
made up elsewhere.
"""  # noqa: E501


def errors_page() -> str:
    """Return the page in Markdown."""
    messages = messages_by_error()
    parts = [WORDS]
    for name, kind in error_classes().items():
        parts.append(f"## {name}\n\n{(inspect.getdoc(kind) or '').replace('``', '`')}\n")
        parts.append("\n".join(f"- `` {message} ``" for message in sorted(set(messages[name]))) + "\n")
    return "\n".join(parts)


def error_classes() -> dict[str, type[errors.SumError]]:
    """Return the classes of errors in the order in which they are defined."""
    return {
        name: kind for name, kind in vars(errors).items() if inspect.isclass(kind) and issubclass(kind, errors.SumError)
    }


def messages_by_error() -> Mapping[str, list[str]]:
    """Return the messages that the packages raise each error with; not those that are made up elsewhere as a whole."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for package in PACKAGES:
        for path in sorted((HOME / package).rglob("*.py")):
            for raised in calls_raised(ast.parse(path.read_text())):
                assert isinstance(raised.func, ast.Name), "as calls_raised has it"
                module = import_module(".".join(["sum_factory", *path.relative_to(HOME).with_suffix("").parts]))
                message = " ".join(text_of(raised.args[0], module).split())
                if re.search("[a-z]{3}", re.sub(r"{.*?}", "", message)):
                    found[raised.func.id].append(message)
    return found


def calls_raised(tree: ast.Module) -> Iterator[ast.Call]:
    """Yield the calls in a module that make an error of ours to raise."""
    for node in ast.walk(tree):
        match node:
            case ast.Raise(exc=ast.Call(func=ast.Name(name), args=[_, *_]) as call) if name in error_classes():
                yield call


def text_of(message: ast.expr, module: ModuleType) -> str:
    """Return a message with what is filled in by its name in braces; a constant of its module is filled in here."""
    match message:
        case ast.Constant(value):
            return str(value)
        case ast.JoinedStr(values):
            return "".join(text_of(value, module) for value in values)
        case ast.FormattedValue(value):
            return text_of(value, module)
        case ast.BinOp(left, ast.Add(), right):
            return text_of(left, module) + text_of(right, module)
        case ast.Name(name):
            constant = getattr(module, name, None)
            return constant if isinstance(constant, str) else f"{{{name}}}"
        case ast.Attribute(attr=name):
            return f"{{{name}}}"
        case ast.Call(func=ast.Name(name) | ast.Attribute(attr=name)) if name in CALLED:
            return f"{{{CALLED[name]}}}"
    return "..."
