"""What a name comes to by its text: its definition, and those of the names that it refers to.

Of a module that holds a network and the call that compares it, the network counts alone, with what
of the module, and of the neighbours that it imports, it refers to. Comments, docstrings and layout
do not count. Texts are read; nothing of them is run.
"""

from __future__ import annotations

import ast
import symtable
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePosixPath

LAMBDA = "<lambda>"
"""What Python calls a function without a name."""

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


def definitions(texts: Mapping[str, str], file: str, name: str) -> dict[str, list[str]]:
    """Return the definitions that a name comes to.

    Args:
        texts: a module and its neighbours, by their paths below a folder.
        file: the path of the module.
        name: that stands at its top; `<lambda>` for all its functions without one.

    Returns:
        The texts that define a name, by `FILE: NAME`. What is of no neighbour has none, and is
        there by where it is imported from.

    Raises:
        ValueError: a text is no Python.
    """
    modules: dict[str, _Module] = {}
    found: dict[str, list[str]] = {}
    queue = [(file, name)]
    for path, sought in queue:
        label = f"{path}: {sought}" if path else sought
        if label in found:
            continue
        found[label] = []
        if path:
            if path not in modules:
                modules[path] = _parse(path, texts)
            found[label], reached = modules[path].look_up(sought)
            queue += reached
    return found


class _Plain(ast.NodeTransformer):
    """Takes docstrings out."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        is_text = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if is_text else self.generic_visit(node)

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        if getattr(node, "body", None) == [] and not isinstance(node, ast.Module):
            node.body = [ast.Pass()]  # type: ignore[attr-defined]
        return node


class _Chains(ast.NodeVisitor):
    """Collects names with the attributes behind them, as `parts.blocks.WIDTH`."""

    def __init__(self) -> None:
        self.found: dict[tuple[str, ...], None] = {}

    def visit_Name(self, node: ast.Name) -> None:
        self.found[node.id,] = None

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if chain := _chain(node):
            self.found[chain] = None
        else:
            self.generic_visit(node)


class _Module:
    """A module's statements, by the names that they define.

    Attributes:
        imports: by name what it is imported as, such as `parts.blocks.Block`.
    """

    def __init__(self, path: str, tree: ast.Module, texts: Mapping[str, str]) -> None:
        self.path, self.texts = path, texts
        self.statements = list(_flat(tree.body))
        outside = [node for statement in self.statements for node in _walk_scope(statement)]
        self.imports = self._imports(outside)
        self.defined: dict[str, list[ast.stmt]] = defaultdict(list)
        for statement in self.statements:
            if not isinstance(statement, ast.Import | ast.ImportFrom):
                for name in _assigned(statement) | (_changed(statement) - self.imports.keys()):
                    self.defined[name].append(statement)
        self.defined[LAMBDA] = [ast.Expr(node) for node in outside if isinstance(node, ast.Lambda)]

    def look_up(self, name: str) -> tuple[list[str], list[tuple[str, str]]]:
        """Return the texts that define a name, all for an empty one, and what they refer to."""
        statements = self.defined.get(name, []) if name else self.statements
        reached = [self._resolve(whole) for whole in self.imports.get(name, ())]
        if not statements and not reached:  # a builtin, or a name that a star has brought in
            reached = [self._resolve(f"{star}.{name}") for star in self.imports.get("*", ())]
        for statement in statements:
            local = self._imports(ast.walk(statement))
            chains = _Chains()
            chains.visit(statement)
            known = _globals(statement) | local.keys()
            for root, *rest in chains.found:
                if root in known:
                    if root in self.defined or root not in self.imports.keys() | local.keys():
                        reached.append((self.path, root))
                    for whole in (*self.imports.get(root, ()), *local.get(root, ())):
                        reached.append(self._resolve(".".join([whole, *rest])))
        return [ast.unparse(statement) for statement in statements], reached

    def _imports(self, nodes: Iterable[ast.AST]) -> dict[str, list[str]]:
        found: dict[str, list[str]] = defaultdict(list)
        for node in nodes:
            if isinstance(node, ast.Import):
                for alias in node.names:
                    top = alias.name.partition(".")[0]
                    found[alias.asname or top].append(alias.name if alias.asname else top)
            elif isinstance(node, ast.ImportFrom):
                above = PurePosixPath(self.path).parents
                base = above[min(node.level, len(above)) - 1].parts if node.level else ()
                origin = [*base, *([node.module] if node.module else [])]
                for alias in node.names:
                    name = alias.asname or alias.name
                    found[name].append(".".join(origin + [alias.name] * (alias.name != "*")))
        return dict(found)

    def _resolve(self, dotted: str) -> tuple[str, str]:
        """Return the neighbour that holds what is imported, and its name there, or that alone."""
        parts = dotted.split(".")
        for count in range(len(parts), 0, -1):
            stem = "/".join(parts[:count])
            for path in (f"{stem}.py", f"{stem}/__init__.py"):
                if path in self.texts:
                    return path, "".join(parts[count : count + 1])
        return "", dotted


def _parse(path: str, texts: Mapping[str, str]) -> _Module:
    try:
        return _Module(path, _Plain().visit(ast.parse(texts[path].encode())), texts)
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f"{path} is no Python: {error}") from None


def _flat(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield statements, each of an `if` with its condition, so that one can change by itself."""
    for statement in body:
        if isinstance(statement, ast.If):
            otherwise = ast.UnaryOp(ast.Not(), statement.test)
            for test, part in ((statement.test, statement.body), (otherwise, statement.orelse)):
                yield from (ast.If(test, [inner], []) for inner in _flat(part))
        else:
            yield statement


def _walk_scope(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes that run with the module itself, functions but not what is in them."""
    yield node
    if not isinstance(node, (*FUNCTIONS, ast.ClassDef)):
        for child in ast.iter_child_nodes(node):
            yield from _walk_scope(child)


def _chain(node: ast.AST) -> tuple[str, ...]:
    """Return a name with its attributes; nothing for what begins otherwise."""
    if isinstance(node, ast.Name):
        return (node.id,)
    chain = _chain(node.value) if isinstance(node, ast.Attribute) else ()
    return (*chain, node.attr) if chain and isinstance(node, ast.Attribute) else ()


def _table(statement: ast.stmt) -> symtable.SymbolTable:
    return symtable.symtable(ast.unparse(statement), "text", "exec")


def _assigned(statement: ast.stmt) -> set[str]:
    return {s.get_name() for s in _table(statement).get_symbols() if s.is_assigned()}


def _globals(statement: ast.stmt) -> set[str]:
    """Return the names of its module that a statement refers to, in functions too."""
    found: set[str] = set()
    tables = [_table(statement)]
    for table in tables:
        anywhere = table.get_type() != "function"
        found |= {
            symbol.get_name()
            for symbol in table.get_symbols()
            if symbol.is_global() or (anywhere and symbol.is_referenced())
        }
        tables += table.get_children()
    return found


def _changed(statement: ast.stmt) -> set[str]:
    """Return the names whose object a statement changes, as `WIDTHS.append(8)` does."""
    found = set()
    for node in _walk_scope(statement):
        changed: ast.AST | None = None
        if isinstance(node, ast.Attribute | ast.Subscript) and not isinstance(node.ctx, ast.Load):
            changed = node
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            changed = node.value.func if isinstance(node.value.func, ast.Attribute) else None
        while isinstance(changed, ast.Attribute | ast.Subscript):
            changed = changed.value
        if isinstance(changed, ast.Name):
            found.add(changed.id)
    return found
