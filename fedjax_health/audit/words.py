"""What each figure of an audit means, for a reader who has to decide on it."""

from typing import Any, NamedTuple

from fedjax_health.audit.inversion import Inversion
from fedjax_health.audit.rates import Measured, Rates
from fedjax_health.config import Config

NONE = "none"
_SECURE = ("secure_mean", "grouped_secure")


class Defences(NamedTuple):
    """What stood between the clients' data and who looks.

    Attributes:
      transforms: of each message, in order.
      mechanism: of differential privacy.
      secure: secure aggregation.
    """

    transforms: str
    mechanism: str
    secure: str


def defences_of(config: Config) -> Defences:
    """Returns what a configuration does to messages and their sum, in words."""
    shapes = [_name(entry) for entry in config.transforms]
    mechanism = NONE if config.mechanism is None else _name(config.mechanism)
    aggregator = _name(config.aggregator)
    return Defences(
        transforms=", ".join(shapes) or NONE,
        mechanism=mechanism,
        secure=aggregator if aggregator in _SECURE else NONE,
    )


def _name(entry: Any) -> str:
    """Returns the kind of a record of the configuration."""
    struct = getattr(entry, "__struct_config__", None)
    tag = None if struct is None else struct.tag
    name = str(tag or getattr(entry, "target", type(entry).__name__))
    for field in ("max_norm", "noise_multiplier", "epsilon"):
        value = getattr(entry, field, None)
        if isinstance(value, int | float):
            name += f" ({field} {value:g})"
    return name


def _training(defences: Defences) -> str:
    parts = [defences.transforms, defences.mechanism]
    return ", ".join(part for part in parts if part != NONE) or NONE


_MEMBERSHIP = {
    "loss, own": (
        "Loss threshold (Yeom et al. 2018), the run's own model",
        "Whoever has the released model and asks it about single examples; training "
        "examples against test examples of the same clients.",
    ),
    "lira, own": (
        "LiRA, offline (Carlini et al. 2022), the run's own model",
        "The same, with data like the clients' own, on which {shadows} shadow models "
        "were trained without the example that is asked about.",
    ),
    "loss, halves": (
        "Loss threshold, models of the same training on random halves",
        "Whoever has the released model; members and non-members are dealt by chance, "
        "so nothing but membership tells them apart.",
    ),
    "lira, halves": (
        "LiRA, online (Carlini et al. 2022), models of the same training on random "
        "halves",
        "The same, with the other shadow models, trained with and without each "
        "example: the strongest attacker of a released model here.",
    ),
}


def membership_row(
    name: str, found: Measured, defences: Defences, shadows: int
) -> dict[str, Any]:
    """Returns the row of an attack on membership.

    Args:
      name: a key of ``_MEMBERSHIP``.
      found: figures and intervals.
      defences: of the run.
      shadows: how many were trained.
    """
    title, threat = _MEMBERSHIP[name]
    value, intervals = found.rates, found.intervals
    own = name.endswith("own")
    return {
        "group": "membership",
        "attack": title,
        "threat": threat.format(shadows=shadows),
        "defence": _training(defences),
        **_figures(found),
        "meaning": _membership_meaning(value, intervals, own=own),
    }


def _figures(found: Measured) -> dict[str, Any]:
    value, intervals = found.rates, found.intervals
    return {
        "figure": "auroc",
        "value": value.auroc,
        "interval": list(intervals["auroc"]),
        "guessing": 0.5,
        "tpr": value.tpr,
        "tpr_interval": list(intervals["tpr"]),
        "balanced_accuracy": value.balanced,
        "balanced_interval": list(intervals["balanced"]),
        "members": found.members,
        "non_members": found.others,
    }


def _membership_meaning(
    value: Rates, intervals: dict[str, tuple[float, float]], *, own: bool
) -> str:
    low, high = intervals["auroc"]
    least = intervals["tpr"][0]
    # Of few non-members 1 % are a handful: twice the share of guessing is asked for.
    if low > 0.5 or least > 0.02:
        text = (
            f"Membership shows: a member outranks a non-member with probability "
            f"{value.auroc:.3f}, and {100 * value.tpr:.1f} % of members are found "
            "where 1 % of non-members are accused (guessing finds 1 %)."
        )
        if own:
            text += (
                " Part of it may be that test data differ from training data: see the "
                "control."
            )
        return text
    if own and high < 0.5:
        return (
            "The order is the wrong way round: test data are easier than training data "
            "for this model, which hides membership from this comparison; see the "
            "control and the rows on random halves."
        )
    return (
        "No better than guessing was shown. That is no proof that nothing leaks: "
        "another attack may find more."
    )


def control_row(found: Measured, shadows: int) -> dict[str, Any]:
    """Returns the row that says how far test data differ from training data."""
    value = found.rates
    low, high = found.intervals["auroc"]
    if low <= 0.5 <= high:
        meaning = (
            "Models that saw neither do not tell training from test examples: the two "
            "rows on the run's own model measure membership."
        )
    else:
        side = "easier" if value.auroc > 0.5 else "harder"
        meaning = (
            f"Training examples are {side} than test examples for models that saw "
            f"neither (AUROC {value.auroc:.3f}): the parts differ, by time or by "
            "chance, and the rows on the run's own model measure that as well. Trust "
            "the rows on random halves."
        )
    return {
        "group": "membership",
        "attack": "Control: loss of models that saw neither",
        "threat": f"Nobody: what the parts' difference alone does, by {shadows} shadow "
        "models on training examples left out of them and on test examples.",
        "defence": "does not matter",
        **_figures(found),
        "control": True,
        "meaning": meaning,
    }


def canary_row(epsilon: dict[str, Any], defences: Defences) -> dict[str, Any]:
    """Returns the row of the canaries.

    Args:
      epsilon: as it stands in ``audit.json``.
      defences: of the run.
    """
    lower, upper = epsilon["lower"], epsilon["upper"]
    sent = (
        "cut to the run's clipping bound"
        if epsilon["clipped"]
        else f"of the clients' usual norm ({epsilon['size']:.3g})"
    )
    threat = (
        "Whoever sees the aggregates of all rounds and knows what the canary clients "
        f"would send ({sent}, each in a place of its own), but not what the others "
        "send. Clients, not examples, are the unit."
    )
    failed = upper is not None and lower > upper
    guesses = (
        f"{epsilon['correct']} of {epsilon['guesses']} guesses were right, so with "
        f"{100 * epsilon['confidence']:.0f} % confidence epsilon is at least "
        f"{lower:.2f} at delta {epsilon['delta']:g}"
    )
    if failed:
        meaning = (
            f"{guesses}, which is above the accountant's {upper:.2f}: mechanism, "
            "sampling or accounting is wrong, or this is one of the 5 % of audits that "
            "err. Audit again with another seed, and do not rely on the guarantee."
        )
    elif upper is not None:
        meaning = (
            f"{guesses}. The accountant allows {upper:.2f}: what was seen agrees with "
            "it. The truth lies between; the gap is no sign of a fault."
        )
    else:
        meaning = (
            f"{guesses}. Without a mechanism there is no upper bound: epsilon is "
            "infinite, and no number of right guesses is out of reach."
        )
    if lower >= epsilon["most"] - 1e-6 and lower > 0:
        meaning += (
            f" Every guess was right: {epsilon['canaries']} canaries cannot show more "
            f"than {epsilon['most']:.2f}."
        )
    return {
        "group": "canaries",
        "attack": "One-run canaries (Steinke et al. 2023)",
        "threat": threat,
        "defence": _training(defences),
        "figure": "epsilon_lower",
        "value": lower,
        "interval": [lower, None],
        "guessing": 0.0,
        "upper": upper,
        "failed": failed,
        "meaning": meaning,
    }


def wire_rows(leakage: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the rows of what crosses a cut.

    Args:
      leakage: from ``evaluate.wire.wire_leakage``.
    """
    rows = []
    for border in leakage["borders"]:
        read = border.get("read")
        if read is None:
            continue
        sent, bare = read["sent"], read["bare"]
        what = f"{border['carries']}, {border['of']}"
        shared = {
            "group": "wire",
            "defence": ", ".join(border["steps"]) or NONE,
            "failed": False,
        }
        if "decoder_error" in sent:
            rows += _inputs_rows(what, sent, bare, leakage, shared)
        else:
            rows += _labels_rows(what, sent, bare, shared)
    return rows


def _inputs_rows(
    what: str,
    sent: dict[str, Any],
    bare: dict[str, Any],
    leakage: dict[str, Any],
    shared: dict[str, Any],
) -> list[dict[str, Any]]:
    error, interval = sent["decoder_error"], sent["decoder_error_interval"]
    meaning = "There are too few records to tell."
    if error is not None:
        meaning = (
            f"The squared error is {error:.2f} of that of guessing each column's mean "
            f"(over a bare wire {_two(bare['decoder_error'])}); 0 would be exact."
        )
    return [
        {
            **shared,
            "attack": f"Decoder on smashed data ({what})",
            "threat": "The server, or whoever reads its side of the wire, with "
            f"{leakage['known']:,} training examples beside what they sent; tried on "
            f"{leakage['held_out']:,} held-out examples.",
            "figure": "decoder_error",
            "value": error,
            "interval": interval,
            "guessing": 1.0,
            "meaning": meaning,
        },
        {
            **shared,
            "attack": f"Dependence of smashed data on inputs ({what})",
            "threat": "Nobody in particular: how much there is to be read, by whatever "
            "means.",
            "figure": "distance_correlation",
            "value": sent["correlation"],
            "interval": [None, None],
            "guessing": sent["correlation_by_chance"],
            "meaning": "1 is a copy. As many independent pairs give the value under "
            f"guessing; over a bare wire it is {_two(bare['correlation'])}.",
        },
    ]


def _labels_rows(
    what: str, sent: dict[str, Any], bare: dict[str, Any], shared: dict[str, Any]
) -> list[dict[str, Any]]:
    kinds = (
        ("norm", "Labels by the norm", "The server, which knows no label."),
        (
            "direction",
            "Labels by the direction",
            "The server, which knows half of the labels.",
        ),
    )
    return [
        {
            **shared,
            "attack": f"{title} of {what} (Li et al. 2022)",
            "threat": threat,
            "figure": "auroc",
            "value": sent[name],
            "interval": sent[f"{name}_interval"],
            "guessing": 0.5,
            "meaning": "The probability that a positive step or example outranks a "
            f"negative one; over a bare wire {_two(bare[name])}.",
        }
        for name, title, threat in kinds
    ]


def _two(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f}"


def inversion_row(
    found: Inversion, defences: Defences, *, windows: bool
) -> dict[str, Any]:
    """Returns the row of an inversion.

    Args:
      found: what it found.
      defences: of the run.
      windows: whether an example is a window of rows.
    """
    what = "window" if windows else "record"
    examples = f"{found.batch} {what}{'s' if found.batch > 1 else ''}"
    titles = {
        "analytic": "Analytic first layer (Phong et al. 2018)",
        "matching": "Gradient matching, cosine (Geiping et al. 2020)",
    }
    match found.message:
        case "bare":
            threat = (
                "Whoever sees the bare gradient of one step, and knows the model, the "
                "labels and which values were observed: the worst case."
            )
            defence = NONE
        case "sent":
            seen = (
                "An honest but curious server that sees single messages"
                if defences.secure == NONE
                else "Hidden from the server by secure aggregation; what a server "
                "without it, or one that colludes with all other clients, would see"
            )
            threat = f"{seen}: the update of one local step as the client sends it."
            parts = ["the client's own optimiser and dropout", defences.transforms]
            if defences.mechanism.startswith(("local", "distributed")):
                parts.append(f"the client's noise of {defences.mechanism}")
            defence = ", ".join(part for part in parts if part != NONE)
        case _:
            threat = (
                "Whoever sees the noised sum of a round and knows every other client's "
                "message."
            )
            defence = ", ".join(
                part
                for part in (defences.transforms, defences.mechanism)
                if part != NONE
            )
    low, high = found.interval
    if low > max(found.control + 0.1, 0.9):
        meaning = f"The {what}s can be read from the message."
    elif low > found.control:
        meaning = (
            f"The message shows more of the {what}s than data of the same kind do "
            f"({found.control:.2f})."
        )
    else:
        meaning = (
            f"Nothing was shown beyond what other {what}s of the same labels tell "
            f"({found.control:.2f}). A stronger attack may find more."
        )
    return {
        "group": "inversion",
        "attack": f"{titles[found.attack]}, {examples}",
        "threat": threat,
        "defence": defence,
        "figure": "correlation",
        "value": found.correlation,
        "interval": [low, high],
        "guessing": found.control,
        "error": found.error,
        "batch": found.batch,
        "message": found.message,
        "examples": found.examples,
        "meaning": meaning,
    }
