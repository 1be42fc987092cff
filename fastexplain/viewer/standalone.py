"""An HTML page with everything inside it: styles, scripts and data.

Its policy (CSP) names the hashes of the one style and the one script that it has. That script may
load others, the shards of an exported site; nothing else is loaded, from nowhere.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastexplain.errors import RunError
from fastexplain.version import __version__
from fastexplain.viewer.joining import joined_script

STATIC = Path(__file__).parent / "static"

GENERATOR = '<meta name="generator" content="fastexplain '
"""What the beginning of every exported page has in it."""


def standalone_page(settings: Mapping[str, Any], *, loads: bool) -> str:
    """The viewer as one page.

    Args:
        settings: what `static/source.js` finds in `FASTEXPLAIN`; JSON.
        loads: whether the page may load scripts from beside it; else it is of one neuron.

    Raises:
        RunError: the viewer's files are not as they were installed.
    """
    page = _installed("index.html")
    style = f"\n{_installed('style.css')}"
    joined = joined_script(STATIC, "exported.js" if loads else "single.js")
    script = f"\nwindow.FASTEXPLAIN = {script_json(settings)};\n{joined}"
    for name, text in (("style", style), ("script", script)):
        if re.search(rf"</{name}|<!--", text, re.IGNORECASE):
            raise RunError(f"the viewer's {name} has what would end it within a page")
    icon = base64.b64encode(_installed("icon.svg").encode()).decode()
    # What a script with a known hash loads is trusted as it is: `'self'` is nothing for a file.
    loaded = " 'strict-dynamic'" if loads else ""
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'{loaded}; "
        f"style-src '{_hash(style)}'; img-src data:; base-uri 'none'; form-action 'none'"
    )
    for old, new in (
        (
            '<meta charset="utf-8">',
            f'<meta charset="utf-8">\n    {GENERATOR}{__version__}">\n    '
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        ),
        ('href="icon.svg"', f'href="data:image/svg+xml;base64,{icon}"'),
        ('<link rel="stylesheet" href="style.css">', f"<style>{style}</style>"),
        # Behind the body: a classic script runs where it stands.
        ('<script type="module" src="main.js"></script>', ""),
        ("  </body>", f"    <script>{script}</script>\n  </body>"),
    ):
        if page.count(old) != 1:
            raise RunError(f"the viewer's index.html has not one '{old}'")
        page = page.replace(old, new)
    return page


def script_json(data: object) -> str:
    """JSON as an expression of a script, which no text in it can end or comment out; ASCII."""
    return json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _installed(name: str) -> str:
    try:
        return (STATIC / name).read_text(encoding="utf-8")
    except OSError as error:
        raise RunError(f"{STATIC / name} can't be read: {error.strerror}") from error


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
