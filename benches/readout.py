"""Which readout makes a small simulator follow an explanation: `python benches/readout.py`.

1. 48 invented neurons, each an explanation and patterns that say where in a text it fires, over
   excerpts of the standard library's documentation and sources: three in which it fires, and
   three that all neurons share.
2. SmolLM2 in this process reads every excerpt under the neuron's explanation and under the empty
   one, with each of three fillers in the prompt.
3. Each form of readout makes values of these distributions; they are correlated with the truth,
   tokens of all excerpts pooled, as scores are.

The form is chosen by the even neurons and reported by the odd ones. Nothing is drawn at random.
About 1,100 readings, 10 minutes on 2 cores.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fastexplain import Corpus, load_subject
from fastexplain.llm import Connection, connect
from fastexplain.llm.requests import Distribution
from fastexplain.prompts import simulator
from fastexplain.puzzles.texts import matches
from fastexplain.results import Sample, Scores
from fastexplain.scorers.correlation import Correlation
from fastexplain.simulators.model import EMPTY
from fastexplain.simulators.readouts import contrast, expected

_SHARED, _OWN = 3, 3
_EXCERPTS = 4096


@dataclass(frozen=True)
class Neuron:
    """Fires on what matches: 10 on the tokens of `strong` (of its group, if it has one), 4 on
    those of `weak`."""

    explanation: str
    strong: str
    weak: str | None = None
    flags: int = re.IGNORECASE

    def values(self, tokens: list[str]) -> np.ndarray:
        """int `[tokens]`, from 0 to 10."""
        values = np.zeros(len(tokens), dtype=int)
        for pattern, value in ((self.weak, 4), (self.strong, 10)):
            if pattern is not None:
                case = "(?i)" if self.flags & re.IGNORECASE else ""
                values[matches(case + pattern, tuple(tokens)) > 0] = value
        return values


def _words(words: str) -> str:
    return rf"\b(?:{'|'.join(words.split())})\b"


NEURONS = [
    Neuron("the word “the”", r"\bthe\b", r"\b(?:a|an|this|that)\b"),
    Neuron("digits and numbers", r"\d+"),
    Neuron("commas, full stops and other punctuation", r"[.,;:!?]"),
    Neuron("words that begin with a capital letter", r"\b[A-Z][a-z]+\b", flags=0),
    Neuron("quotation marks", "['\"“”]+"),
    Neuron("opening and closing brackets", r"[()\[\]{}]"),
    Neuron("names of exceptions and errors", r"\b\w*(?:Error|Exception|Warning)\b", flags=0),
    Neuron("line breaks", r"\n+"),
    Neuron("keywords of Python, such as if, return and def",
           _words("class def else elif except finally for from if import lambda pass raise return "
                  "try while with yield"), flags=0),
    Neuron("numbers written as words", _words("one two three four five six seven eight nine ten "
                                              "hundred thousand"), _words("first second third")),
    Neuron("names of months and of days of the week",
           _words("january february march april june july august september october november "
                  "december monday tuesday wednesday thursday friday saturday sunday")),
    Neuron("the word “and”", r"\band\b", r"\bor\b"),
    Neuron("verbs in the past tense", r"\b(?:was|were|had|did|been|got|made|gave|took|\w{2,}ed)\b"),
    Neuron("the word that follows “of”", r"\bof (\w+)"),
    Neuron("negations such as not, never and no", r"\b(?:not|no|never|none|cannot)\b|\w+n't\b",
           r"\b(?:without|neither|nor)\b"),
    Neuron("names of colours", _words("red green blue black white yellow orange purple gray grey "
                                      "brown pink cyan magenta"), r"\bcolou?rs?\b"),
    Neuron("underscores in names", r"_+"),
    Neuron("prepositions such as in, on and at", _words("in on at of to from by with for into")),
    Neuron("the word “self”", r"\bself\b"),
    Neuron("words that end in “ing”", r"\b\w+ing\b"),
    Neuron("True, False and None", r"\b(?:True|False|None)\b", flags=0),
    Neuron("addresses on the internet", r"(?:https?://|www\.)[^\s>)\"']+"),
    Neuron("words for files, folders and paths",
           _words("files? filenames? director(?:y|ies) folders? paths?")),
    Neuron("modal verbs such as can, may and should",
           _words("can could may might must shall should will would")),
    Neuron("words for time, such as seconds and hours",
           _words("seconds? minutes? hours? days? years? weeks? months?"), _words("times? dates?")),
    Neuron("equals signs and other operators", r"[=+*/<>%&|]+"),
    Neuron("words about networks and connections",
           _words("sockets? servers? clients? connections? hosts? hostname ports? http tcp ip")),
    Neuron("the word “is”", r"\bis\b", r"\b(?:are|was|were|be)\b"),
    Neuron("plural nouns", r"\b[a-z]{3,}(?<!s)s\b", flags=0),
    Neuron("the word “if”", r"\bif\b", r"\b(?:else|elif|unless|whether)\b"),
    Neuron("words written in capital letters throughout", r"\b[A-Z]{2,}\b", flags=0),
    Neuron("words about errors and failure",
           r"\b(?:error|errors|fail|fails|failed|failure|invalid|wrong|illegal)\b"),
    Neuron("single letters that stand alone", r"(?<![\w'])[a-z](?!\w)"),
    Neuron("words about email and messages",
           _words("mail email e-mail messages? headers? mailbox addresses mime")),
    Neuron("the beginning of a comment in code", r"#+"),
    Neuron("words about sizes and lengths", _words("size sizes length lengths width height long "
                                                   "short large small bytes bits")),
    Neuron("question words such as what, when and how", _words("what when where which who "
                                                                   "why how")),
    Neuron("names of data types, such as list and string",
           _words("int integers? floats? str strings? lists? dict dictionar(?:y|ies) tuples? sets? "
                  "bool boolean")),
    Neuron("words about threads and processes", _words("threads? threading process "
                                                       "processes locks? fork pid")),
    Neuron("the word that comes after “import”", r"\bimport (\w+)"),
    Neuron("pronouns such as it, they and you", _words("i you he she it we they them him her us")),
    Neuron("words about windows, buttons and mice",
           _words("windows? buttons? mouse widgets? menus? canvas click")),
    Neuron("dots between names", r"(?<=\w)\.(?=\w)"),
    Neuron("words about comparing, such as equal and less",
           _words("equal equals less greater than compare comparison same different")),
    Neuron("words about the end of things, such as stop and last",
           _words("end ends ended stop stops last final finally finish finished close closed")),
    Neuron("words that begin with “re”", r"\bre\w{2,}\b"),
    Neuron("the word “to” before a verb", r"\b(to) [a-z]+\b"),
    Neuron("words about languages and alphabets", _words("unicode ascii encodings? language "
                                                         "characters? letters? locale utf")),
]  # fmt: skip


def log_odds(log_probabilities: np.ndarray) -> np.ndarray:
    """The log-odds of any reaction against none, `[tokens]`."""
    some = np.logaddexp.reduce(log_probabilities[:, 1:], axis=1)
    return (some - log_probabilities[:, 0]).astype(np.float64)


Form = Callable[[np.ndarray, np.ndarray], np.ndarray]


def _differences(name: str, measure: Callable[[np.ndarray], np.ndarray]) -> dict[str, Form]:
    def plain(rows: np.ndarray, null: np.ndarray) -> np.ndarray:
        return measure(rows) - measure(null)

    return {name: plain, f"{name}, from 0 up": lambda r, n: np.maximum(plain(r, n), 0)}


FORMS: dict[str, Form] = {
    "expected": lambda rows, null: expected(rows),
    **_differences("difference of expectations", expected),
    **_differences("difference of their logarithms", lambda rows: np.log(expected(rows))),
    **_differences("difference of log-odds", log_odds),
    "expected where the log-odds are above the null's": lambda rows, null: np.where(
        log_odds(rows) > log_odds(null), expected(rows), 0
    ),
}


def excerpts_of(neuron: Neuron, texts: list[list[str]]) -> list[int]:
    """The excerpts that all share, and the first of the others in which it fires twice."""
    found = (place for place in range(_SHARED, len(texts)) if _fires(neuron, texts[place]))
    return [*range(_SHARED), *(place for place, _ in zip(found, range(_OWN), strict=False))]


def _fires(neuron: Neuron, tokens: list[str]) -> bool:
    return int((neuron.values(tokens) == 10).sum()) >= 2


async def read(
    connection: Connection, filler: str, jobs: list[tuple[str, list[str]]]
) -> list[np.ndarray]:
    """The distributions `[tokens, integers]` of each (explanation, tokens)."""
    capabilities = connection.capabilities or await connection.probe()
    requests = (simulator.reading(*job, capabilities.largest, filler) for job in jobs)
    responses = await asyncio.gather(*map(connection.ask, requests))
    return [r.log_probabilities for r in responses if isinstance(r, Distribution)]


async def main() -> None:
    subject = load_subject("smollm2", device="cpu")
    corpus = Corpus(["stdlib"], subject.tokenizer, excerpts=_EXCERPTS)
    texts = [[subject.tokenizer.decode([i]) for i in row] for row in corpus.tokens]
    chosen = {neuron: excerpts_of(neuron, texts) for neuron in NEURONS}
    jobs = [(neuron.explanation, place) for neuron in NEURONS for place in chosen[neuron]]
    jobs += [(EMPTY, place) for place in sorted({place for _, place in jobs})]
    print(f"{len(NEURONS)} neurons, {len(jobs)} readings with each filler")
    table = []
    async with connect("smollm2", local=True) as connection:
        for filler in ("unknown", "?", "0"):
            rows = await read(connection, filler, [(text, texts[place]) for text, place in jobs])
            found = dict(zip(jobs, rows, strict=True))
            for name, form in {**FORMS, "the one in use": contrast}.items():
                scores = [_score(neuron, chosen[neuron], texts, found, form) for neuron in NEURONS]
                table.append((filler, name, np.array(scores, dtype=float)))
    for filler, name, scores in sorted(table, key=lambda row: -np.nanmean(row[2][::2])):
        even, odd = scores[::2], scores[1::2]
        error = np.nanstd(odd) / np.sqrt(np.isfinite(odd).sum())
        print(
            f"{filler:8} {name:50} chosen by {np.nanmean(even):+.3f}   reported "
            f"{np.nanmean(odd):+.3f} ± {error:.3f}, median {np.nanmedian(odd):+.3f}"
        )


def _score(
    neuron: Neuron,
    places: list[int],
    texts: list[list[str]],
    found: dict[tuple[str, int], np.ndarray],
    form: Form,
) -> float | None:
    simulated = [
        Sample(
            place,
            place >= _SHARED,
            neuron.values(texts[place]),
            form(found[neuron.explanation, place], found[EMPTY, place]),
        )
        for place in places
    ]
    return Scores.of(Correlation().score(None, neuron.explanation, simulated)).top_and_random


if __name__ == "__main__":
    asyncio.run(main())
