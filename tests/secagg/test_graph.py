"""Degrees and thresholds beside exact fractions and published pairs."""

import math
from fractions import Fraction

import pytest

from fedjax_health.secagg import graph


def exact_tail(population, marked, draws, least):
    return sum(
        Fraction(
            math.comb(marked, i) * math.comb(population - marked, draws - i),
            math.comb(population, draws),
        )
        for i in range(least, draws + 1)
    )


@pytest.mark.parametrize(
    "case", [(10, 3, 4, 2), (99, 20, 41, 21), (999, 200, 109, 57), (50, 50, 5, 5)]
)
def test_the_tail_is_the_hypergeometric(case):
    assert graph.tail(*case) == pytest.approx(float(exact_tail(*case)), rel=1e-8)


def test_the_tail_of_the_impossible_is_zero():
    assert graph.tail(99, 5, 11, 6) == 0


@pytest.mark.parametrize(
    ("clients", "rate", "expected"),
    [
        (100, 0.05, (11, 6)),
        (100, 0.10, (21, 11)),
        (100, 0.20, (41, 21)),
        (1_000, 0.20, (109, 57)),
        (10_000, 0.20, (134, 70)),
    ],
)
def test_known_degrees(clients, rate, expected):
    found = graph.plan_graph(clients, corrupt=rate, dropout=rate, connectivity_bits=0)
    assert found == expected


def test_connectivity_raises_the_degree_where_a_ring_could_be_cut():
    assert graph.plan_graph(100, corrupt=0.05, dropout=0.05) == (12, 6)
    assert graph.plan_graph(1_000, corrupt=0.2, dropout=0.2) == (109, 57)


def test_a_given_degree_is_kept_or_refused_with_one_that_will_do():
    degree, threshold = graph.plan_graph(200, 80, corrupt=0.1, dropout=0.1)
    assert degree == 80
    assert 200 * exact_tail(199, 20, 80, threshold) <= Fraction(1, 2**40)
    with pytest.raises(ValueError, match="use 35 or more"):
        graph.plan_graph(200, 8, corrupt=0.1, dropout=0.1)
    with pytest.raises(ValueError, match="an even number"):
        graph.plan_graph(201, 81, corrupt=0.1, dropout=0.1)


def test_rates_that_nothing_meets_are_refused():
    with pytest.raises(ValueError, match="no degree"):
        graph.plan_graph(200, corrupt=0.6, dropout=0.6)


@pytest.mark.parametrize(("n", "k"), [(10, 4), (10, 5), (11, 6), (7, 6), (2, 1)])
def test_a_ring_is_regular_and_mutual(n, k):
    neighbours = graph.ring(n, k, seed=b"s")
    for u, others in enumerate(neighbours):
        assert len(set(others)) == k
        assert u not in others
        assert all(u in neighbours[v] for v in others)


def test_the_order_of_a_ring_follows_its_seed():
    one = graph.ring(20, 4, seed=b"1")
    assert one == graph.ring(20, 4, seed=b"1")
    assert one != graph.ring(20, 4, seed=b"2")


def test_a_ring_without_a_few_stays_connected():
    """Two runs of k / 2 absent clients are needed to cut it."""
    neighbours = graph.ring(30, 6, seed=b"x")
    for gone in range(30):
        left = set(range(30)) - {gone, *neighbours[gone][:4]}
        reached, todo = set(), [min(left)]
        while todo:
            u = todo.pop()
            if u not in reached:
                reached.add(u)
                todo += [v for v in neighbours[u] if v in left]
        assert reached == left
