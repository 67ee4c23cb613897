"""What a run says of its privacy and of its messages, in words."""

import math
from typing import Any

from fedjax_health.report.records import View, numbers_of
from fedjax_health.report.words import listing, number, percentage, size

# Rounds that are named one by one.
NAMED_ROUNDS = 12


def privacy_of(view: View) -> dict[str, Any]:
    """Returns the guarantee of a run; empty where it gives none.

    Args:
      view: what was read.
    """
    told = view.result.get("privacy")
    return told if isinstance(told, dict) else {}


def guarantees_of(view: View) -> list[dict[str, Any]]:
    """Returns the guarantees of a run: of a client, of an example, of one on a wire.

    Args:
      view: what was read.
    """
    others = [view.result.get(name) for name in ("example_privacy", "wire_privacy")]
    found = [privacy_of(view), *(x for x in others if isinstance(x, dict))]
    return [told for told in found if told]


def communication_of(view: View) -> dict[str, Any]:
    """Returns the bytes of a whole run; empty where they were not counted.

    Args:
      view: what was read.
    """
    told = view.result.get("communication")
    return told if isinstance(told, dict) else {}


def is_told(view: View) -> bool:
    """Returns whether a run did something to its messages that a reader should see.

    Args:
      view: what was read.
    """
    if view.kind == "evaluation":
        return False
    named = ("epsilon", "saturation", "clip_fraction", "aborted")
    if guarantees_of(view) or any(len(numbers_of(view, name)[0]) for name in named):
        return True
    counted = len(numbers_of(view, "uplink_bytes")[0]) > 0
    return counted and bool(view.config.get("transforms"))


def paragraphs(view: View) -> tuple[str, ...]:
    """Says what the guarantee means, what was sent, and what went wrong.

    Args:
      view: what was read.
    """
    meanings = [_meaning(told) for told in guarantees_of(view)]
    others = (_chosen(view), _sent(view), _shaped(view), _aborted(view))
    found = (*meanings, *others)
    return tuple(text for text in found if text)


def epsilon_text(value: Any) -> str:
    """Writes an epsilon; JSON has no infinity, so that None stands for it.

    Args:
      value: a number or None.
    """
    return "no bound" if value is None else number(value)


def _meaning(told: dict[str, Any]) -> str:
    epsilon, delta = told.get("epsilon"), told.get("delta")
    if not isinstance(epsilon, int | float) or not isinstance(delta, int | float):
        return "No bound on epsilon is known: nothing is guaranteed."
    unit = str(told.get("unit", "client"))
    about = f"whether one {unit} was there"
    if str(told.get("relation", "")).startswith("replace"):
        about = f"which data one {unit} holds"
    text = f"For one {unit} epsilon is {number(epsilon)} at delta {delta:g}."
    if epsilon < 700:
        text += (
            " Whoever sees what is released can improve the odds of a guess on "
            f"{about} by a factor of at most exp(epsilon) = {_factor(epsilon)}, "
            "but for a chance of delta."
        )
    if "simulation-grade" in str(told.get("noise", "")):
        text += (
            " That is the bound of true noise of this size; the noise that was drawn "
            "is simulation-grade."
        )
    if epsilon > 10:
        text += " So large a factor is no protection that anybody could rely on."
    return text


def _factor(epsilon: float) -> str:
    factor = math.exp(epsilon)
    if factor >= 1e6:
        return f"{factor:.2g}"
    return f"{factor:,.1f}" if factor < 100 else f"{factor:,.0f}"


def _chosen(view: View) -> str:
    told = privacy_of(view)
    best, rounds = told.get("best_round"), told.get("rounds")
    if not isinstance(best, int) or not isinstance(rounds, int) or best >= rounds:
        return ""
    return (
        f"Epsilon is that of all {rounds:,} rounds, since the model of round {best:,} "
        "was chosen among them on validation rows. The rounds up to that one cost "
        f"{epsilon_text(told.get('epsilon_at_best_round'))}."
    )


def _sent(view: View) -> str:
    told = communication_of(view)
    up, down = told.get("uplink_bytes_total"), told.get("downlink_bytes_total")
    if not isinstance(up, int) or not isinstance(down, int):
        return ""
    text = f"Clients sent {size(up)} in all and received {size(down)}."
    mean = told.get("uplink_bytes_per_client_round")
    share = told.get("share_of_dense")
    if isinstance(share, int | float):
        text += (
            f" One message took {size(mean)} on average, {percentage(share)} of the "
            "model without compression."
        )
    return text


def _shaped(view: View) -> str:
    _, clipped = numbers_of(view, "clip_fraction")
    _, saturated = numbers_of(view, "saturation")
    texts = []
    if len(clipped):
        mean = percentage(float(clipped.mean()))
        texts.append(f"On average {mean} of a round's messages were clipped.")
    if len(saturated) and saturated.max() > 0:
        worst = percentage(float(saturated.max()))
        texts.append(
            f"In the worst round {worst} of the numbers were cut at the largest that "
            "their integers hold (saturation): the sum is then not the true one."
        )
    elif len(saturated):
        texts.append("No number was cut at the largest that its integer holds.")
    return " ".join(texts)


def _aborted(view: View) -> str:
    rounds, aborted = numbers_of(view, "aborted")
    which = rounds[aborted > 0]
    if not len(which):
        return ""
    names = listing([f"{n:,.0f}" for n in which], most=NAMED_ROUNDS)
    spent = " They count as spent all the same." if privacy_of(view) else ""
    return (
        f"In {len(which):,} of {len(rounds):,} rounds ({names}) fewer messages came in "
        "than a sum needs to be released: nothing was learnt of them, the model stayed "
        f"as it was, and the next cohort went on.{spent}"
    )
