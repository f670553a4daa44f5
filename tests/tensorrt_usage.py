"""Every use of TensorRT in a Python file, looked up in the bindings themselves.

Follows types from `trt.X`, annotations, constructors and the return types in the bindings' own signatures through
assignments, so that a new line in the builder is checked without anybody listing it. Needs importable bindings.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

Known = Any  # what an expression is: a class or module of the bindings, Instance of one, or None for anything else


@dataclass(frozen=True)
class Instance:
    """An object whose class the bindings define."""

    of: type


@dataclass
class Usage:
    """What was found."""

    checked: list[str] = field(
        default_factory=list
    )  # such as "IBuilderConfig.set_timing_cache(cache, ignore_mismatch)"
    problems: list[str] = field(default_factory=list)


def check_file(path: Path, trt: ModuleType) -> Usage:
    """Check one source file."""
    return check_source(path.read_text(), trt, path.name)


def check_source(source: str, trt: ModuleType, name: str = "source") -> Usage:
    """Check a module's text."""
    checker = _Checker(trt, name)
    tree = ast.parse(source)
    checker.learn_module(tree)
    checker.visit(tree)
    return checker.usage


class _Checker(ast.NodeVisitor):
    def __init__(self, trt: ModuleType, name: str) -> None:
        self.trt = trt
        self.name = name
        self.usage = Usage()
        self.scopes: list[dict[str, Known]] = [{}]
        self.classes: list[str] = []  # around the node being visited
        self.fields: dict[str, dict[str, Known]] = {}  # this module's classes: their attributes
        self.bases: dict[str, type] = {}  # this module's classes that extend one of the bindings
        self.returns: dict[str, Known] = {}  # this module's functions

    # --- what the module itself defines ---

    def learn_module(self, tree: ast.Module) -> None:
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                self.scopes[0] |= {one.asname or one.name: self.trt for one in node.names if one.name == "tensorrt"}
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                self.fields[node.name] = {
                    one.target.id: self.annotated(one.annotation)
                    for one in node.body
                    if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)
                }
                known = [base for base in map(self.type_of, node.bases) if isinstance(base, type)]
                if known:
                    self.bases[node.name] = known[0]
            elif isinstance(node, ast.FunctionDef):
                self.returns[node.name] = self.annotated(node.returns)

    def annotated(self, node: ast.expr | None) -> Known:
        """What a value with this annotation is; a tuple keeps the types of its parts."""
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id == "tuple":
            parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            return tuple(self.annotated(part) for part in parts)
        if isinstance(node, ast.Name) and node.id in self.fields:
            return node.id
        found = self.type_of(node) if node is not None else None
        return Instance(found) if isinstance(found, type) else None

    # --- what an expression is ---

    def type_of(self, node: ast.expr) -> Known:
        if isinstance(node, ast.Name):
            return next((scope[node.id] for scope in reversed(self.scopes) if node.id in scope), None)
        if isinstance(node, ast.Attribute):
            return self.attribute(self.type_of(node.value), node.attr)
        if isinstance(node, ast.Call):
            return self.result(node)
        return None

    def attribute(self, owner: Known, name: str) -> Known:
        if isinstance(owner, str):
            return self.fields[owner].get(name)
        if owner is None or isinstance(owner, tuple):
            return None
        on = owner.of if isinstance(owner, Instance) else owner
        found = getattr(on, name, None)
        if isinstance(found, property):
            return self.named(_returned(found.fget.__doc__ or ""))
        if isinstance(found, type):
            return found
        if found is not None and type(found).__module__.startswith(self.trt.__name__):
            return Instance(type(found))  # an enum member
        return None

    def result(self, node: ast.Call) -> Known:
        if isinstance(node.func, ast.Name) and node.func.id in self.returns:
            return self.returns[node.func.id]
        called = self.type_of(node.func)
        if isinstance(called, type):
            return Instance(called)
        method = self.method(node.func)
        return self.named(_returned(method.__doc__ or "")) if method is not None else None

    def method(self, node: ast.expr) -> Any:
        """The bindings' function that this expression names, or None."""
        if not isinstance(node, ast.Attribute):
            return None
        owner = self.type_of(node.value)
        if not isinstance(owner, (Instance, type)):
            return None
        found = getattr(owner.of if isinstance(owner, Instance) else owner, node.attr, None)
        return found if callable(found) and not isinstance(found, type) else None

    def named(self, text: str) -> Known:
        """The class that the bindings' signatures write as `text`."""
        for candidate in (text.rsplit(".", 1)[-1], text.rsplit("::", 1)[-1].removeprefix("I")):
            if isinstance(found := getattr(self.trt, candidate, None), type):
                return Instance(found)
        return None

    # --- walking ---

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        base = self.bases.get(node.name)
        for one in node.body:
            # Methods of TensorRT's interfaces are called with the interface's arguments.
            if base is not None and isinstance(one, ast.FunctionDef) and not one.name.startswith("_"):
                self.check_override(base, one)
        self.classes.append(node.name)
        self.generic_visit(node)
        self.classes.pop()

    def check_override(self, base: type, node: ast.FunctionDef) -> None:
        wanted = getattr(base, node.name, None)
        if wanted is None:
            return
        names = [argument.arg for argument in node.args.args[1:]]
        known = [list(arguments) for arguments in _signatures(wanted)]
        self.verdict(node, f"{base.__name__}.{node.name}({', '.join(names)})", names in known)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        self.scopes.append({one.arg: self.annotated(one.annotation) for one in arguments})
        if self.classes and arguments:
            self.scopes[-1][arguments[0].arg] = self.classes[-1]  # self
        self.generic_visit(node)
        self.scopes.pop()

    def visit_Assign(self, node: ast.Assign) -> None:
        self.generic_visit(node)
        value = self.type_of(node.value)
        for target in node.targets:
            if isinstance(target, ast.Name):
                self.scopes[-1][target.id] = value
            elif isinstance(target, ast.Tuple) and isinstance(value, tuple):
                pairs = zip(target.elts, value, strict=True)
                self.scopes[-1] |= {one.id: part for one, part in pairs if isinstance(one, ast.Name)}
            elif isinstance(target, ast.Attribute) and isinstance(owner := self.type_of(target.value), str):
                self.fields[owner][target.attr] = value

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self.generic_visit(node)
        owner = self.type_of(node.value)
        if owner is self.trt or isinstance(owner, (Instance, type)):
            on = owner.of if isinstance(owner, Instance) else owner
            found = getattr(on, node.attr, None)
            settable = not isinstance(node.ctx, ast.Store) or getattr(found, "fset", None) is not None
            stored = " =" if isinstance(node.ctx, ast.Store) else ""
            self.verdict(node, f"{on.__name__}.{node.attr}{stored}", hasattr(on, node.attr) and settable)

    def visit_Call(self, node: ast.Call) -> None:
        self.generic_visit(node)
        called = self.type_of(node.func)
        function = called.__init__ if isinstance(called, type) else self.method(node.func)
        if function is None:
            return
        keywords = [one.arg or "**" for one in node.keywords]
        unbound = isinstance(node.func, ast.Attribute) and isinstance(self.type_of(node.func.value), type)
        given = len(node.args) - (unbound and not isinstance(called, type))  # `trt.ILogger.__init__(self)`
        text = f"{ast.unparse(node.func)}({', '.join(['_'] * given + keywords)})"
        self.verdict(node, text, any(_fits(arguments, given, keywords) for arguments in _signatures(function)))

    def verdict(self, node: ast.expr | ast.stmt, what: str, fine: bool) -> None:
        self.usage.checked.append(what)
        if not fine:
            self.usage.problems.append(f"{self.name}:{node.lineno}: the bindings have no {what}")


def _fits(arguments: dict[str, bool], given: int, keywords: list[str]) -> bool:
    names = list(arguments)
    missing = [name for name in names[given:] if arguments[name] and name not in keywords]
    return given <= len(names) and not missing and all(one in names[given:] for one in keywords)


def _signatures(function: Any) -> list[dict[str, bool]]:
    """Argument names of each overload without self, and whether one must be given; from the bindings' docstrings."""
    text = function.__doc__ or ""
    lines = re.findall(r"^(?:\d+\. )?\w+\((.*)\) -> ", text, flags=re.MULTILINE)
    return [{part.split(":")[0].strip(): " = " not in part for part in _split(line)[1:]} for line in lines]


def _split(arguments: str) -> list[str]:
    """Split at the commas that are not inside brackets."""
    parts, depth = [""], 0
    for character in arguments:
        depth += (character in "([<{") - (character in ")]>}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def _returned(docstring: str) -> str:
    found = re.search(r"-> ([\w.:]+)\s*$", docstring, flags=re.MULTILINE)
    return found.group(1) if found else ""
