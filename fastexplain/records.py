"""What a reader of a run gets: a neuron's exemplars and statistics, as plain data.

Sizes in docstrings: `tokens` is the excerpt length, 64.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np

from fastexplain.errors import UsageError
from fastexplain.notebook import exemplar_html, neuron_html, sign_class_html


@dataclass(frozen=True)
class NeuronId:
    """A unit's name, `SITE:INDEX`; an MLP neuron's is `layer:index`.

    Attributes:
        layer, index: both count from 0.
        place: where in the layer, such as `e17` for expert 17 or `attn` for the heads' outputs;
            empty for the MLP's neurons.
    """

    layer: int
    index: int
    place: str = ""

    @property
    def site(self) -> str:
        """The layer's number, and the place if there is one: `5`, `5.e17`."""
        return f"{self.layer}.{self.place}" if self.place else str(self.layer)

    def __str__(self) -> str:
        return f"{self.site}:{self.index}"

    def __lt__(self, other: NeuronId) -> bool:
        return (self.layer, self.place, self.index) < (other.layer, other.place, other.index)

    @classmethod
    def of(cls, site: str, index: int) -> NeuronId:
        """The unit of a site such as `5` or `5.e17`."""
        layer, _, place = site.partition(".")
        return cls(int(layer), index, place)

    @classmethod
    def parse(cls, text: str) -> NeuronId:
        """Read `5:131`, `5.e17:131` or `blocks.5.mlp.hook_post:131`.

        Raises UsageError for anything else.
        """
        match = re.fullmatch(r"(\d{1,9}(?:\.\w+)?):(\d{1,9})", plain_name(text), re.ASCII)
        if match is None:
            raise UsageError(f"'{text}' does not name a neuron; write layer:index, as in 5:131")
        return cls.of(match[1], int(match[2]))


def plain_name(name: str) -> str:
    """A name of one or more neurons with TransformerLens' word for a layer replaced by its number.

    `blocks.5.mlp.hook_post:131` is `5:131`, and what it has behind the colon may be all that may
    stand there, such as `*`. Without a colon it is the whole layer, `5:*`. Other names stay as
    they are.
    """
    match = re.fullmatch(r"blocks\.([0-9]+)\.mlp\.hook_post(?::(.*))?", name.strip())
    if match is None:
        return name.strip()
    layer, indices = match.groups()
    return f"{layer}:{'*' if indices is None else indices.strip()}"


@dataclass(frozen=True)
class Site:
    """What a run holds units of.

    Attributes:
        name: such as `5`, or `5.e17`; see `NeuronId.site`.
        kind: what they are: "mlp" for the neurons of a layer's MLP.
        units: how many.
        counted_tokens: tokens that their statistics are over; an expert sees only some.
    """

    name: str
    kind: str
    units: int
    counted_tokens: int

    @property
    def layer(self) -> int:
        return int(self.name.partition(".")[0])


@dataclass(frozen=True)
class Exemplar:
    """One excerpt and a neuron's activations on it.

    Attributes:
        excerpt: the excerpt's global id.
        token_ids: int32 `[tokens]`.
        tokens: the same, as text; bytes that are not UTF-8 on their own show as U+FFFD.
        activations: float32 `[tokens]`; exact for float32, float16 and bfloat16 subjects.
    """

    excerpt: int
    token_ids: np.ndarray = field(repr=False)
    tokens: list[str] = field(repr=False)
    activations: np.ndarray = field(repr=False)

    def _repr_html_(self) -> str:
        """The excerpt as a notebook shows it."""
        return exemplar_html(self)


@dataclass(frozen=True)
class Statistics:
    """A neuron over all counted tokens of the sweep.

    Attributes:
        count: counted tokens.
        mean, variance: of the activation; the variance is the population's.
        skewness, kurtosis: third and fourth standardised moments (a normal's kurtosis is 3);
            NaN where the variance is 0, or too small beside the mean to tell.
        fraction_positive: share of counted tokens with activation > 0.
        mean_positive: mean of max(activation, 0), the g of the lookup formulas.
        minimum, maximum: extremes.
        histogram: int64 `[bins]`, excerpts by their largest counted activation.
        histogram_edges: float64 `[bins - 1]`, the inner edges between those bins.
        histogram_excerpts: int32 `[bins, kept]`, of each bin the excerpts with the smallest seeded
            hashes, in that order: a random sample of the bin. -1 where it has fewer; `kept` is 4,
            and 1 in a run of an earlier version.
    """

    count: int
    mean: float
    variance: float
    skewness: float
    kurtosis: float
    fraction_positive: float
    mean_positive: float
    minimum: float
    maximum: float
    histogram: np.ndarray
    histogram_edges: np.ndarray
    histogram_excerpts: np.ndarray


@dataclass(frozen=True)
class SignClass:
    """A gated MLP's neuron, f(gate) * up, on the tokens at which its factors have certain signs.

    Attributes:
        name: whether f(gate) is above 0, then whether up is: `++`, `+-`, `-+` or `--`. With silu
            and gelu f(gate) is above 0 where gate is. A token whose activation is 0 counts as one
            whose f(gate) is not above 0.
        tokens: counted tokens of the class.
        share: of all counted tokens.
        mean, variance: of the activation on them; NaN without any.
        mass: of what the neuron is above 0 (in `++` and `--`) or below 0 (in `+-` and `-+`), summed
            over all counted tokens, the share that is on those of the class; NaN of nothing.
        extreme: the activation farthest from 0; 0 without any.
        exemplars: excerpts by largest |activation| above 0 on a counted token of the class, best
            first, with all of their activations.
        members: of each exemplar, bool `[tokens]`: which of its tokens are of the class.
    """

    name: str
    tokens: int
    share: float
    mean: float
    variance: float
    mass: float
    extreme: float
    exemplars: list[Exemplar] = field(repr=False)
    members: list[np.ndarray] = field(repr=False)

    @property
    def above(self) -> bool:
        """Whether the neuron is above 0 on the class's tokens: the two signs are the same."""
        return self.name[0] == self.name[1]

    def _repr_html_(self) -> str:
        """The class as a notebook shows it."""
        return sign_class_html(self)


@dataclass(frozen=True)
class NeuronRecord:
    """All that a run holds of one neuron.

    Attributes:
        id: the neuron.
        skip: the first counted token of every excerpt; tokens before it don't enter keys,
            statistics, prompts or scores.
        top: exemplars by largest counted activation, best first.
        bottom: by smallest, most negative first; empty unless the sweep kept them.
        random: the random exemplars, the same excerpts for all neurons, in hash order.
        statistics: over the whole sweep.
    """

    id: NeuronId
    skip: int
    top: list[Exemplar] = field(repr=False)
    bottom: list[Exemplar] = field(repr=False)
    random: list[Exemplar] = field(repr=False)
    statistics: Statistics = field(repr=False)

    def _repr_html_(self) -> str:
        """The neuron as a notebook shows it."""
        return neuron_html(self)
