"""Hugging Face data sets as sources, from directories: no test reaches a network."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import datasets
import pytest
from documents import held, random_ids, spelled, windows, write_rows

from fastexplain.errors import CorpusError
from fastexplain.text.corpus import Corpus
from fastexplain.text.hub import parse

DOCUMENTS = [random_ids(200, seed) for seed in range(6)]
TRAIN, TEST = DOCUMENTS[:4], DOCUMENTS[4:]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A directory of two splits."""
    folder = tmp_path_factory.mktemp("plain")
    write_rows(folder / "train.jsonl", TRAIN)
    write_rows(folder / "test.jsonl", TEST)
    return folder


@pytest.fixture(scope="module")
def configured(tmp_path_factory):
    """A directory of two configurations with a split each, neither of them a default."""
    folder = tmp_path_factory.mktemp("configured")
    lines = ["---", "configs:"]
    for name, split, documents in (("easy", "train", TRAIN), ("hard", "held.out", TEST)):
        (folder / name).mkdir()
        write_rows(folder / name / "rows.jsonl", documents)
        files = [f"  data_files:\n  - split: {split}", f"    path: {name}/rows.jsonl"]
        lines += [f"- config_name: {name}", *files]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Directories that `save_to_disk` wrote: of one split, and of two by name."""
    folder = tmp_path_factory.mktemp("saved")
    train, test = (
        datasets.Dataset.from_dict({"id": range(len(rows)), "text": list(map(spelled, rows))})
        for rows in (TRAIN, TEST)
    )
    train.save_to_disk(folder / "one")
    datasets.DatasetDict({"train": train, "test": test}).save_to_disk(folder / "two")
    return folder


def refused(source, words, **settings) -> str:
    with pytest.raises(CorpusError) as caught:
        Corpus([source], words, **settings)
    message = str(caught.value)
    assert message and "\n" not in message
    return message


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("hf:imdb", ("imdb", None, None, None, None, None)),
        ("hf:a/b.c-d", ("a/b.c-d", None, None, None, None, None)),
        ("hf:a/b@refs/pr/1", ("a/b", "refs/pr/1", None, None, None, None)),
        ("hf:a/b#2022.en", ("a/b", None, "2022.en", None, None, None)),
        ("hf:a/b:test", ("a/b", None, None, "test", None, None)),
        ("hf:a@v1#c:train[:10]", ("a", "v1", "c", "train", "", "10")),
        ("hf:a:train[5:]", ("a", None, None, "train", "5", "")),
        ("hf:/a/b:train[5:7]", ("/a/b", None, None, "train", "5", "7")),
    ],
)
def test_a_source_names_its_parts(source, expected):
    assert tuple(parse(source).values()) == expected


@pytest.mark.parametrize(
    "source", ["hf:", "hf::train", "hf:a@", "hf:a#", "hf:a:", "hf:a:train[:1%]", "hf:a:b[1]"]
)
def test_another_form_is_refused(source, words):
    assert "hf:NAME[@REVISION][#CONFIG][:SPLIT]" in refused(source, words)


def test_the_split_is_train_unless_named(words, plain):
    assert held(Corpus([f"hf:{plain}"], words)) == windows(TRAIN)
    assert held(Corpus([f"hf:{plain}:test"], words)) == windows(TEST)
    corpus = Corpus([f"hf:{plain}:train", f"hf:{plain}:test"], words)
    assert held(corpus) == windows(DOCUMENTS)
    assert corpus.sources == (f"hf:{plain}:train", f"hf:{plain}:test")


def test_the_shuffle_is_that_of_the_same_documents_in_a_file(words, plain):
    stream, file = Corpus([f"hf:{plain}"], words), Corpus([plain / "train.jsonl"], words)
    assert stream.fingerprint == file.fingerprint
    assert stream.offsets.tolist() == file.offsets.tolist()


@pytest.mark.parametrize(
    ("rows", "expected"),
    [("[:1]", TRAIN[:1]), ("[1:3]", TRAIN[1:3]), ("[2:]", TRAIN[2:]), ("[1:99]", TRAIN[1:])],
)
def test_a_part_of_a_split_is_its_rows(words, plain, saved, rows, expected):
    for folder in (plain, saved / "two"):
        assert held(Corpus([f"hf:{folder}:train{rows}"], words)) == windows(expected)


def test_a_configuration_is_named(words, configured):
    assert held(Corpus([f"hf:{configured}#easy"], words)) == windows(TRAIN)
    assert held(Corpus([f"hf:{configured}#hard"], words)) == windows(TEST)  # its only split
    assert held(Corpus([f"hf:{configured}#hard:held.out"], words)) == windows(TEST)


def test_what_save_to_disk_wrote_is_read(words, saved):
    assert held(Corpus([f"hf:{saved / 'one'}"], words)) == windows(TRAIN)
    assert held(Corpus([f"hf:{saved / 'two'}"], words)) == windows(TRAIN)
    assert held(Corpus([f"hf:{saved / 'two'}:test"], words)) == windows(TEST)


def test_progress_grows_where_the_rows_are_counted(words, saved, monkeypatch):
    monkeypatch.setattr("fastexplain.text.corpus._BATCH", 500)
    fractions: list[float] = []
    data_set = datasets.load_from_disk(saved / "one")
    Corpus.from_texts(data_set, words, progress=fractions.append)
    assert fractions == [0.25, 0.5, 0.75, 1, 1]


def test_a_stream_draws_no_bars(words, tmp_path):
    """Not even of the many files that it looks up; whoever had bars before has them after."""
    for number in range(40):
        write_rows(tmp_path / f"train-{number}.jsonl", [random_ids(64, number)])
    script = (
        "import sys\n"
        "from fastexplain.text.hub import open_data_set\n"
        "print(len(list(open_data_set(sys.argv[1])('text'))))\n"
        "from datasets.utils import are_progress_bars_disabled\n"
        "print(are_progress_bars_disabled())\n"
    )
    command = [sys.executable, "-c", script, f"hf:{tmp_path}"]
    environment = {key: value for key, value in os.environ.items() if key != "HF_DATASETS_CACHE"}
    shown = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    assert (shown.stdout, shown.stderr) == ("40\nFalse\n", "")


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("hf:PLAIN:validation", ["no split 'validation'", "'train', 'test'"]),
        ("hf:PLAIN#other", ["'other' not found", "'default'", "[#CONFIG]"]),
        ("hf:PLAIN@main", ["no revisions", "'@main'"]),
        ("hf:CONFIGURED", ["[#CONFIG]", "'easy', 'hard'"]),
        ("hf:CONFIGURED#medium", ["'medium' not found", "'easy', 'hard'"]),
        ("hf:SAVED/one:train", ["no splits", "':SPLIT'"]),
        ("hf:SAVED/one#easy", ["no configuration 'easy'"]),
        ("hf:SAVED/two:validation", ["no split 'validation'", "'train', 'test'"]),
        ("hf:SAVED/three", ["can't open", "three"]),
        ("hf:nobody/nothing", ["can't open", "nobody/nothing"]),  # HF_HUB_OFFLINE is set
        ("hf:PLAIN:train[2:2]", ["no document"]),
    ],
)
def test_what_is_not_there_is_one_line(words, plain, configured, saved, source, parts):
    for name, folder in (("PLAIN", plain), ("CONFIGURED", configured), ("SAVED", saved)):
        source = source.replace(name, str(folder))
    message = refused(source, words)
    assert all(part in message for part in parts), message


def test_without_a_train_split_one_is_chosen_by_name(words, tmp_path):
    for split in ("test", "validation"):
        write_rows(tmp_path / f"{split}.jsonl", TEST)
    message = refused(f"hf:{tmp_path}", words)
    assert "choose a split" in message and "'test'" in message and "'validation'" in message


def test_a_directory_without_data_is_refused(words, tmp_path):
    assert "data files" in refused(f"hf:{tmp_path}", words)


def test_a_column_that_is_not_there_or_not_text(words, plain, saved, tmp_path):
    for source in (f"hf:{plain}", f"hf:{saved / 'one'}"):
        message = refused(source, words, column="body")
        assert "no column 'body'" in message and "'text'" in message, message
    message = refused(f"hf:{saved / 'two'}:train[1:]", words, column="id")
    assert "row 1: 'id' is int, not a string" in message
    rows = [{"text": "w1"}, {"text": ["w1"]}]
    (tmp_path / "mixed.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert str(tmp_path) in refused(f"hf:{tmp_path}", words)


def test_a_file_that_is_damaged_is_named_with_its_source(words, tmp_path):
    (tmp_path / "train.parquet").write_bytes(b"not parquet")
    message = refused(f"hf:{tmp_path}", words)
    assert f"'hf:{tmp_path}'" in message


def test_without_datasets_the_extra_is_named(words, plain, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "pip install 'fastexplain[datasets]'" in refused(f"hf:{plain}", words)


def test_a_file_of_such_a_name_is_read_by_its_path(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hf:x").write_text(spelled(TRAIN[0]))
    assert held(Corpus(["./hf:x"], words)) == windows(TRAIN[:1])
    assert importlib.util.find_spec("datasets") is not None


# Data sets that are loaded already


def test_loaded_data_sets_are_texts(words, saved, plain):
    data_set = datasets.load_from_disk(saved / "one")
    stream = datasets.load_dataset(str(plain), streaming=True, split="train")
    made = datasets.IterableDataset.from_generator(
        lambda: ({"body": spelled(ids)} for ids in TRAIN)  # whose columns are not known
    )
    assert made.column_names is None
    for texts in (data_set, data_set.with_format("numpy"), data_set.to_iterable_dataset(), stream):
        assert held(Corpus.from_texts(texts, words)) == windows(TRAIN)
    assert held(Corpus.from_texts(made, words, column="body")) == windows(TRAIN)
    assert held(Corpus.from_texts(data_set["text"], words)) == windows(TRAIN)
    with pytest.raises(CorpusError, match="the data set: no column 'text'; there are 'body'"):
        Corpus.from_texts(made, words)
    with pytest.raises(CorpusError, match="the data set, row 0: 'id' is int"):
        Corpus.from_texts(data_set, words, column="id")


def test_a_row_without_text_is_empty(words):
    texts = [spelled(TRAIN[0]), None, spelled(TRAIN[1])]
    corpus = Corpus.from_texts(datasets.Dataset.from_dict({"text": texts}), words)
    assert held(corpus) == windows(TRAIN[:2])
