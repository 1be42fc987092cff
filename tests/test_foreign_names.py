"""What fastexplain uses of other packages that they promise nobody: each name in one module alone.

A release of theirs may change these names unannounced; the tests here then say which one, and
where it is used.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TypeGuard

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent

PRIVATE = {
    "_dynamo": "fastexplain/subject/compilation.py",
    "_forward_hooks": "fastexplain/subject/interception.py",
    "_forward_pre_hooks": "fastexplain/subject/interception.py",
    "_global_forward_hooks": "fastexplain/subject/interception.py",
    "_global_forward_pre_hooks": "fastexplain/subject/interception.py",
    "_linear_pointwise": "fastexplain/models/onednn.py",
}
"""Private names of other packages, and the only module that may use each."""

# Of named tuples: documented, and so written only to keep clear of their fields.
PUBLIC = {"_asdict", "_field_defaults", "_fields", "_make", "_replace"}


@cache
def sources() -> dict[str, ast.Module]:
    files = [file for room in ("fastexplain", "kernels") for file in (ROOT / room).rglob("*.py")]
    return {str(file.relative_to(ROOT)): ast.parse(file.read_text()) for file in files}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_"


def own_names() -> set[str]:
    """The private names that our own code makes: definitions, variables, attributes, modules."""
    names = set()
    for tree in sources().values():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                names.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
            elif (
                isinstance(node, ast.Attribute)
                and isinstance(node.ctx, ast.Store)
                and isinstance(node.value, ast.Name)
                and node.value.id == "self"
            ):
                names.add(node.attr)
    return names


def is_call(node: ast.AST, *names: str) -> TypeGuard[ast.Call]:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names


def used_names(tree: ast.Module) -> Iterator[str]:
    """All names behind a dot, those that are imported, and those given as strings to getattr."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.Import):
            yield from (part for each in node.names for part in each.name.split("."))
        elif isinstance(node, ast.ImportFrom):
            yield from (node.module or "").split(".")
            yield from (each.name for each in node.names)
        elif is_call(node, "getattr", "hasattr", "setattr", "delattr"):
            strings = (each.value for each in node.args if isinstance(each, ast.Constant))
            yield from (value for value in strings if isinstance(value, str))


def test_private_names_of_others_stand_in_one_place() -> None:
    own = own_names() | PUBLIC
    found = {
        (name, path)
        for path, tree in sources().items()
        for name in used_names(tree)
        if is_private(name) and name not in own
    }
    assert found == set(PRIVATE.items())


def test_nothing_is_put_into_another_package() -> None:
    """No `module.name = value`, and no setattr on a module, where the module was imported."""
    found = []
    for path, tree in sources().items():
        modules = {
            (each.asname or each.name).split(".")[0]
            for node in ast.walk(tree)
            if isinstance(node, ast.Import)
            for each in node.names
        }
        for node in ast.walk(tree):
            target = None
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store | ast.Del):
                target = node.value
            elif is_call(node, "setattr", "delattr"):
                target = node.args[0]
            while isinstance(target, ast.Attribute):
                target = target.value
            if isinstance(target, ast.Name) and target.id in modules - sys.stdlib_module_names:
                found.append(f"{path}:{node.lineno}")
    assert found == []


def test_modules_keep_their_hooks_by_these_names() -> None:
    layer = torch.nn.Identity()
    layer.register_forward_hook(lambda *_: None)
    layer.register_forward_pre_hook(lambda *_: None)
    assert len(layer._forward_hooks) == len(layer._forward_pre_hooks) == 1
    everywhere = torch.nn.modules.module
    for register, kept in (
        (everywhere.register_module_forward_hook, "_global_forward_hooks"),
        (everywhere.register_module_forward_pre_hook, "_global_forward_pre_hooks"),
    ):
        handle = register(lambda *_: None)
        try:
            assert len(getattr(everywhere, kept)) == 1
        finally:
            handle.remove()


def test_dynamos_errors_have_a_class_of_their_own() -> None:
    from torch._dynamo.exc import BackendCompilerFailed, TorchDynamoException

    assert issubclass(BackendCompilerFailed, TorchDynamoException)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch without oneDNN")
def test_pytorch_has_onednns_linear_layer() -> None:
    schema = str(torch.ops.mkldnn._linear_pointwise.default._schema)
    assert schema == (
        "mkldnn::_linear_pointwise(Tensor X, Tensor W, Tensor? B, str attr, Scalar?[] scalars, "
        "str? algorithm) -> Tensor Y"
    )
