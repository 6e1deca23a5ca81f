"""A network with settings of its own behind its name, as in `residual(width=16,depth=2)`.

What a parameter may be set to in a search stands in its type annotation:

| annotation | values |
|---|---|
| `Literal[6, 8, 12]` | these |
| `bool` | false or true |
| `Annotated[int, range(8, 65, 8)]` | those of the range |
| `Annotated[int, (8, 64)]` | the whole numbers from the one to the other |
| `Annotated[float, (0.1, 0.5)]` | any between the two |
"""

from __future__ import annotations

import ast
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, get_args, get_origin

Value = int | float | bool | str


def is_setting(text: str) -> bool:
    """Return whether a text is `key=value`, and no network with settings in brackets."""
    key, separator, _ = text.partition("=")
    return bool(separator) and "(" not in key


def split_settings(name: str) -> tuple[str, dict[str, Value]]:
    """Take a name apart into what stands in front of the brackets, and the settings within.

    Raises:
        ValueError: between the brackets stands something else than `key=value, …`, or a key twice.

    Example:
        >>> split_settings("residual(width=16,depth=2)")
        ('residual', {'width': 16, 'depth': 2})
    """
    if not name.endswith(")"):
        return name, {}
    head, _, inside = name.rpartition("(")
    try:
        call = ast.parse(f"f({inside}", mode="eval").body
        assert isinstance(call, ast.Call)
        if call.args or any(keyword.arg is None for keyword in call.keywords):
            raise ValueError
        settings = {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
        if not all(isinstance(value, Value) for value in settings.values()):
            raise ValueError
        keys = [keyword.arg for keyword in call.keywords]
    except (ValueError, SyntaxError, AssertionError, RecursionError, MemoryError):
        raise ValueError(
            f"{name!r} is not allowed; settings stand as NAME(key=value,key=value), each a number, "
            "True, False or a quoted text"
        ) from None
    if twice := [key for key in settings if keys.count(key) > 1]:
        raise ValueError(f"{name!r} is not allowed; {twice[0]} stands there twice: keep one")
    return head, settings


def with_settings(name: str, settings: Mapping[str, Value]) -> str:
    """Return a name with settings behind it, which `split_settings` takes apart again."""
    if not settings:
        return name
    return f"{name}({','.join(f'{key}={value!r}' for key, value in settings.items())})"


def declared_values(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the values that the parameters of a function or class say they take.

    Returns:
        By parameter a list, a `range`, or a pair of floats, lowest and highest; those whose
        annotation names no values are left out.
    """
    target = function.__init__ if inspect.isclass(function) else function
    found: dict[str, Any] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        values = _values_of(_evaluated(parameter.annotation, target))
        if values is not None:
            found[name] = _default_first(values, parameter.default)
    return found


def _evaluated(annotation: Any, function: Callable[..., Any]) -> Any:
    """Return an annotation that may be a text; None where its names are not there at run time."""
    holder = types.SimpleNamespace(__annotations__={"one": annotation})
    try:
        names = getattr(function, "__globals__", {})
        return typing.get_type_hints(holder, names, include_extras=True)["one"]
    except Exception:  # an annotation is any expression of the user's own
        return None


def _values_of(annotation: Any) -> Any:
    if annotation is bool:
        return [False, True]
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    if get_origin(annotation) is Annotated:
        kind, *extras = get_args(annotation)
        for extra in extras:
            if kind is int and isinstance(extra, tuple) and all(type(v) is int for v in extra):
                return range(extra[0], extra[-1] + 1)
            if isinstance(extra, range | list | tuple):
                return extra
    return None


def _default_first(values: Any, default: Any) -> Any:
    """Put the default of a choice in front, where a search begins."""
    if isinstance(values, list) and default in values:
        return [default, *(value for value in values if value != default)]
    return values
