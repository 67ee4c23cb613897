"""Cohorts: who is drawn, how often, and at what cost in memory."""

import tracemalloc

import numpy as np
import pytest

from fedjax_health.core.types import Sampling
from fedjax_health.data.sampling import (
    NO_LIMIT,
    build_cohort_fn,
    cohort_of,
    draw_clients,
    mapped_capacity,
)
from fedjax_health.data.schema import DataError
from fedjax_health.data.store import from_arrays, room_for

SCHEMES = {
    "fixed": Sampling("fixed", population=40, expected=9),
    "all": Sampling("fixed", population=40, expected=40),
    "poisson": Sampling("poisson", population=40, expected=9, cap=20),
    "everyone": Sampling("poisson", population=40, expected=40),
    "cyclic": Sampling("cyclic", population=40, expected=3, cycle=4),
    "uneven cycle": Sampling("cyclic", population=43, expected=3, cycle=4),
}


def make_store(sizes=(3, 1, 4, 2, 5), names=None):
    total = sum(sizes)
    rows = {"x": np.arange(total, dtype=np.float32)}
    return from_arrays(rows, np.cumsum([0, *sizes]), client_names=names)


@pytest.mark.parametrize("name", SCHEMES)
def test_clients_are_distinct_and_in_range(name):
    sampling = SCHEMES[name]
    for round in range(50):
        ids = draw_clients(sampling, 3, round)
        assert ids.dtype == np.int32
        assert len(ids) <= sampling.cohort_size
        assert len(np.unique(ids)) == len(ids)
        assert np.all((ids >= 0) & (ids < sampling.population))
        if sampling.scheme == "fixed":
            assert len(ids) == sampling.expected


@pytest.mark.parametrize("name", ["fixed", "poisson", "cyclic"])
def test_a_draw_depends_on_seed_and_round_alone(name):
    sampling = SCHEMES[name]
    first = [draw_clients(sampling, 1, round) for round in range(20)]
    for round in (19, 4, 0):
        np.testing.assert_array_equal(draw_clients(sampling, 1, round), first[round])
    assert len({tuple(ids) for ids in first}) > 15
    other = [tuple(draw_clients(sampling, 2, round)) for round in range(20)]
    assert sum(tuple(a) == b for a, b in zip(first, other, strict=True)) < 5


@pytest.mark.parametrize("name", ["fixed", "poisson"])
def test_every_client_is_drawn_equally_often(name):
    sampling, rounds = SCHEMES[name], 4000
    counts = np.zeros(sampling.population)
    for round in range(rounds):
        counts[draw_clients(sampling, 0, round)] += 1
    # Counts of one client are binomial; those of a round are (nearly) independent.
    expected = rounds * sampling.rate
    variance = rounds * sampling.rate * (1 - sampling.rate)
    chi = np.sum((counts - expected) ** 2 / variance)
    assert chi < sampling.population + 5 * np.sqrt(2 * sampling.population)


def test_every_place_in_a_cohort_is_as_likely():
    """The order matters where a cohort is cut, split or grouped by position."""
    sampling, rounds = Sampling("fixed", population=6, expected=3), 3000
    places = np.zeros((3, 6))
    for round in range(rounds):
        places[np.arange(3), draw_clients(sampling, 5, round)] += 1
    expected = rounds / 6
    assert np.sum((places - expected) ** 2) / expected < 15 + 5 * np.sqrt(30)


def test_pairs_are_drawn_together_equally_often():
    sampling, rounds = Sampling("fixed", population=6, expected=3), 3000
    together = np.zeros((6, 6))
    for round in range(rounds):
        ids = draw_clients(sampling, 8, round)
        together[np.ix_(ids, ids)] += 1
    pairs = together[np.triu_indices(6, 1)]
    expected = rounds * 3 / 15
    assert np.sum((pairs - expected) ** 2) / expected < 15 + 5 * np.sqrt(30)


def test_poisson_counts_are_binomial():
    sampling = Sampling("poisson", population=50, expected=10)
    counts = np.array([len(draw_clients(sampling, 0, r)) for r in range(4000)])
    variance = 50 * 0.2 * 0.8
    assert abs(counts.mean() - 10) < 5 * np.sqrt(variance / 4000)
    assert counts.var() == pytest.approx(variance, rel=0.12)
    # Members are independent: two given clients are both in with rate squared.
    both = np.mean(
        [np.isin([3, 41], draw_clients(sampling, 0, r)).all() for r in range(4000)]
    )
    assert abs(both - 0.04) < 5 * np.sqrt(0.04 * 0.96 / 4000)


def test_a_poisson_draw_beyond_the_cap_is_cut():
    sampling = Sampling("poisson", population=50, expected=10, cap=11)
    assert sampling.cohort_size == 11
    counts = np.array([len(draw_clients(sampling, 0, r)) for r in range(500)])
    assert counts.max() == 11
    assert np.mean(counts == 11) > 0.3
    drawn = np.concatenate([draw_clients(sampling, 0, r) for r in range(500)])
    assert len(np.unique(drawn)) == 50


def test_without_a_cap_a_poisson_cohort_is_never_cut_in_practice():
    sampling = Sampling("poisson", population=10_000, expected=100)
    assert 100 + 6 * 9.9 < sampling.cohort_size < 100 + 6 * 10 + 2
    assert Sampling("poisson", population=12, expected=11).cohort_size == 12


@pytest.mark.parametrize("name", ["cyclic", "uneven cycle"])
def test_cyclic_blocks_take_turns(name):
    sampling = SCHEMES[name]
    assert sampling.block == 10
    assert sampling.rate == pytest.approx(0.3)
    seen = [set() for _ in range(4)]
    for round in range(200):
        ids = draw_clients(sampling, 0, round)
        assert np.all(ids // 10 == round % 4)
        seen[round % 4] |= set(ids.tolist())
    assert seen == [set(range(10 * b, 10 * b + 10)) for b in range(4)]


@pytest.mark.parametrize("scheme", ["fixed", "poisson"])
def test_a_draw_makes_nothing_of_the_populations_size(scheme):
    sampling = Sampling(scheme, population=10_000_000, expected=1000)
    draw_clients(sampling, 0, 0)
    tracemalloc.start()
    ids = draw_clients(sampling, 0, 1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 800 < len(ids) < 1200
    assert peak < 1_000_000


def test_a_round_of_a_large_population_costs_its_cohort():
    population = 2_000_000
    offsets = np.arange(population + 1)
    rows = {"x": np.broadcast_to(np.float32(1), (population,))}
    store = from_arrays(rows, offsets)._replace(mapped=True)
    sampling = Sampling("fixed", population=population, expected=50)
    cohorts = build_cohort_fn(store, sampling, 0)
    cohorts(0)
    tracemalloc.start()
    cohort = cohorts(1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert np.all(cohort.batches.num_examples == 1)
    assert peak < 1_000_000


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"scheme": "uniform"}, "unknown sampling scheme 'uniform'"),
        ({"population": 0}, "population must lie in"),
        ({"population": 2**31}, "population must lie in"),
        ({"expected": 0}, "cohort of 0 clients cannot be drawn from 10"),
        ({"expected": 11}, "choose a cohort of 1 to 10"),
        ({"cycle": 0}, "cycle=0"),
        ({"cycle": 2}, "scheme='cyclic' only"),
        ({"scheme": "cyclic", "cycle": 4, "expected": 3}, "cannot be drawn from 2"),
        ({"cap": 5}, "cap goes with Poisson"),
        ({"scheme": "poisson", "cap": 3}, "cap=3 lies below the expected cohort 4"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(arguments, text):
    defaults = {"scheme": "fixed", "population": 10, "expected": 4}
    with pytest.raises(ValueError, match=text):
        Sampling(**(defaults | arguments))


@pytest.mark.parametrize("mapped", [False, True])
def test_a_cohort_says_where_its_clients_examples_lie(mapped):
    sizes = (3, 1, 4, 2, 5)
    store = make_store(sizes)._replace(mapped=mapped)
    flags = np.array([True, False, False, True, False])
    sampling = Sampling("poisson", population=5, expected=2, cap=4)
    cohorts = build_cohort_fn(store, sampling, 0, malicious=flags)
    shapes = set()
    for round in range(30):
        cohort = cohorts(round)
        ids = draw_clients(sampling, 0, round)
        n = len(ids)
        np.testing.assert_array_equal(cohort.client_ids[:n], ids)
        np.testing.assert_array_equal(cohort.client_ids[n:], 5)
        np.testing.assert_array_equal(cohort.mask, np.arange(4) < n)
        np.testing.assert_array_equal(cohort.malicious[:n], flags[ids])
        assert not cohort.malicious[n:].any()
        assert np.all(cohort.batches.num_steps == NO_LIMIT)
        held = np.array([sizes[i] for i in ids] + [0] * (4 - n))
        np.testing.assert_array_equal(cohort.weights, held)
        np.testing.assert_array_equal(cohort.batches.num_examples, held)
        assert cohort.weights.dtype == np.float32
        x = np.asarray(cohort.batches.arrays.rows["x"])
        for slot, client in enumerate(ids):
            first = cohort.batches.index[slot]
            wanted = np.arange(store.offsets[client], store.offsets[client + 1])
            np.testing.assert_array_equal(x[first : first + len(wanted)], wanted)
        shapes.add((x.shape, cohort.mask.shape, cohort.batches.index.shape))
        assert len(x) == (14 if mapped else room_for(15))
    assert len(shapes) == 1


def test_the_resident_store_is_the_same_object_in_every_round():
    cohorts = build_cohort_fn(
        make_store(), Sampling("fixed", population=5, expected=2), 0
    )
    assert cohorts(0).batches.arrays is cohorts(7).batches.arrays


def test_capacity_is_the_largest_clients_together():
    store = make_store((3, 1, 4, 2, 5))
    assert [mapped_capacity(store, n) for n in (1, 2, 3, 5, 9)] == [5, 9, 12, 15, 15]


def test_a_cohort_of_given_clients_keeps_their_order():
    cohort = cohort_of(make_store(), np.array([4, 0]))
    np.testing.assert_array_equal(cohort.client_ids, [4, 0])
    np.testing.assert_array_equal(
        cohort.batches.arrays.rows["x"], [10, 11, 12, 13, 14, 0, 1, 2]
    )
    np.testing.assert_array_equal(cohort.batches.index, [0, 5])


def test_store_and_sampling_must_agree():
    sampling = Sampling("fixed", population=6, expected=2)
    with pytest.raises(DataError, match="draws from 6 clients, but the store has 5"):
        build_cohort_fn(make_store(), sampling, 0)


@pytest.mark.parametrize("names", [None, ("a", "b", "c", "d", "e")])
def test_a_client_without_examples_is_named(names):
    store = make_store((3, 1, 0, 2, 5), names)
    text = "client 'c' has no" if names else "client 2 has no"
    with pytest.raises(DataError, match=text):
        build_cohort_fn(store, Sampling("fixed", population=5, expected=2), 0)


@pytest.mark.parametrize(
    "flags", [np.zeros(4, bool), np.zeros((5, 1), bool), [0, 1, 0, 0, 0], [1, 3]]
)
def test_malicious_must_be_one_flag_a_client(flags):
    sampling = Sampling("fixed", population=5, expected=2)
    with pytest.raises(DataError, match=r"malicious must be bool of shape \(5,\)"):
        build_cohort_fn(make_store(), sampling, 0, malicious=flags)


def test_malicious_flags_may_be_a_list():
    sampling = Sampling("fixed", population=5, expected=5)
    flags = [False, True, False, False, True]
    cohort = build_cohort_fn(make_store(), sampling, 0, malicious=flags)(0)
    np.testing.assert_array_equal(cohort.malicious, np.array(flags)[cohort.client_ids])


def test_a_cohort_beyond_an_int32_index_is_refused():
    offsets = np.array([0, 2**30, 2**31, 2**31 + 1])
    rows = {"x": np.broadcast_to(np.float32(0), (2**31 + 1,))}
    store = from_arrays(rows, offsets)
    sampling = Sampling("fixed", population=3, expected=2)
    with pytest.raises(DataError, match="map"):
        build_cohort_fn(store, sampling, 0)
    with pytest.raises(DataError, match="draw fewer clients"):
        build_cohort_fn(store._replace(mapped=True), sampling, 0)
    alone = Sampling("fixed", population=3, expected=1)
    assert build_cohort_fn(store._replace(mapped=True), alone, 0)
