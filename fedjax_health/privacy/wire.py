"""What the noise on the wire of split learning hides of one example.

Nothing here is said of clients: a client's examples are many, and what its half of the
model learns of them leaves by another way, with a guarantee of its own or none.
"""

import math
from collections.abc import Sequence

from fedjax_health.privacy.accounting import Accountant, PrivacyError, epsilon_of


def wire_epsilon(
    multipliers: Sequence[float],
    crossings: int,
    delta: float,
    *,
    accountant: Accountant = "pld",
) -> float:
    """Returns the epsilon with which the wire hides one example's messages.

    Formal guarantees: example-level ``(epsilon, delta)``-DP of all messages of one
    example together, against whoever receives them. Neighbours differ in that every
    message of one example is the zero message (zero-out), all else being the same, its
    holder's own training on it included. A message is clipped to an L2 norm, its
    sensitivity is that bound, and it is released with Gaussian noise of a multiplier
    times the bound. To hide which of two examples it was, a message may move by twice
    its bound: the same noise then counts as half the multiplier. That there is such an
    example, and when it crosses, is not hidden; and as the receiver sees both, nothing
    is amplified by sampling.

    All messages of an example together are one Gaussian release of the multiplier
    ``(crossings * sum_i multiplier_i^-2)^(-1/2)``, also where later messages depend on
    what came back for earlier ones.

    Not covered is what the client's half learns of the example: its weights, where they
    are sent, and through them the messages of other examples. Nor does it hold where a
    loss compares examples and cotangents leave their holder: a message is then made of
    several. The noise is a float32 generator's, in simulation.

    Args:
      multipliers: of each direction in which messages leave the example's holder, with
        0 for one that carries no noise; none for a wire without noise.
      crossings: how often an example crosses in each of them: epochs of a round times
        the rounds in which its client takes part, at most.
      delta: in (0, 1), for the whole run.
      accountant: "pld" or "rdp".

    Returns:
      Epsilon: infinite where a direction has no noise, 0 where nothing crosses.

    Raises:
      PrivacyError: for multipliers, crossings or a delta out of range.
    """
    import dp_accounting as dp

    for multiplier in multipliers:
        if not (math.isfinite(multiplier) and multiplier >= 0):
            raise PrivacyError(
                f"multipliers={tuple(multipliers)}: each must be finite and 0 or more"
            )
    if isinstance(crossings, bool) or crossings != int(crossings) or crossings < 0:
        raise PrivacyError(f"crossings={crossings}: must be a whole number, 0 or more")
    if crossings == 0:
        event = dp.NoOpDpEvent()
    elif not multipliers or min(multipliers) == 0:
        event = dp.NonPrivateDpEvent()
    else:
        squares = sum(multiplier**-2 for multiplier in multipliers)
        event = dp.GaussianDpEvent((crossings * squares) ** -0.5)
    return epsilon_of(event, delta, accountant=accountant)
