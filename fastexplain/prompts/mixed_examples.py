"""Four more invented neurons, each known in several ways.

Small models answer in the form of the last example, or with its very words: with the examples of
`examples.py` SmolLM2-135M says "the word ..." of every neuron, and where the last one here was that
of chapters and pages, it gave this answer to 15 of 24. So the forms differ, and the last answer
names tokens of its neuron and then what they are: whoever copies this form still says something of
the neuron at hand. They are made up, and so are their texts; no model was asked.
"""

from __future__ import annotations

from typing import NamedTuple

from fastexplain.prompts.evidence import Entry, Evidence
from fastexplain.prompts.examples import Example, marked_text


class Known(NamedTuple):
    """An invented neuron: what it reacts to, and all that is known of it."""

    explanation: str
    evidence: Evidence


KNOWN = [
    Known(
        "forms of the verb “pour”",
        Evidence(
            [
                marked_text(
                    "He| pour~9|ed~6| the| batter| into| a| tin|,| and| rain| was| pour~10|ing~6"
                    "| down| outside|."
                ),
                marked_text("Never| pour~9| hot| fat| away|;| she| once| pour~9|ed~5| some| out|."),
            ],
            [
                Entry(" pour", None, 10, 48),
                Entry("ed", " pour", 6, 21),
                Entry("ing", " pour", 6, 9),
            ],
            [["and", " then", " he", " walk", "ed"], ["a", " poor", " morn", "ing"]],
            [" into", " out", " over"],
        ),
    ),
    Known(
        "square brackets that close a list in code",
        Evidence(
            [
                marked_text("sizes| =| [|3|,| 5|]~10|\n|names| =| [|'|a|'|]~9|\n"),
                marked_text("for| x| in| [|1|,| 2|]~10|:|\n| | show|(|x|)"),
            ],
            [Entry("]", None, 10, 310), Entry("]", "'", 9, 87)],
            [["as", " he", " wrote", " [", "sic", "]"]],
            ["\n", ":", ")"],
        ),
    ),
    Known(
        "the number of a chapter, page or section, after the word for it",
        Evidence(
            [
                marked_text("See| chapter| 7~10| and| page| 31~9|,| but| not| the| 4| others|."),
                marked_text("Of| 12| rules| in| section| 9~10|,| 3| were| dropped|."),
            ],
            [
                Entry(" 7", " chapter", 10, 5),
                Entry(" 9", " section", 10, 4),
                Entry(" 31", " page", 9, 2),
            ],
            [["they", " sold", " all", " 7"], ["in", " just", " 9"]],
            [" of", ",", " describes"],
        ),
    ),
    Known(
        "rough weather, such as a gale, a storm or thunder",
        Evidence(
            [
                marked_text(
                    "A| gale~10| tore| at| the| tents|,| and| thunder~8| rolled| over| the| bay|."
                ),
                marked_text("Hail~7| broke| the| panes| before| the| storm~9| moved| north|."),
            ],
            [
                Entry(" gale", None, 10, 6),
                Entry(" storm", None, 9, 35),
                Entry(" thunder", None, 8, 14),
                Entry("Hail", None, 7, 3),
            ],
            [["took", " the", " hall", " by", " storm"]],
            [" winds", " waves", " struck"],
        ),
    ),
]  # fmt: skip

MIXED = [Example(known.explanation, list(known.evidence.texts)) for known in KNOWN]
