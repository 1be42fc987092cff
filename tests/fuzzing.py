"""What a command line may be given: arguments of all kinds, and files changed by chance."""

import json
import struct

import typer

from fastexplain.cli.main import app

NUMBERS = [
    "0", "1", "2", "3", "-1", "100", str(2**31), str(2**63), "1" + "0" * 30, "9" * 5000, "1.5",
    "nan", "inf", "-inf", "1e400", "", "x", "٣", "0x10", " 1", "1_000",
]  # fmt: skip
TEXTS = [
    "", "x", "all", "0:1", "0:*", "0:0-5", "0:99999", "5:1", "\x1b[2J", "\udc80", "é" * 300,
    "a" * 5000, "@", "@/no", "--help", "-", "--", "\n", "%s %d {}", "[bold]", ":smile:", "' or 1",
    "0-99999999:*", "0:0-99999999", "0:" + "9" * 5000, "0.attn:1", "-1:2",
]  # fmt: skip
VALUES = [
    None, True, 0, -1, 1, 2**31, 2**63, 2**64, 10**30, 1.5, float("nan"), float("inf"), 1e308, "",
    "x", "\0", "5", [], {}, [1], ["a"], {"a": 1}, [[]], "a" * 1000,
]  # fmt: skip
KNOWN = {
    "simulation": ["prompt-logprobs", "generated-logprobs", "json", "one-at-a-time", "x", ""],
    "readout": ["expected", "contrast", "contrast-others", "x"],
    "prompt": ["exemplars", "full", "thinking", "short", "list", "x", ""],
    "scorers": [
        "correlation", "simulation", "corpus", "ablation", "mismatched,empty", "detection",
        "fuzzing,intruder", "correlation,,x", "", ",",
    ],
    "explainer": ["lookup", "m", "m", "m", "", "other", "a\udc80"],
    "simulator": ["m", "", "x"],
    "where": [
        "lookup_score < 0.3", "1", "1 ==", "select 1", "mean > 1e999", "((((", "kurtosis in (1)",
        "layer", "index < 3 and explained", "max(1,", "abs()", "1/0", "min(mean) > 0", "ifnull(1)",
        "mean > 0 > 1", "not", "count(*) > 1", "mean is null", "a" * 2000,
    ],
    "price": ["1,1", "", "1", "x,y", "nan,1", "-1,1", "1,1,1", "1e400,1", "inf,1"],
    "kind": ["repetition", "single-token", "position", "typo", "beyond-lookup", "x", ""],
    "text": ["-", "the cat", "moon " * 300, "\x1b[2J", "\udc80", ""],
    "by": ["top_and_random", "random_only", "top_only", "x", ""],
    "method": ["lookup", "model", "x", ""],
    "layers": ["0", "0-5", "0-99999999", "x", "", "1", "9" * 5000],
    "device": ["cpu", "cuda", "mps", "x", "cuda:9", "meta", ""],
    "dtype": ["float32", "float16", "bfloat16", "x", ""],
    "column": ["text", "x", ""],
    "revision": ["main", "x", ""],
    "rater": ["Ada", "Ada", "Bob", "", "\n", "\x1b[2J", "\udc80", "a" * 100],
    "geometry": ["gpt2", "smollm2", "x", ""],
}  # fmt: skip
URLS = [
    "", "x", "http://", "http://[::1", "ftp://x", "http://127.0.0.1:99999/v1",
    "http://user:pw@127.0.0.1:9/v1", "http://\udc80/v1", "file:///etc/passwd", "127.0.0.1:9",
    "http://127.0.0.1:9/v1", "http://" + "a" * 300 + ".x/",
]  # fmt: skip
# How often an option is given that the command does little without.
LIKELY = {"explainer": 0.8, "base_url": 0.7, "corpus": 1.0, "rater": 0.9}
COMMANDS = ("explain", "explain", "explain", "show", "top", "find", "find", "search",
            "activate", "cost", "ingest", "sweep", "bench", "demo", "score", "ablate",
            "steer", "rate", "ratings")  # fmt: skip


class Arguments:
    """Draws command lines.

    Args:
        rng: a `random.Random`.
        folder: has a `run`, a `model`, a `text.txt`, and other files; new runs are written there.
        url: of a server.
    """

    def __init__(self, rng, folder, url):
        self._rng, self._folder, self._url = rng, folder, url
        self._commands = typer.main.get_command(app).commands
        for name, content in (("names", b"0:1\n0:2-4\n"), ("bytes", bytes(range(256))),
                              ("empty", b"")):  # fmt: skip
            (folder / name).write_bytes(content)
        (folder / "directory").mkdir(exist_ok=True)
        self._files = [str(folder / name) for name in ("names", "bytes", "empty", "directory")]
        self._files += ["/no/such", "/dev/null", "", "a" * 300, "\udc80", "/", ".", str(folder)]

    def draw(self):
        rng, chosen = self._rng, self._rng.choice(COMMANDS)
        if chosen == "demo":  # the whole of it takes minutes: it is given what can't be written
            out = rng.choice([*self._files[:3], str(self._folder / "run"), "a" * 300])
            return ["demo", "--out", out, "--neurons", rng.choice(NUMBERS)]
        options, positional = [chosen], []
        for parameter in self._commands[chosen].params:
            option = parameter.opts[0]
            if not option.startswith("-"):
                positional += self._positional(parameter)
            elif parameter.name == "run":
                options += [option, str(self._folder / rng.choice(["out", "run", "empty", "a/b"]))]
            elif "per_minute" in parameter.name:
                continue  # a low rate is waited for
            elif rng.random() < LIKELY.get(parameter.name, 0.12) and option != "--help":
                options.append(option)
                if not parameter.is_flag:
                    options.append(self._value(parameter))
        if chosen == "bench":  # measures nothing
            options += ["--layers", rng.choice(["0", "99", "x"])]
        if chosen == "explain" and rng.random() < 0.5:
            options.append("--yes")
        return [each.replace("\0", "") for each in options + positional]

    def _positional(self, parameter):
        rng = self._rng
        if parameter.name == "run" and rng.random() < 0.9:
            return [str(self._folder / "run")]
        if parameter.name in ("neuron", "neurons") and rng.random() < 0.7:
            names = ["0:1", "0:2", "0:*", "all", "0:1-3", *("@" + file for file in self._files[:4])]
            return [rng.choice(names)]
        count = 1 if parameter.nargs == 1 else rng.choice([0, 1, 1, 2])
        return [self._value(parameter) for _ in range(count)] if parameter.name != "more" else []

    def _value(self, parameter):
        rng, name = self._rng, parameter.name
        known = KNOWN.get(name.removeprefix("simulator_") if "price" in name else name)
        if name == "subject":
            known = [str(self._folder / "model")] * 4 + [*self._files, "x/y", "x.gguf"]
        elif name == "corpus":
            known = [str(self._folder / "text.txt")] * 4 + [*self._files, "stdlib/", "hf:", "-"]
        elif name.endswith("url"):
            known = [self._url] * 4 + URLS
        if known and rng.random() < 0.9:
            return rng.choice(known)
        kind = str(parameter.type_descriptor.annotation)
        if "int" in kind or "float" in kind:
            return rng.choice(NUMBERS) if rng.random() < 0.6 else str(rng.randrange(1, 10))
        return rng.choice(self._files if "Path" in kind else TEXTS)


def changed(rng, name, content):
    """A file's bytes changed by chance, in a way that suits its format."""
    if name.endswith(".json") and rng.random() < 0.8:
        return _changed_json(rng, content)
    if name.endswith(".safetensors") and rng.random() < 0.6:
        return _changed_header(rng, content)
    start = rng.randrange(len(content) + 1)
    length = rng.choice([1, 8, 512, 4096])
    behind = content[start + length :]
    return rng.choice([
        content[:start],
        content[:start] + rng.randbytes(length) + content[start:],
        content[:start] + rng.randbytes(length)[: len(content) - start] + behind,
        content[:start] + bytes(min(length, len(content) - start)) + behind,
        content[:start] + b"\xff" * min(length, len(content) - start) + behind,
        rng.randbytes(4) + content[4:],
        content[: min(start, 100)] + rng.randbytes(1) + content[min(start, 100) + 1 :],
    ])  # fmt: skip


def _changed_json(rng, content):
    whole = json.loads(content)
    for _ in range(rng.choice([1, 1, 2])):
        places = list(_places(whole))
        if not places:
            break
        inside, key = rng.choice(places)
        if rng.random() < 0.25:
            del inside[key]
        else:
            inside[key] = rng.choice(VALUES)
    return json.dumps(whole if rng.random() < 0.97 else rng.choice(VALUES)).encode()


def _places(value):
    """Containers with a key or index each, of all values within a value."""
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _places(value[key])


def _changed_header(rng, content):
    """A safetensors file whose header says something else."""
    [length] = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    names = [name for name in header if name != "__metadata__"]
    name, other = rng.choice(names), rng.choice(names)
    fields = header[name]
    match rng.randrange(6):
        case 0:
            del header[name]
        case 1:
            shapes = [[], [0], [2**40], [-1], fields["shape"][::-1], [*fields["shape"], 1]]
            fields["shape"] = rng.choice(shapes)
        case 2:
            fields["dtype"] = rng.choice(["F32", "F64", "I64", "I32", "U8", "BF16", "F16", "XX"])
        case 3:
            offsets = [[0, 0], [0, 2**62], [-1, 5], header[other]["data_offsets"]]
            fields["data_offsets"] = rng.choice(offsets)
        case 4:
            header[name], header[other] = header[other], header[name]
        case 5:
            sizes = [0, 1, 2**63, 2**64 - 1, length - 1, length + 8]
            return struct.pack("<Q", rng.choice(sizes)) + content[8:]
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + content[8 + length :]
