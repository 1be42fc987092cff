"""The viewer's modules as one classic script."""

import re
from pathlib import Path

import pytest

from fastexplain.errors import RunError
from fastexplain.viewer.joining import joined_script
from fastexplain.viewer.standalone import STATIC


def modules(folder: Path, **texts: str) -> Path:
    for name, text in texts.items():
        (folder / f"{name}.js").write_text(text)
    return folder


def test_modules_come_behind_what_they_import(tmp_path: Path) -> None:
    folder = modules(
        tmp_path,
        main='// 1\nimport { a,\n  b } from "./one.js";\nimport { c } from "./two.js";\na(b, c);\n',
        one='import { c } from "./two.js";\n\n/** It.\n * @return {*} */\nexport function a() {\n'
        "  // why\n  return '// 1'; // so\n}\nexport const b = c;\n",
        two='import { go } from "./main.js";\nexport async function c() { go("export "); }\n',
    )
    assert joined_script(folder, "main.js") == (
        '(() => {\n"use strict";\n'
        'async function c() { go("export "); }\n'
        "function a() {\nreturn '// 1'; // so\n}\nconst b = c;\n"
        "a(b, c);\n"
        "})();\n"
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('import { a as b } from "./one.js";\n', "imports 'a as b' from one.js"),
        ('import one from "./one.js";\n', "has 'import one from"),
        ('import { a } from "https://there.example/one.js";\n', "has 'import { a } from"),
        ('const one = await import("./one.js");\n', 'has \'import("./one.js")'),
        ("export default 1;\n", "has 'export default 1;'"),
        ("export { main };\n", "has 'export { main };'"),
        ('import { a } from "./one.js";\nconst a = 1;\n', "main.js and one.js both have 'a'"),
        ("const a = `1\n  2`;\n", "main.js has a template over several lines: 'const a = `1'"),
        ('import { a } from "./none.js";\n', "none.js can't be read: No such file"),
    ],
    ids=lambda value: re.sub(r"\W+", "-", value)[:30],
)
def test_what_can_not_be_joined_is_named(tmp_path: Path, text: str, said: str) -> None:
    folder = modules(tmp_path, main=text, one="export function a() {}\n")
    with pytest.raises(RunError) as error:
        joined_script(folder, "main.js")
    assert said in str(error.value)


SERVED = {"main.js", "compare.js", "cloud.js", "rate.js", "try.js", "simulate.js", "typed.js"}
OF_ALL = {
    "overview.js", "map.js", "picture.js", "colours.js", "charts.js", "steady.js", "watching.js",
    "searching.js",
}  # fmt: skip


@pytest.mark.parametrize(
    ("entry", "without"),
    [("main.js", set()), ("exported.js", SERVED), ("single.js", SERVED | OF_ALL)],
)
def test_the_viewer_s_own_modules_keep_to_the_rules(entry: str, without: set[str]) -> None:
    script = joined_script(STATIC, entry)
    for path in STATIC.glob("*.js"):
        defined = re.findall(
            r"^(?:export )?(?:async )?(?:function|class) (\w+)", path.read_text(), re.M
        )
        for name in defined:  # no page is left out that is needed, and none is in that is not
            found = re.search(rf"^(?:async )?(?:function|class) {name}\b", script, re.M)
            assert (found is None) == (path.name in without), path.name
    assert not re.search(r"^(import|export)\b", script, re.MULTILINE)
