"""Shamir's scheme beside a slow one with fractions of the field."""

import itertools
import random

import pytest

from fedjax_health.secagg import shamir

P = shamir.PRIME


def stream(seed, count):
    return random.Random(seed).randbytes(count * shamir.SHARE_BYTES)


def polynomial_at(x, coefficients):
    return sum(c * pow(x, i, P) for i, c in enumerate(coefficients)) % P


def interpolated(points, values, at):
    """Lagrange's formula as it stands in a textbook."""
    total = 0
    for i, x in enumerate(points):
        term = values[i]
        for j, other in enumerate(points):
            if i != j:
                term = term * (at - other) * pow(x - other, -1, P) % P
        total += term
    return total % P


@pytest.mark.parametrize(("threshold", "holders"), [(1, 1), (1, 3), (2, 2), (5, 9)])
def test_shares_are_values_of_the_polynomial(threshold, holders):
    secrets = [7, P - 1, 2**255 + 5]
    drawn = stream(1, 3 * (threshold - 1))
    shares = shamir.share(secrets, threshold, holders, stream=drawn)
    rest = shamir.coefficients(drawn, 3 * (threshold - 1))
    for j, secret in enumerate(secrets):
        expected = [secret, *rest[j::3]]
        for point in range(1, holders + 1):
            assert shares[point - 1][j] == polynomial_at(point, expected)


def test_any_threshold_shares_give_the_secret_and_fewer_do_not():
    secret = random.Random(2).getrandbits(256)
    shares = shamir.share([secret], 3, 6, stream=stream(3, 2))
    for points in itertools.permutations(range(1, 7), 3):
        values = [shares[p - 1][0] for p in points]
        assert shamir.reconstruct(points, values) == secret
        assert shamir.reconstruct(points, values) == interpolated(points, values, 0)
    for points in itertools.combinations(range(1, 7), 2):
        assert shamir.reconstruct(points, [shares[p - 1][0] for p in points]) != secret


def test_fewer_shares_fit_every_secret():
    """Two shares of a polynomial of degree 2 leave each secret as likely as any."""
    shares = shamir.share([11], 3, 3, stream=stream(4, 2))
    values = [shares[0][0], shares[1][0]]
    for other in (0, 12, 2**300):
        third = interpolated([0, 1, 2], [other, *values], 3)
        assert shamir.reconstruct([1, 2, 3], [*values, third]) == other


def test_many_holders():
    secrets = [random.Random(i).getrandbits(256) for i in range(2)]
    shares = shamir.share(secrets, 51, 100, stream=stream(5, 100))
    points = random.Random(6).sample(range(1, 101), 51)
    for j, secret in enumerate(secrets):
        assert shamir.reconstruct(points, [shares[p - 1][j] for p in points]) == secret


@pytest.mark.parametrize(("threshold", "holders"), [(0, 3), (4, 3)])
def test_a_threshold_that_cannot_be_met_is_refused(threshold, holders):
    with pytest.raises(ValueError, match=f"threshold={threshold}"):
        shamir.share([1], threshold, holders, stream=b"")


def test_a_secret_beyond_the_field_is_refused():
    with pytest.raises(ValueError, match="secret"):
        shamir.share([P], 1, 2, stream=b"")


@pytest.mark.parametrize("points", [(1, 1), (0, 2)])
def test_points_that_are_none_are_refused(points):
    with pytest.raises(ValueError, match="distinct"):
        shamir.weights_at_zero(points)
