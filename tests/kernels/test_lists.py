"""Lists of entries against plain Python: one neuron at a time, every entry compared each time."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_kernels_neurons import lookup_case, tables_of

from fastexplain.kernels.cpu.lists import Lists, choose, means_of, read
from fastexplain.kernels.scalars import pair_estimate, remaining, token_estimate
from fastexplain.kernels.summary import HeldOut, LookupTables


def case(seed: int, *, neurons: int = 3, shift: float = 1.0) -> tuple:
    """A corpus of 30 excerpts with tokens 0 to 5 and pairs of them; two are held out, or one."""
    rng = np.random.default_rng(seed)
    excerpts, tokens, kinds = 30, 6, 6
    text = rng.integers(0, kinds, (excerpts, tokens))
    acts = rng.exponential(size=(excerpts, tokens, neurons)) ** 2 - shift
    acts[..., 0] += 3 * (text == 1)
    known = kinds - 1  # the last token has no row
    token_rows = np.where(text < known, text, -1).astype(np.int32)
    pair_rows = np.full(text.shape, -1, np.int32)
    pair_rows[:, 1:] = text[:, :-1] * kinds + text[:, 1:]
    second = np.arange(kinds**2, dtype=np.int32) % kinds
    second[second == known] = -1
    acts = acts.astype(np.float32)
    none = np.full(text.shape, -1, np.int32)
    tables = tables_of(acts, [token_rows, pair_rows, none], (known, kinds**2, 0), 1)
    ids = np.stack([rng.permutation(excerpts)[:2] for _ in range(neurons)]).astype(np.int32)
    ids[0, 1] = -1
    own = np.stack([acts[ids[n], :, n] for n in range(neurons)])
    return acts, text, tables, HeldOut(ids, own, token_rows, pair_rows, none, 1), second


def left_of(tables: LookupTables, held_out: HeldOut, neuron: int) -> tuple:
    """What the tables have of a neuron without its excerpts: sums, counts, total, tokens."""
    sums = np.concatenate([tables.token_sums[:, neuron], tables.pair_sums[:, neuron]])
    gone, part = np.zeros(len(sums), np.int64), np.zeros(len(sums))
    seen = []
    for excerpt, acts in zip(held_out.ids[neuron], held_out.activations[neuron], strict=True):
        for t in range(held_out.skip, len(acts)) if excerpt >= 0 else ():
            seen.append(max(float(acts[t]), 0.0))
            for which, first in (
                (held_out.token_rows, 0),
                (held_out.pair_rows, len(tables.token_sums)),
            ):
                if (row := which[excerpt, t]) >= 0:
                    part[first + row] += seen[-1]
                    gone[first + row] += 1
    counts = np.concatenate([tables.token_counts, tables.pair_counts]) - gone
    found = [remaining(float(s), p, n) for s, p, n in zip(sums, part, counts.tolist(), strict=True)]
    tokens = tables.count - len(seen)
    return (
        found,
        counts.tolist(),
        remaining(tables.positive_sums[neuron], sum(seen), tokens),
        tokens,
    )


def plain_choice(tables: LookupTables, held_out, second, neuron: int, count: int) -> list[int]:
    """The greedy choice over all rows, as the module's docstring says it."""
    sums, counts, total, tokens = left_of(tables, held_out, neuron)
    known = len(tables.token_sums)
    chosen: list[int] = []
    explained = 0.0
    while len(chosen) < count:
        best, found = 0.0, None
        for row in range(len(sums)):
            if row in chosen or counts[row] <= 0:
                continue
            before, parent = total / max(tokens, 1), second[row - known] if row >= known else -1
            if parent in chosen and parent >= 0:
                before = sums[parent] / max(counts[parent], 1)
            gain = (sums[row] - counts[row] * before) / (counts[row] + 1)
            strong = len(chosen) % 6 == 5
            worth = gain**2 * (math.sqrt(counts[row]) if strong else counts[row])
            enough = gain > 0 and gain**2 * counts[row] > 1e-4 * explained
            if enough and worth > best * (1 + 1e-12):
                best, found, added = worth, row, gain**2 * counts[row]
        if found is None:
            break
        explained += added
        parent = second[found - known] if found >= known else -1
        if parent < 0 or parent not in chosen:
            total -= sums[found]
            tokens -= counts[found]
        if parent >= 0:
            sums[parent] -= sums[found]
            counts[parent] -= counts[found]
        chosen.append(found)
    return chosen


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 14), st.sampled_from([0.5, 1.0, 3.0]))
def test_entries_are_those_of_the_plain_greedy_choice(seed, count, shift) -> None:
    _, _, tables, held_out, second = case(seed, shift=shift)
    lists = choose(tables, held_out, second, count=count)
    for neuron, rows in enumerate(lists.rows.tolist()):
        # So few rows are all candidates from 11 entries on; below, the first alone is sure.
        expected = plain_choice(tables, held_out, second, neuron, count)
        if count >= 11:
            assert [row for row in rows if row >= 0] == expected
        assert rows[:1] == expected[:1] or (not expected and set(rows) <= {-1})
        sums, counts, total, tokens = left_of(tables, held_out, neuron)
        kept = [place for place, row in enumerate(rows) if row >= 0]
        assert kept == list(range(len(kept)))  # none after a missing one
        assert len({rows[place] for place in kept}) == len(kept)
        for place in kept:
            row = rows[place]
            assert (lists.sums[neuron, place], lists.counts[neuron, place]) == pytest.approx(
                (sums[row], counts[row])
            )
        assert (lists.total[neuron], lists.tokens[neuron]) == pytest.approx((total, tokens))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 14))
def test_means_are_those_of_the_text_without_the_excerpts_held_out(seed, count) -> None:
    """Default and token means, from the activations themselves in place of the tables."""
    acts, text, tables, held_out, second = case(seed)
    known = len(tables.token_sums)
    whole = choose(tables, held_out, second, count=count)
    for length in {1, count}:
        means, default = means_of(whole, length)
        for neuron in range(acts.shape[2]):
            kept = np.setdiff1d(np.arange(len(text)), held_out.ids[neuron])
            values = np.maximum(acts[kept, 1:, neuron].astype(np.float64), 0)
            rows = [row for row in whole.rows[neuron, :length].tolist() if row >= 0]
            token_rows, pair_rows = held_out.token_rows[kept, 1:], held_out.pair_rows[kept, 1:]
            by_pair = np.isin(pair_rows + known, rows) & (pair_rows >= 0)
            by_token = np.isin(token_rows, rows) & ~by_pair & (token_rows >= 0)
            rest = values[~by_pair & ~by_token]
            assert default[neuron] == pytest.approx(rest.mean() if len(rest) else 0, abs=1e-6)
            mean = values.mean()
            for place, row in enumerate(rows):
                if row < known:
                    own = values[by_token & (token_rows == row)]
                    expected = token_estimate(own.sum(), len(own), default[neuron])
                else:
                    own, token = values[pair_rows == row - known], second[row - known]
                    around = mean
                    if token >= 0:
                        alone = values[token_rows == token]
                        around = token_estimate(alone.sum(), len(alone), mean)
                    expected = pair_estimate(own.sum(), len(own), around)
                assert means[neuron, place] == pytest.approx(expected, rel=1e-5, abs=1e-6)
            assert (means[neuron, len(rows) :] == 0).all()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 8))
def test_a_list_says_a_pairs_mean_then_its_tokens_then_the_default(seed, count) -> None:
    _, _, tables, held_out, second = case(seed)
    lists = choose(tables, held_out, second, count=count)
    means, default = means_of(lists, count)
    known = len(tables.token_sums)
    found = read(lists.rows, means, default, held_out, known)
    for (neuron, place), excerpt in np.ndenumerate(held_out.ids):
        said = dict(zip(lists.rows[neuron].tolist(), means[neuron].tolist(), strict=True))
        said.pop(-1, None)
        for t, value in enumerate(found[neuron, place].tolist()):
            if t < held_out.skip or excerpt < 0:
                assert math.isnan(value)
                continue
            token, pair = held_out.token_rows[excerpt, t], held_out.pair_rows[excerpt, t] + known
            expected = said.get(pair, said.get(token, default[neuron]))
            assert value == pytest.approx(expected, rel=1e-6)


def test_what_is_held_out_leaves_no_trace_in_a_list() -> None:
    """The tables know tokens of the one excerpt alone: nothing is left that could be listed."""
    _, _, tables, held_out, second = case(1)
    other = held_out.activations * 7 + 1
    moved = np.zeros_like(tables.token_sums)
    pairs = np.zeros_like(tables.pair_sums)
    positive = tables.positive_sums.copy()
    for (neuron, place), excerpt in np.ndenumerate(held_out.ids):
        for t in range(held_out.skip, other.shape[2]) if excerpt >= 0 else ():
            rise = max(other[neuron, place, t], 0) - max(
                held_out.activations[neuron, place, t], 0
            )  # fmt: skip
            positive[neuron] += rise
            for which, sums in ((held_out.token_rows, moved), (held_out.pair_rows, pairs)):
                if (row := which[excerpt, t]) >= 0:
                    sums[row, neuron] += rise
    changed = tables._replace(
        token_sums=tables.token_sums + moved,
        pair_sums=tables.pair_sums + pairs,
        positive_sums=positive,
    )
    before = choose(tables, held_out, second, count=8)
    after = choose(changed, held_out._replace(activations=other), second, count=8)
    np.testing.assert_array_equal(before.rows, after.rows)
    for name in ("sums", "counts", "around", "total", "tokens"):
        np.testing.assert_allclose(getattr(before, name), getattr(after, name), rtol=1e-4)


def test_a_neuron_that_a_token_drives_has_it_first_and_a_pair_where_only_that_does() -> None:
    acts, text, tables, held_out, second = case(5, shift=9.0)  # below 0 but for token 1
    acts[..., 0] = np.where(text == 1, 2.0, -1.0)
    acts[..., 1] = -1
    acts[:, 1:, 1] = np.where((text[:, :-1] == 2) & (text[:, 1:] == 3), 4.0, -1.0)
    acts[..., 2] = -1
    families = [held_out.token_rows, held_out.pair_rows, held_out.triple_rows]
    tables = tables_of(acts, families, (5, len(tables.pair_sums), 0), 1)
    own = np.stack([acts[held_out.ids[n], :, n] for n in range(3)])
    lists = choose(tables, held_out._replace(activations=own), second, count=4)
    means, default = means_of(lists, 4)
    assert lists.rows[:, 0].tolist() == [1, 5 + 2 * 6 + 3, -1]
    assert (lists.rows[:, 1:] == -1).all() and default.tolist() == [0, 0, 0]
    assert 1.9 < means[0, 0] < 2 and means[1, 0] > 2 and (means[2] == 0).all()


@pytest.mark.parametrize("shape", [(0, 0), (4, 0), (0, 3)])
def test_tables_without_rows_give_empty_lists(shape: tuple[int, int]) -> None:
    tables, held_out = lookup_case(0, 0, False)
    rows = [np.full_like(held_out.token_rows, -1) for _ in range(2)]
    tables = tables._replace(
        token_sums=np.zeros((shape[0], 4), np.float32), token_counts=np.ones(shape[0], np.int64),
        pair_sums=np.zeros((shape[1], 4), np.float32), pair_counts=np.ones(shape[1], np.int64),
    )  # fmt: skip
    held_out = held_out._replace(token_rows=rows[0], pair_rows=rows[1])
    lists = choose(tables, held_out, np.full(shape[1], -1, np.int32), count=8)
    assert isinstance(lists, Lists) and (lists.rows == -1).all()
    means, default = means_of(lists, 8)
    found = read(lists.rows, means, default, held_out, shape[0])
    known = ~np.isnan(found)
    assert known.any() and (found == default[:, None, None].astype(np.float32))[known].all()


def test_a_second_token_that_is_no_row_is_refused() -> None:
    _, _, tables, held_out, second = case(0)
    with pytest.raises(ValueError, match="second is"):
        choose(tables, held_out, second[1:], count=4)
    second[0] = len(tables.token_sums)
    with pytest.raises(ValueError, match="second"):
        choose(tables, held_out, second, count=4)
