"""The built-in corpus `stdlib`: the documentation and sources of the Python that runs this.

Every machine has it, so a first sweep needs no download. Three kinds of documents:

1. the topics of `help()`, as they are: a language reference in prose;
2. the docstrings of one module, each under its dotted name: prose about code;
3. the source of one module without its docstrings: code and comments.

A docstring is thus seen once, as prose. Left in the sources too, it would come back in excerpts
that are cut at other places, which dropping duplicates can't catch, and a neuron would get the
same passage as several of its exemplars.
"""

from __future__ import annotations

import ast
import inspect
import os
import sysconfig
import tokenize
import warnings
from collections.abc import Iterator
from pathlib import Path

from fastexplain.text.pieces import Piece

# Not of the standard library: installed packages. Not meant to be read: test suites. A document
# already: the module that holds the topics. Tables: the codecs, 1.4 MB of nearly equal lines, which
# would fill a neuron's exemplars with the same excerpt under many names.
_LEFT_OUT = {
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "idle_test",
    "__pycache__",
    "pydoc_data",
    "encodings",
}
_Definition = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def documents() -> Iterator[Piece]:
    """Every document, in a fixed order.

    About 10 MB, read in 3 s. What a distribution of Python leaves out (a stripped container may
    have no topics, a zipped one no sources) is left out here.
    """
    root = Path(sysconfig.get_path("stdlib"))
    files = sorted(_sources(root))
    for text in _topics():
        yield Piece(text, 0.0)
    for done, path in enumerate(files, 1):
        name = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        prose, code = _split(path, name)
        yield Piece(prose, done / len(files))
        yield Piece(code, done / len(files))


def _sources(root: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(root):
        folders[:] = set(folders) - _LEFT_OUT
        for name in names:
            # _sysconfigdata_*.py is how this Python was built: paths and flags of one machine.
            if name.endswith(".py") and not name.startswith("_sysconfigdata"):
                yield Path(folder, name)


def _topics() -> list[str]:
    try:
        from pydoc_data.topics import topics
    except ImportError:
        return []
    return [topics[name] for name in sorted(topics)]


def _split(path: Path, module: str) -> tuple[str, str]:
    """The docstrings of a source file and what remains; two empty texts if it doesn't parse."""
    try:
        with tokenize.open(path) as file:
            source = file.read()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old escapes in the standard library's own strings
            tree = ast.parse(source)
    except (OSError, SyntaxError, UnicodeDecodeError):
        return "", ""
    prose = []
    docstrings = []
    for name, node in _definitions(tree, module):
        match node.body:
            case [ast.Expr(ast.Constant(str(text))) as docstring, *rest]:
                prose.append(f"{name}\n{inspect.cleandoc(text)}\n")
                docstrings.append((docstring, not rest))
    return "\n".join(prose), _without(source, docstrings)


def _definitions(node: ast.AST, name: str) -> Iterator[tuple[str, _Definition]]:
    """Every module, class and function at or below `node`, with its dotted name."""
    if isinstance(node, _Definition):
        yield name, node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _definitions(child, f"{name}.{child.name}")
        elif isinstance(child, ast.stmt | ast.ExceptHandler):
            yield from _definitions(child, name)


def _without(source: str, docstrings: list[tuple[ast.Expr, bool]]) -> str:
    """The source without these; with a `pass` instead of one that is alone in a body or shares a
    line with code, so that it stays Python."""
    lines = source.split("\n")  # as ast counts them; splitlines would also break at form feeds
    for docstring, alone in reversed(docstrings):  # from the end, so that line numbers hold
        first, last = docstring.lineno - 1, docstring.end_lineno or docstring.lineno
        before = lines[first].encode()[: docstring.col_offset].decode()
        after = lines[last - 1].encode()[docstring.end_col_offset :].decode()
        keep = alone or (before + after).strip()
        lines[first:last] = [f"{before}pass{after}"] if keep else []
    return "\n".join(lines)
