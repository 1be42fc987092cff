"""The viewer's JavaScript modules as one classic script, for pages that are opened as files.

A browser loads no modules from `file://`. So the modules are put one after another, each behind
those that it imports, without their `import` and `export`. That is enough because they keep to
some rules, which are checked here: imports are of plain names from `./NAME.js`, exports are
declarations, no name stands at the top of two modules, and no template goes over several lines.
The last lets indentation go, and with it comments on lines of their own: a fifth of the script,
which is most of an exported page.
"""

from __future__ import annotations

import re
from pathlib import Path

from fastexplain.errors import RunError

_IMPORT = re.compile(r'^import\s*\{([^{}]*)\}\s*from\s*"\./([\w-]+\.js)";\n', re.MULTILINE)
_DECLARED = r"(?:async\s+function|function|const|let|class)\s*\*?\s*"
_EXPORT = re.compile(rf"^export (?={_DECLARED}\w)", re.MULTILINE)
_TOP = re.compile(rf"^(?:export )?{_DECLARED}(\w+)", re.MULTILINE)
_COMMENT = re.compile(r"^(?://[^\n]*|/\*(?:[^*]|\*(?!/))*\*/)\n", re.MULTILINE)
_LEFT = re.compile(r"^(?:import|export)\b.*|\bimport\s*[(.].*", re.MULTILINE)


def joined_script(folder: Path, entry: str) -> str:
    """One script of a module and all that it imports, which leaves no names behind.

    Args:
        folder: where the modules are.
        entry: the module that begins; it comes last.

    Raises:
        RunError: a module is not there, or does not keep to the rules above.
    """
    modules: dict[str, str] = {}
    _read(folder, entry, modules, set())
    owners: dict[str, str] = {}
    for name, text in modules.items():
        for found in _TOP.findall(text):
            if owners.setdefault(found, name) != name:
                raise RunError(f"{name} and {owners[found]} both have '{found}' at their top")
    return f'(() => {{\n"use strict";\n{"".join(map(_bare, modules.values()))}}})();\n'


def _read(folder: Path, name: str, modules: dict[str, str], begun: set[str]) -> None:
    """Put a module behind what it imports; a circle of imports is cut where it was entered."""
    begun.add(name)
    try:
        text = (folder / name).read_text(encoding="utf-8")
    except OSError as error:
        raise RunError(f"{folder / name} can't be read: {error.strerror}") from error
    for names, imported in _IMPORT.findall(text):
        if not re.fullmatch(r"\s*\w+(\s*,\s*\w+)*\s*,?\s*", names) or re.search(r"\bas\b", names):
            raise RunError(f"{name} imports '{names.strip()}' from {imported}; write plain names")
        if imported not in begun:
            _read(folder, imported, modules, begun)
    if found := _LEFT.search(_bare(text)):
        raise RunError(f"{name} has '{found[0][:60]}', which can't be joined to a classic script")
    for line in _bare(text).split("\n"):
        if line.count("`") % 2:
            raise RunError(f"{name} has a template over several lines: '{line[:60]}'")
    modules[name] = text


def _bare(text: str) -> str:
    """A module without its imports, the word `export`, comments on their own, and indentation."""
    lines = (line.strip() for line in _EXPORT.sub("", _IMPORT.sub("", text)).split("\n"))
    return _COMMENT.sub("", "".join(f"{line}\n" for line in lines if line))
