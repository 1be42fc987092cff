"""Three invented neurons, shown to explainer and simulator as examples.

They are made up, and so are their texts; no model was asked. One reacts to a meaning, one to many
tokens of a text, and one to a single word. That one comes last, since it is the commonest kind
and small models follow the last example most.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Example:
    """An invented neuron.

    Attributes:
        explanation: what the neuron reacts to, as the explainer should word it.
        texts: its exemplars; a text is a list of (token, value), values from 0 to 10.
    """

    explanation: str
    texts: list[list[tuple[str, int]]]


def marked_text(marked: str) -> list[tuple[str, int]]:
    """Read tokens set apart by `|`, values above 0 after `~`."""
    parts = (piece.partition("~") for piece in marked.split("|"))
    return [(token, int(value or 0)) for token, _, value in parts]


EXAMPLES = [
    Example(
        "pots, pans and other things to cook with",
        [
            marked_text(
                "She| put| the| kettle~9| back| on| the| stove~6|,| scrubbed| the| pan~10| and"
                "| went| looking| for| a| clean| lad~4|le~8|."
            ),
            marked_text(
                "Nobody| had| packed| a| corks~1|crew~5|,| so| the| evening| ended| with| tea"
                "| from| a| dented| sauce~7|pan~10|."
            ),
        ],
    ),
    Example(
        "years and dates",
        [
            marked_text(
                "Founded| in~1| 18~7|74~10|,| closed| on| 3~5| May~8| 1~6|931~9|,| sold| by"
                "| auction| that| June~6|."
            ),
            marked_text(
                "From| April~7| 2~5|009~10| to~3| 2~6|012~10| the| road| to| the| lighthouse"
                "| was| shut|."
            ),
        ],
    ),
    Example(
        "the word “than”",
        [
            marked_text(
                "The| new| bridge| is| longer| than~10| the~1| old| one|,| but| it| sways| more"
                "| than~9| anyone| likes| to| admit|."
            ),
            marked_text(
                "Rain| fell| for| weeks|.| Our| cellar| took| in| less| water| than~10| theirs"
                "|,| which| was| lucky|."
            ),
        ],
    ),
]
