"""Which neurons names, samples and conditions mean."""

import math
import shutil
import tracemalloc

import numpy as np
import planted
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastexplain
from fastexplain.errors import UsageError
from fastexplain.explainers.lookup import store_lookup
from fastexplain.records import NeuronId
from fastexplain.results import ExplanationRow, Scores
from fastexplain.run.conditions import Condition
from fastexplain.run.selection import CONDITION_NAMES, parse_layers, select_neurons

WIDTH = 48  # of each of the tiny subject's 4 layers


def sweep(subject, path, **settings):
    tokens = np.random.default_rng(0).integers(1, 257, (40, 64)).astype(np.int32)
    return fastexplain.sweep(subject, fastexplain.Corpus.from_excerpts(tokens), path, **settings)


@pytest.fixture(scope="module")
def run(make_model, make_tokenizer, tmp_path_factory):
    subject = fastexplain.Subject.from_model(make_model(), make_tokenizer(), name="tiny")
    return sweep(subject, tmp_path_factory.mktemp("selection") / "run")


@pytest.fixture(scope="module")
def scored_run(planted_subject, planted_corpus, tmp_path_factory):
    """The planted neurons, with lookup scores."""
    out = tmp_path_factory.mktemp("selection") / "run"
    run = fastexplain.sweep(planted_subject, planted_corpus, out, batch_size=48)
    store_lookup(run)
    return run


def named(run, *names, **options):
    return [str(neuron) for neuron in select_neurons(run, names, **options)]


def whole(*layers):
    return [f"{layer}:{index}" for layer in layers for index in range(WIDTH)]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["1:5"], ["1:5"]),
        (["2:*"], whole(2)),
        (["1-2:*"], whole(1, 2)),
        (["0-1,3:*"], whole(0, 1, 3)),
        (["3,0:*"], whole(3, 0)),
        (["1:3-5"], ["1:3", "1:4", "1:5"]),
        (["0,2:7,1-2"], ["0:7", "0:1", "0:2", "2:7", "2:1", "2:2"]),
        (["all"], whole(0, 1, 2, 3)),
        (["1:7", "1:5-7", "1:5"], ["1:7", "1:5", "1:6"]),
        ([" 1:5 "], ["1:5"]),
        (["blocks.1.mlp.hook_post:5"], ["1:5"]),
        ([" blocks.1.mlp.hook_post:3-4,0 "], ["1:3", "1:4", "1:0"]),
        (["blocks.2.mlp.hook_post", "blocks.0.mlp.hook_post:*"], whole(2, 0)),
        ([], []),
    ],
)
def test_names_stand_for_neurons_each_once_in_order(run, names, expected):
    assert named(run, *names) == expected


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("5", "'5' does not name neurons; write layer:index, as in 5:131, or 5:*"),
        ("5:", "does not name neurons"),
        ("*:5", "does not name neurons"),
        ("1:2-", "does not name neurons"),
        ("-1:2", "does not name neurons"),
        ("blocks.1.mlp.hook_pre:2", "'blocks.1.mlp.hook_pre:2' does not name neurons"),
        ("blocks.1.mlp.hook_post:", "does not name neurons"),
        ("1:1,,2", "does not name neurons"),
        ("1:" + "9" * 5000, "does not name neurons"),
        ("\u0661:\u0662", "does not name neurons"),
        ("", "does not name neurons"),
        ("1:9-5", "the range 9-5 ends before it begins"),
        ("3-1:*", "the range 3-1 ends before it begins"),
        ("7:*", "layer 7 was not swept"),
        ("2-999999999:*", "layer 999999999 was not swept"),
        ("1:48", "there is no neuron 1:48; layer 1 has neurons 1:0 to 1:47"),
        ("1:0-999999999", "there is no neuron 1:999999999"),
    ],
)
def test_what_names_no_neuron_is_refused(run, name, message):
    with pytest.raises(UsageError) as caught:
        select_neurons(run, [name])
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_range_over_a_layer_that_was_not_swept_is_refused(tiny_subject, tmp_path):
    run = sweep(tiny_subject, tmp_path / "run", layers=[0, 2])
    assert named(run, "all") == named(run, "0,2:*") == whole(0, 2)
    with pytest.raises(UsageError, match="layer 1 was not swept"):
        select_neurons(run, ["0-2:*"])


def test_a_file_has_a_name_a_line(run, tmp_path):
    file = tmp_path / "names.txt"
    file.write_text(
        "\ufeff# my neurons\n1:5\n\n  2:0-1  # two more\r\n1:5\n3:*\n", encoding="utf-8"
    )
    assert named(run, f"@{file}", "0:0") == ["1:5", "2:0", "2:1", *whole(3), "0:0"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"1:5\n\n1:x\n", "names.txt:3: '1:x' does not name neurons"),
        (b"# none\n1:48", "names.txt:2: there is no neuron 1:48"),
        (b"9:*", "names.txt:1: layer 9 was not swept"),
        (b"@other", "names.txt:1: '@other' does not name neurons"),
        (b"\n# none\n", "names.txt names no neurons"),
        (b"\xff", "names.txt is not UTF-8 text"),
    ],
)
def test_errors_in_a_file_name_its_line(run, tmp_path, content, message):
    file = tmp_path / "names.txt"
    file.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        select_neurons(run, [f"@{file}"])
    assert message in str(caught.value)


def test_a_file_without_end_is_refused_before_it_fills_memory(run):
    with pytest.raises(UsageError, match=r"/dev/zero is larger than 67,108,864 bytes"):
        select_neurons(run, ["@/dev/zero"])


@pytest.mark.parametrize("name", ["@", "@/", "@\0", "@/no/such"])
def test_what_is_no_file_says_so(run, name):
    with pytest.raises(UsageError, match="can't be read: "):
        select_neurons(run, [name])


def test_names_that_stand_for_the_same_neurons_cost_no_memory(run, tmp_path):
    """Ten million times all neurons."""
    file = tmp_path / "names.txt"
    file.write_text("0-3:*\n" * 1000 + f"0:{','.join(['0-47'] * 10_000)}\n")
    tracemalloc.start()
    try:
        found = named(run, f"@{file}")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found == whole(0, 1, 2, 3) and peak < 2**24


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0-99999999", "layer 99999999 is higher than any model's"),
        ("9999-10000", "layer 10000 is higher than any model's"),
        ("9" * 5000, "names no layers; write numbers and ranges"),
        ("\u0663", "names no layers"),
    ],
)
def test_layers_are_bounded_before_they_are_listed(text, message):
    with pytest.raises(UsageError, match=message):
        parse_layers(text)


def test_a_missing_file_is_an_error(run, tmp_path):
    with pytest.raises(UsageError, match="No such file"):
        select_neurons(run, [f"@{tmp_path / 'none'}"])


def test_a_sample_depends_on_its_seed_and_not_on_the_order_of_names(run):
    sample = named(run, "1:*", "3:*", sample=20, seed=1)
    assert len(set(sample)) == 20 and set(sample) <= set(whole(1, 3))
    assert sample == sorted(sample, key=NeuronId.parse)
    assert named(run, "3:5", "3:*", "1:*", sample=20, seed=1) == sample
    assert named(run, "1:*", "3:*", sample=20, seed=2) != sample
    assert set(sample) < set(named(run, "1,3:*", sample=30, seed=1))
    assert named(run, "1:*", sample=1000) == whole(1)


def test_a_sample_of_nothing_named_is_of_all(run):
    sample = named(run, sample=60, seed=-7)
    assert sample == named(run, "all", sample=60, seed=-7)
    assert {name[0] for name in sample} == set("0123")


def test_samples_are_uniform(run):
    """Of 192 neurons 48 at a time; 400 draws of each come to 100, give or take 9."""
    drawn = [name for seed in range(400) for name in named(run, sample=48, seed=seed)]
    counts = np.unique(drawn, return_counts=True)[1]
    assert len(counts) == 4 * WIDTH and counts.min() > 60 and counts.max() < 140
    assert 6 < counts.std() < 11  # sqrt(400 * 1/4 * 3/4) is 8.7


@pytest.mark.parametrize("sample", [0, -5])
def test_a_sample_of_none_is_refused(run, sample):
    with pytest.raises(UsageError, match="`sample` takes"):
        select_neurons(run, [], sample=sample)


def test_statistics_of_a_layer_are_those_of_its_neurons(scored_run):
    layer = scored_run.statistics(0)
    for index in (*range(planted.NEVER + 1), planted.NEURONS - 1):
        own = scored_run.neuron(NeuronId(0, index)).statistics
        for name, values in layer.items():
            assert values.dtype == np.float64 and values.shape == (planted.NEURONS,)
            np.testing.assert_equal(values[index], getattr(own, name))


def test_conditions_read_statistics(scored_run):
    chosen = named(scored_run, where="maximum > 0 and fraction_positive < 0.5")
    expected = [planted.CAT, planted.DIGIT, planted.MOON_AFTER_BRIGHT, planted.RIVER_OR_STONE,
                planted.RARE]  # fmt: skip
    assert chosen == [f"0:{index}" for index in expected]
    assert named(scored_run, "0:5", "0:4", where="mean_positive > 0") == ["0:5", "0:4"]
    rare = named(scored_run, where="kurtosis > 500 and minimum >= 0")
    assert rare == [f"0:{planted.RARE}"]
    assert named(scored_run, where="layer == 0 and 3 <= index < 5") == ["0:3", "0:4"]
    # Neurons that never fire have neither skewness nor scores.
    assert len(named(scored_run, where="not skewness < 1e9")) >= planted.NEURONS - planted.NEVER


def test_conditions_read_lookup_scores(scored_run):
    with scored_run.database() as database:
        rows = database.best(200, "lookup")
    middle = rows[len(rows) // 2].scores.top_and_random
    high = {str(row.neuron) for row in rows if row.scores.top_and_random > middle}
    assert 0 < len(high) < len(rows)
    assert set(named(scored_run, where=f"lookup_score > {middle!r}")) == high
    either = named(scored_run, where="lookup_score > 0.9 or lookup_score <= 0.9")
    assert set(either) == {str(row.neuron) for row in rows}
    assert set(named(scored_run, where="lookup_random_score >= 0.99")) == {
        str(row.neuron) for row in rows if (row.scores.random_only or 0) >= 0.99
    }


def explain(database, index, text, *scores, model="m"):
    row = ExplanationRow(NeuronId(1, index), "model", model, "1", text, failure=text and None)
    [key] = database.add_explanations([row])
    for number, score in enumerate(scores):
        values = Scores(None if score is None else score / 2, score, None, 5, 5)
        database.add_scores("correlation", "s", f"readout {number}", {key: values.measured()})


def test_conditions_read_the_newest_explanation_by_a_model(run, tmp_path):
    run = fastexplain.open_run(shutil.copytree(run.path, tmp_path / "copy"))
    with run.database() as database:
        explain(database, 0, "high", 0.8)
        explain(database, 1, "low", 0.2)
        explain(database, 2, "not scored")
        explain(database, 3, None)
        explain(database, 4, "undefined", None)
        explain(database, 5, "former", 0.9)
        explain(database, 5, "newer", 0.1, model="n")
        explain(database, 6, "scored twice", 0.3, 0.7)
        explain(database, 7, "good", 0.6)
        explain(database, 7, None, model="n")
    assert named(run, where="score > 0.5") == ["1:0", "1:6", "1:7"]
    assert named(run, where="score <= 0.5") == ["1:1", "1:5"]
    assert named(run, where="random_score < 0.06") == ["1:5"]
    assert named(run, where="explained") == [f"1:{i}" for i in (0, 1, 2, 4, 5, 6, 7)]
    assert named(run, "1:0-4", where="not explained") == ["1:3"]
    assert named(run, "1:0-4", where="explained == 0 or score > 0.5") == ["1:0", "1:3"]
    assert len(named(run, sample=5, where="explained")) == 5


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("index > 1000", "of 192 neurons none has index > 1000"),
        ("index\n>  1000", "of 192 neurons none has index > 1000"),
        ("lookup_score < 0.3", "fastexplain explain RUN does that"),
        ("score < 0.3", "by a language model none is scored yet"),
        ("loookup_score < 0.3", "can't be used: there is no 'loookup_score'"),
        ("loookup_score < 0.3", "the columns are layer, index, mean"),
        ("kurtosis >", "something is missing or out of place"),
        ("", "something is missing or out of place"),
        ("mean ** 2 > 1", "something is missing or out of place"),
        ("mean > 1j", "there is no 'j'"),
        ("mean > 1 /* or 1 */", "something is missing or out of place"),
        ("abs(1, 2) > 1", "a function has too few or too many values"),
        ("mean collate x > 1", "there is no 'collate'"),
        ("max(mean) > 1", "a function has too few values"),
        ("(" * 900, "its parentheses don't match"),
        ("mean > 1) or (1 > 0", "its parentheses don't match"),
        ("(" * 400 + "mean > 1" + ")" * 400, "it has too many parentheses"),
        ("-" * 2000 + "1 > 0", "longer than 1000 characters"),
        ("mean\0b", "'\0b' is not understood"),
        ("mean > 0; mean < 1", "';' is not understood"),
        ("mean > '1'", "''1'' is not understood"),
        ('"mean" > 1', "'\"mean\"' is not understood"),
        ("mean.real > 1", "'.real' is not understood"),
        ("mean[0] > 1", "'[0]' is not understood"),
        ("mean > 0 & mean < 1", "'&' is not understood"),
        ("mean > \u0661", "'\u0661' is not understood"),
        ("mean in (SELECT 1)", "'SELECT' is not understood"),
        ("mean in sqlite_master", "there is no 'sqlite_master'"),
        ("random() > 0", "there is no 'random'"),
        ("load_extension(1)", "there is no 'load_extension'"),
        ("mean like 1", "there is no 'like'"),
    ],
)
def test_other_conditions_are_refused_in_one_line(run, where, message):
    with pytest.raises(UsageError) as caught:
        select_neurons(run, [], where=where)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def holds(text, **values):
    columns = {name: np.array(column, dtype=np.float64) for name, column in values.items()}
    return Condition(text, columns).select(columns).tolist()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a = 1 or a <> 1", [False, True, True]),
        ("a is null", [True, False, False]),
        ("a NOT BETWEEN 1 AND 2", [False, False, True]),
        ("a in (1, 2)", [False, True, False]),
        ("abs(a - b) < 1", [False, True, False]),
        ("max(a, b) > 0 and min(a, b) < 1", [False, False, True]),
        ("index % 2 == 1", [True, False, True]),
        ("index > 5 / 2", [False, False, True]),
        ("index == 1--1", [False, True, False]),
        ("not (0 < index) <= 1 < index", [True, False, False]),
        (".5e1 > index > 1.", [False, True, True]),
    ],
)
def test_conditions_are_sql(text, expected):
    assert holds(text, a=[math.nan, 1, 0], b=[1, 1, 1], index=[1, 2, 3]) == expected


def test_undefined_values_compare_false():
    values = {"a": [math.nan, 1, 0], "b": [1, 1, 1]}
    assert holds("a != 1", **values) == [False, False, True]
    assert holds("not a == 1", **values) == [True, False, True]
    assert holds("b / a > 0", **values) == [False, True, False]
    assert holds("0 < b <= a", **values) == [False, True, False]
    assert holds("-a + 2 * b - 1 == 0", **values) == [False, True, False]
    assert holds("1 < 2 or a > 0", **values) == [True, True, True]


def test_every_known_name_has_values(scored_run):
    for name in CONDITION_NAMES:
        where = f"{name} < 1e9 or index >= 0"
        assert len(named(scored_run, where=where)) == planted.NEURONS


_LEAVES = st.sampled_from(["a", "b", "1.5", "-2", "0"])
_NUMBERS = st.recursive(
    _LEAVES,
    lambda inner: st.tuples(inner, st.sampled_from("+-*/"), inner).map(
        "({0[0]} {0[1]} {0[2]})".format
    ),
)
_SIGNS = st.sampled_from(["<", "<=", ">", ">=", "==", "!="])
_TRUTHS = st.recursive(
    st.one_of(
        st.tuples(_NUMBERS, _SIGNS, _NUMBERS).map("{0[0]} {0[1]} {0[2]}".format),
        st.tuples(_NUMBERS, _SIGNS, _NUMBERS, _SIGNS, _NUMBERS).map(" ".join),
    ),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["and", "or"]), inner).map(
            "({0[0]} {0[1]} {0[2]})".format
        ),
        inner.map("(not {})".format),
    ),
)


_QUARTERS = st.integers(-40, 40).map(lambda number: number / 4)


@given(_TRUTHS, _QUARTERS, _QUARTERS)
def test_conditions_mean_what_they_mean_in_python(text, a, b):
    """Where nothing is divided by 0, which Python refuses."""
    try:
        expected = eval(text, {}, {"a": a, "b": b})
    except ZeroDivisionError:
        return
    if len(text) <= 1000:
        assert holds(text, a=[a], b=[b]) == [expected]


_PIECES = [*"ab1.,()<>=!-+*/%;'\"&\0 e", " and ", " or ", " not "]


@given(st.lists(st.sampled_from(_PIECES)).map("".join))
def test_any_text_is_a_condition_or_refused(text):
    try:
        Condition(text, ("a", "b"))
    except UsageError as error:
        assert "the columns are a, b" in str(error) and "\n" not in str(error)
