"""The manifest: what was swept, how, and with which versions; its presence makes a run.

Its last line is a hash of the text before, and `files` has for each file of arrays one hash of the
hashes of its pieces, which lie in `hashes.safetensors`. So every byte is vouched for. Up to schema
4 tables had no triples or situations, up to schema 3 a histogram's bin kept one excerpt, up to
schema 2 there were no hashes, up to schema 1 no sites.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, TypeVar

from fastexplain.errors import RunError
from fastexplain.records import Site
from fastexplain.run.sealed import unsealed

SCHEMA = 5
MANIFEST = "manifest.json"
EXCERPTS = "excerpts.safetensors"
HASHES = "hashes.safetensors"

_FIRST_WITH_HASHES = 3
_SITE = re.compile(r"[0-9]{1,9}(\.\w+)?", re.ASCII)

# What is read by this package, and the least that a number may be; a manifest has more.
_FIELDS: dict[str, dict[str, type[str] | int]] = {
    "subject": {"name": str},
    "settings": {"skip": 0, "table_rows": 0},
    "sweep": {"neurons": 1, "excerpts": 1, "tokens": 1, "seconds": 0, "tokens_per_second": 0},
}
_T = TypeVar("_T")

_FRACTIONS = ("seconds", "tokens_per_second")


def site_file(site: str) -> str:
    """The file of a site, such as `layers/05.e17.safetensors`."""
    layer, dot, place = site.partition(".")
    return f"layers/{int(layer):02}{dot}{place}.safetensors"


def read_manifest(run: Path) -> tuple[dict[str, Any], dict[str, Site]]:
    """A run's manifest and its sites by name, checked.

    Raises:
        RunError: there is none, it is damaged, or this version can't read it.
    """
    path = run / MANIFEST
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        if (run / "layers").is_dir():
            raise RunError(
                f"{run} is not a finished run; its sweep is under way, or goes on when its "
                "command is repeated"
            ) from None
        raise RunError(
            f"{run} is not a finished run; make one with: fastexplain sweep SUBJECT "
            f"--corpus CORPUS --out {run}"
        ) from None
    except OSError as error:
        raise RunError(f"{path} can't be read: {error.strerror}") from error
    try:
        manifest, hashed = unsealed(data)
        schema = manifest.get("schema")
        _expect(is_count(schema, 1), f"schema is {schema!r:.50}")
        if manifest["schema"] > SCHEMA:
            raise RunError(
                f"{run} has schema {schema}, this version reads {SCHEMA}; "
                "use the version of fastexplain that the manifest names, or sweep again"
            )
        _expect(hashed == (manifest["schema"] >= _FIRST_WITH_HASHES), "its hash is missing")
        return manifest, _checked(manifest, hashed)
    except ValueError as error:
        raise RunError(f"{path} can't be used: {error}") from error


def _checked(manifest: dict[str, Any], hashed: bool) -> dict[str, Site]:
    """The sites. Raises ValueError where a part of the manifest is missing or can't be."""
    for part, fields in _FIELDS.items():
        own = _of(dict, manifest.get(part), part)
        for name, least in fields.items():
            value = own.get(name)
            fits = (
                isinstance(value, str)
                if not isinstance(least, int)
                else is_count(value, least, fraction=name in _FRACTIONS)
            )
            _expect(fits, f"{name} in {part} is {value!r}")
    sweep, skip = manifest["sweep"], manifest["settings"]["skip"]
    length, rest = divmod(sweep["tokens"], sweep["excerpts"])
    _expect(rest == 0 and skip < length, "its numbers of excerpts, tokens and skip don't agree")
    sites = _sites(manifest, sweep["tokens"] - sweep["excerpts"] * skip)
    _expect(bool(sites), "it has no sites")
    if hashed:
        files = _of(dict, manifest.get("files"), "files")
        wanted = {EXCERPTS, *map(site_file, sites)}
        _expect(wanted == files.keys(), "its files are not those of its sites")
        for name, value in files.items():
            _expect(isinstance(value, str), f"the hash of {name} is {value!r}")
    return sites


def _sites(manifest: dict[str, Any], counted: int) -> dict[str, Site]:
    """Sites by name; up to schema 1 there were layers and their widths only."""
    rows = manifest.get("sites")
    if rows is None and manifest["schema"] == 1:
        layers, widths = (
            _of(list, manifest["settings"].get(name), name) for name in ("layers", "widths")
        )
        _expect(len(layers) == len(widths), "layers and widths don't agree")
        rows = [
            {"name": str(layer), "kind": "mlp", "units": width, "counted_tokens": counted}
            for layer, width in zip(layers, widths, strict=True)
        ]
    sites = {}
    for row in _of(list, rows, "sites"):
        _of(dict, row, "a site")
        name, kind = row.get("name"), row.get("kind")
        _expect(isinstance(name, str) and bool(_SITE.fullmatch(name)), f"a site's name is {name!r}")
        _expect(name not in sites and isinstance(kind, str), f"site {name} is not as it must be")
        # A layer's number is written in one way only, so that two sites have two files.
        _expect(name.partition(".")[0] == str(int(name.partition(".")[0])), f"site {name!r}")
        units, tokens = row.get("units"), row.get("counted_tokens")
        fits = is_count(units, 1) and is_count(tokens, 1) and tokens <= manifest["sweep"]["tokens"]
        _expect(fits, f"site {name} has {units!r} units and {tokens!r} counted tokens")
        sites[name] = Site(name, kind, units, tokens)
    return sites


def is_count(value: Any, least: int, *, fraction: bool = False) -> bool:
    """Whether it is a number that can be counted with: an int, unless it may be a fraction."""
    kinds = (int, float) if fraction else (int,)
    is_number = isinstance(value, kinds) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and least <= value < 2**62


def _of(kind: type[_T], value: Any, what: str) -> _T:
    """The value, if it is of a type. Raises ValueError if not."""
    _expect(isinstance(value, kind), f"{what} is {value!r:.50}")
    return value


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)
