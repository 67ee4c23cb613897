"""Attacks that send a function of the mean and the deviation of messages they see."""

import functools
from typing import Literal

import jax
import jax.numpy as jnp

from fedjax_health.attacks import rows
from fedjax_health.attacks.rows import Knowledge
from fedjax_health.core import trees
from fedjax_health.core.types import (
    AttackContext,
    Params,
    State,
    UpdateAttack,
    Updates,
)

# Chances outside this range would stand for an infinite number of deviations.
_EDGE = 1e-6


def _numbers(params: Params, **numbers: float) -> State:
    del params
    return {name: jnp.float32(value) for name, value in numbers.items()}


@functools.cache
def _forge_scaled_mean(knowledge: Knowledge):
    def forge(
        stacked: Updates, malicious: jax.Array, state: State, context: AttackContext
    ) -> tuple[Updates, State]:
        mean = rows.mean_of(stacked, rows.visible(knowledge, malicious, context))
        return rows.put(stacked, malicious, trees.scale(mean, -state["scale"])), state

    return forge


def _forge_own_flip(
    stacked: Updates, malicious: jax.Array, state: State, context: AttackContext
) -> tuple[Updates, State]:
    del context
    flipped = trees.scale(stacked, -state["scale"])

    def choose(x: jax.Array, new: jax.Array) -> jax.Array:
        return jnp.where(malicious.reshape(-1, *[1] * (x.ndim - 1)), new, x)

    return jax.tree.map(choose, stacked, flipped), state


def sign_flip(
    *,
    of: Literal["mean", "own"] = "mean",
    scale: float = 1.0,
    knowledge: Knowledge = "honest",
) -> UpdateAttack:
    """Sends the opposite of what would have been learnt.

    Two variants. ``of="mean"``: ``-scale mu`` with ``mu`` the mean message (ByzFL's
    form; Allen-Zhu et al., 2020, arXiv:2012.14368). ``of="own"``: ``-scale x_i`` with
    the own message (FLPoison's; Li et al., 2019, "RSA", arXiv:1811.03761).

    Threat model: "mean" knows the mean of the honest messages (or, with
    ``knowledge="colluders"``, of those that the malicious clients would have sent);
    "own" knows the own message alone.

    Args:
      of: "mean" or "own"; static.
      scale: the strength, 0 or more; traced.
      knowledge: whose messages make the mean, "honest" or "colluders"; static.

    Raises:
      ValueError: for an unknown variant or a number out of range.
    """
    rows.check_choice("sign_flip: of", of, ("mean", "own"))
    rows.check_knowledge("sign_flip", knowledge)
    rows.check_number("sign_flip: scale", scale, low=0)
    forge = _forge_own_flip if of == "own" else _forge_scaled_mean(knowledge)
    return UpdateAttack(functools.partial(_numbers, scale=scale), forge)


def ipm(*, scale: float = 2.0, knowledge: Knowledge = "honest") -> UpdateAttack:
    """Inner product manipulation: sends ``-scale mu``.

    Xie et al., 2020, "Fall of Empires: Breaking Byzantine-tolerant SGD by Inner Product
    Manipulation" (arXiv:1903.03936); ``mu`` is the mean of the messages seen. The paper
    takes small strengths from 0.1, which turn the inner product of aggregate and
    gradient negative under a robust rule; ByzFL takes 2.

    Threat model: knows the mean of the honest messages (or of its colluders' own).

    Args:
      scale: epsilon of the paper, 0 or more; traced.
      knowledge: whose messages make the mean, "honest" or "colluders"; static.

    Raises:
      ValueError: for a number out of range.
    """
    rows.check_knowledge("ipm", knowledge)
    rows.check_number("ipm: scale", scale, low=0)
    return UpdateAttack(
        functools.partial(_numbers, scale=scale), _forge_scaled_mean(knowledge)
    )


def standard_deviations(
    present: jax.Array, num_malicious: jax.Array, attacking: jax.Array
) -> jax.Array:
    """Returns z of "A Little Is Enough", float32 ``[]``.

    ``z = Phi^-1((n - f - s) / (n - f))`` with ``s = floor(n / 2 + 1) - f``, the honest
    messages that a majority still needs.

    Args:
      present: n, messages that the server receives.
      num_malicious: f as the attacker believes it to be; below 0 it counts.
      attacking: malicious clients of this cohort.
    """
    f = jnp.where(num_malicious < 0, attacking, num_malicious).astype(jnp.float32)
    n = present.astype(jnp.float32)
    supporters = jnp.floor(n / 2.0 + 1.0) - f
    others = jnp.maximum(n - f, 1.0)
    chance = (others - supporters) / others
    return jax.scipy.special.ndtri(jnp.clip(chance, _EDGE, 1.0 - _EDGE))


@functools.cache
def _forge_alie(knowledge: Knowledge):
    def forge(
        stacked: Updates, malicious: jax.Array, state: State, context: AttackContext
    ) -> tuple[Updates, State]:
        seen = rows.visible(knowledge, malicious, context)
        mean = rows.mean_of(stacked, seen)
        deviation = rows.deviation_of(stacked, seen, mean, state["ddof"])
        z = standard_deviations(
            rows.num_present(malicious, context),
            state["num_malicious"],
            jnp.sum(malicious),
        )
        z = state["sign"] * jnp.where(state["given"], state["z"], z)
        return rows.put(stacked, malicious, rows.along(mean, z, deviation)), state

    return forge


def alie(
    *,
    z: float | None = None,
    sign: float = 1.0,
    num_malicious: int | None = None,
    ddof: float = 1.0,
    knowledge: Knowledge = "honest",
) -> UpdateAttack:
    """A little is enough: sends ``mu + sign z sigma``.

    Baruch et al., 2019, "A Little Is Enough: Circumventing Defenses For Distributed
    Learning" (arXiv:1902.06156); ``mu`` and ``sigma`` are mean and standard deviation
    of each coordinate over the messages seen. Implementations differ in the sign: ByzFL
    and FLPoison add (``sign=1``), others subtract (``sign=-1``). ByzFL's numbers are
    ``z=1.5, ddof=1``; FLPoison's ``z=None, ddof=0``.

    Without z it is the paper's ``Phi^-1((n - f - s) / (n - f))``,
    ``s = floor(n/2 + 1) - f``, where n are the messages of this round; it may be
    negative where f is small, and its argument is kept within ``[1e-6, 1 - 1e-6]``.

    Threat model: knows mean and deviation of the honest messages (or of its colluders'
    own, the paper's setting), and how many clients there are.

    Args:
      z: the strength; None takes the paper's. Traced.
      sign: 1 or -1; traced.
      num_malicious: f as the attacker believes it to be; None counts the malicious
        clients of the cohort. Traced.
      ddof: sigma divides by the number of messages less this; traced.
      knowledge: whose messages are seen, "honest" or "colluders"; static.

    Raises:
      ValueError: for a number out of range.
    """
    rows.check_knowledge("alie", knowledge)
    if z is not None:
        rows.check_number("alie: z", z)
    if sign not in (1, -1):
        raise ValueError(f"alie: sign must be 1 or -1, not {sign}")
    rows.check_number("alie: ddof", ddof, low=0)
    check_num_malicious("alie", num_malicious)
    return UpdateAttack(
        functools.partial(
            _numbers,
            z=0.0 if z is None else z,
            given=z is not None,
            sign=sign,
            num_malicious=-1 if num_malicious is None else num_malicious,
            ddof=ddof,
        ),
        _forge_alie(knowledge),
    )


def check_num_malicious(attack: str, num_malicious: int | None) -> None:
    """Refuses a negative number of attackers.

    Raises:
      ValueError: naming it.
    """
    if num_malicious is not None and num_malicious < 0:
        raise ValueError(
            f"{attack}: num_malicious must be 0 or more, not {num_malicious}; leave it "
            "out to count the malicious clients of each cohort"
        )


@functools.cache
def _forge_gaussian(center: str):
    def forge(
        stacked: Updates, malicious: jax.Array, state: State, context: AttackContext
    ) -> tuple[Updates, State]:
        ids = rows.client_ids(malicious, context)
        middle = None
        if center == "mean":
            seen = rows.visible("honest", malicious, context)
            middle = rows.mean_of(stacked, seen)

        def noise(row: Updates, i: jax.Array) -> Updates:
            start = middle
            if center != "mean":
                start = row if center == "own" else trees.zeros_like(row)
            key = jax.random.fold_in(context.key, ids[i])
            return rows.along(start, state["std"], rows.normal_like(key, row))

        return rows.change_rows(stacked, malicious, noise), state

    return forge


def gaussian(
    *, std: float = 1.0, center: Literal["mean", "zero", "own"] = "mean"
) -> UpdateAttack:
    """Sends normal noise around the mean, around zero or around the own message.

    ``center + std z`` with ``z`` standard normal, a draw of its own for each attacker.
    Blanchard et al., 2017 (arXiv:1703.02757) draw around zero with a standard deviation
    of 200.

    Threat model: "mean" knows the mean of the honest messages; "own" the own message;
    "zero" nothing.

    Args:
      std: standard deviation of each coordinate, 0 or more; traced.
      center: "mean", "zero" or "own"; static.

    Raises:
      ValueError: for another centre or a number out of range.
    """
    rows.check_choice("gaussian: center", center, ("mean", "zero", "own"))
    rows.check_number("gaussian: std", std, low=0)
    return UpdateAttack(functools.partial(_numbers, std=std), _forge_gaussian(center))


def _forge_sybil(
    stacked: Updates, malicious: jax.Array, state: State, context: AttackContext
) -> tuple[Updates, State]:
    ids = rows.client_ids(malicious, context)
    own = rows.mean_of(stacked, rows.visible("colluders", malicious, context))
    message = trees.scale(own, state["scale"])
    norm = jnp.sqrt(trees.squared_norm(message))
    std = state["jitter"] * norm / trees.num_params(message) ** 0.5

    def copy(row: Updates, i: jax.Array) -> Updates:
        key = jax.random.fold_in(context.key, ids[i])
        return rows.along(message, std, rows.normal_like(key, row))

    return rows.change_rows(stacked, malicious, copy), state


def sybil(*, scale: float = 1.0, jitter: float = 0.0) -> UpdateAttack:
    """Sends one message under many names.

    All malicious clients send the mean of the messages that they would have sent, times
    ``scale``, which rules that look for a majority or for a lonely outlier take as
    agreement (Fung et al., 2020, "The Limitations of Federated Learning in Sybil
    Settings", the attack that FoolsGold looks for). With ``jitter`` each copy has noise
    of its own whose expected norm is that share of the message's norm, so that the
    copies are not equal. It is of use beside an attack on the data.

    Threat model: knows the messages of the malicious clients alone.

    Args:
      scale: factor on the common message; traced.
      jitter: norm of the noise in norms of the message, 0 or more; traced.

    Raises:
      ValueError: for numbers out of range.
    """
    rows.check_number("sybil: scale", scale)
    rows.check_number("sybil: jitter", jitter, low=0)
    return UpdateAttack(
        functools.partial(_numbers, scale=scale, jitter=jitter), _forge_sybil
    )
