"""What an accountant is told: the events of samplers, clients and local training.

Nothing here needs jax; dp-accounting is imported on first use.
"""

import math
from typing import Any, Literal

Relation = Literal["add_or_remove", "replace"]


def sampled_event(noise_multiplier: float, sampling: Any, rounds: int) -> Any:
    """Returns the event of noise on the sum of a sampled cohort.

    Poisson cohorts are amplified, with their cap accounted as truncation; cyclic ones
    in the rounds of one block alone; fixed ones by sampling without replacement, for
    which only a loose RDP bound under "replace" is known.

    Args:
      noise_multiplier: standard deviation of the noise over the bound of a message.
      sampling: see ``Sampling``.
      rounds: of the run.
    """
    import dp_accounting as dp

    one = dp.GaussianDpEvent(noise_multiplier)
    if sampling.scheme == "fixed" and sampling.expected < sampling.population:
        one = dp.SampledWithoutReplacementDpEvent(
            sampling.population, sampling.expected, one
        )
    elif sampling.scheme != "fixed" and sampling.rate < 1:
        if sampling.cohort_size < sampling.block:
            one = dp.TruncatedSubsampledGaussianDpEvent(
                sampling.block, sampling.rate, sampling.cohort_size, noise_multiplier
            )
        else:
            one = dp.PoissonSampledDpEvent(sampling.rate, one)
    return dp.SelfComposedDpEvent(one, math.ceil(rounds / sampling.cycle))


def sampled_relation(sampling: Any) -> Relation:
    """Returns the relation under which ``sampled_event`` can be accounted."""
    if sampling.scheme == "fixed" and sampling.expected < sampling.population:
        return "replace"
    return "add_or_remove"


def describe_sampling(sampling: Any) -> str:
    """Returns how cohorts are drawn, in words."""
    n, expected = sampling.population, sampling.expected
    if sampling.scheme == "fixed":
        if expected == n:
            return f"all {n:,} clients in every round: no amplification by sampling"
        return (
            f"{expected:,} of {n:,} clients without replacement, a fixed size: only a "
            "loose RDP bound is known"
        )
    if sampling.rate == 1 and sampling.cycle == 1:
        return f"all {n:,} clients in every round: no amplification by sampling"
    cap = ""
    if sampling.cohort_size < sampling.block:
        cap = f", cut at {sampling.cohort_size:,}, accounted as truncated"
    text = f"Poisson, each of {sampling.block:,} clients at rate {sampling.rate:g}{cap}"
    if sampling.cycle > 1:
        text += f"; a block of clients has its turn every {sampling.cycle} rounds"
    return text


def repeated_event(noise_multiplier: float, times: int) -> Any:
    """Returns the event of a client that is known to take part so often.

    Without amplification by sampling, whose one figure holds for every client: the
    rounds in which a client was seen to take part may be counted here only.

    Args:
      noise_multiplier: standard deviation of the noise over the bound of a message.
      times: rounds in which the client takes part.
    """
    import dp_accounting as dp

    return dp.SelfComposedDpEvent(dp.GaussianDpEvent(noise_multiplier), times)


def example_level_event(
    noise_multiplier: float,
    batch_size: int,
    examples: int,
    steps: int,
    rounds: int,
) -> Any:
    """Returns the event of DP-SGD inside one client, for one of its examples.

    Batches are Poisson: each example at rate ``batch_size / examples`` in every local
    step, the sum of clipped gradients divided by the expected batch size.

    Args:
      noise_multiplier: noise over the bound of one example's gradient.
      batch_size: expected examples of a batch.
      examples: of the client.
      steps: local steps in a round.
      rounds: in which the client takes part, at worst all of them.
    """
    import dp_accounting as dp

    rate = min(batch_size / examples, 1.0)
    one = dp.GaussianDpEvent(noise_multiplier)
    if rate < 1:
        one = dp.PoissonSampledDpEvent(rate, one)
    return dp.SelfComposedDpEvent(one, steps * rounds)
