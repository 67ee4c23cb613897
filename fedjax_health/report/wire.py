"""What a split run's wire shows, and to whom, in words."""

from typing import Any

from fedjax_health.report.findings import Finding
from fedjax_health.report.records import View

# Of the error of guessing the mean.
_MOSTLY_READ, _HARDLY_READ = 0.5, 0.95
# Of an area under the ROC curve.
_NEAR_GUESSING = 0.55


def leakage_of(view: View) -> dict[str, Any]:
    """Returns what was measured on the wire; empty where nothing was.

    Args:
      view: what was read.
    """
    told = view.result.get("wire_leakage")
    return told if isinstance(told, dict) and told.get("borders") else {}


def epsilons_of(view: View) -> dict[str, Any]:
    """Returns the guarantee of an example on the wire; empty where there is none.

    Args:
      view: what was read.
    """
    told = view.result.get("wire_privacy")
    return told if isinstance(told, dict) else {}


def paragraphs(view: View) -> tuple[str, ...]:
    """Says where the model is cut, and how what crosses was measured.

    Args:
      view: what was read.
    """
    told = leakage_of(view)
    if not told:
        return ()
    layers = told["cut"]
    first = (
        f"The encoder of {told['modality']} is cut after layer {layers:,}: the layers "
        "up to there run in the hospital, on its records, the others at the server. "
    )
    first += (
        "Labels and all that follows the encoder stay in the hospital (U shape)."
        if told["labels"] == "client"
        else "Labels and all that follows the encoders are at the server."
    )
    measured = (
        "What can be read back was tried on the trained detector, on its wire as it is "
        f"in training, by somebody who knows {told['known']:,} training examples "
        f"beside what they sent, on {told['held_out']:,} held-out ones. "
        "Bare is the same cut without protection. What these attacks do not find a "
        "better one may, above all one that knows the hospital's layers."
    )
    if told.get("contrast_left_out"):
        measured += (
            " Views of the contrastive loss cross beside the examples and were left "
            "out."
        )
    return first, measured


def answers(view: View) -> tuple[Finding, ...]:
    """Says in plain words what is protected and what is not, and against whom.

    Args:
      view: what was read.
    """
    told = leakage_of(view)
    if not told:
        return ()
    return (
        Finding("Records", _records(told)),
        Finding("Labels", _labels(told)),
        Finding("Guarantee", _guarantee(view, told)),
        Finding("Against whom", _against(view, told)),
    )


def _read(told: dict[str, Any], figure: str) -> list[tuple[dict[str, Any], Any, Any]]:
    """Returns borders with the figure over the wire and over a bare one."""
    found = []
    for border in told["borders"]:
        read = border.get("read") or {}
        if figure in read.get("sent", {}):
            found.append((border, read["sent"][figure], read["bare"][figure]))
    return found


def _records(told: dict[str, Any]) -> str:
    texts = ["No record crosses as it is."]
    for border, error, bare in _read(told, "decoder_error"):
        what = f"the {border['carries']} of {border['of']}"
        if error is None:
            texts.append(f"Of {what} there were too few to try to read them back.")
            continue
        if error < _MOSTLY_READ:
            verdict = "most of what varies in the records can be read back"
        elif error < _HARDLY_READ:
            verdict = "a part of what varies in the records can be read back"
        else:
            verdict = "the decoder read back hardly anything of the records"
        against = "" if bare is None else f", {bare:.2f} over a bare wire"
        texts.append(
            f"From {what} {verdict}: a trained decoder's squared error is {error:.2f} "
            f"of that of guessing the mean{against}."
        )
    return " ".join(texts)


def _labels(told: dict[str, Any]) -> str:
    if told["labels"] == "server":
        return "Labels cross as they are: the server knows every one of them."
    by_norm, by_direction = _read(told, "norm"), _read(told, "direction")
    if not by_norm or by_norm[0][1] is None or by_direction[0][1] is None:
        return "Labels stay in the hospital; there were too few to try to guess them."
    (_, norm, bare_norm), (_, direction, bare) = by_norm[0], by_direction[0]
    shown = (
        "tell hardly anything of"
        if max(norm, direction) < _NEAR_GUESSING
        else "tell something of"
        if max(norm, direction) < 0.9
        else "all but give away"
    )
    return (
        "Labels stay in the hospital, but what training sends back to the server, the "
        f"cotangents of the embedding, {shown} them: by their length the AUROC is "
        f"{norm:.2f}, by their direction, for a server that knows half of the labels, "
        f"{direction:.2f} "
        f"(guessing 0.50; without protection {bare_norm:.2f} and {bare:.2f})."
    )


def _guarantee(view: View, told: dict[str, Any]) -> str:
    known = epsilons_of(view)
    epsilon, alone = known.get("epsilon"), known.get("epsilon_activations")
    if isinstance(epsilon, int | float) and epsilon <= 10:
        return (
            f"All that an example sends over the whole run is hidden with epsilon "
            f"{epsilon:,.2f} at delta {known['delta']:g} (noise drawn by a seeded "
            "simulation protects nobody)."
        )
    if isinstance(alone, int | float):
        size = f"{alone:,.0f}" if alone >= 100 else f"{alone:,.2f}"
        weak = (
            " which is no protection that anybody could rely on;" if alone > 10 else ""
        )
        rest = (
            "the cotangents that return carry no noise with a bound"
            if told["labels"] == "client"
            else "labels are not in it"
        )
        return f"The activations have epsilon {size} an example,{weak} {rest}."
    return (
        "None: no noise bounds what the wire says of an example. The figures below are "
        "what was tried, not a bound."
    )


def _against(view: View, told: dict[str, Any]) -> str:
    if not any(border["steps"] for border in told["borders"] if border["up"]):
        protected = "Nothing on this wire protects an example from the server."
    else:
        protected = (
            "The steps in the table stand between the hospital and the server, while "
            "the detector is trained."
        )
    text = (
        "Who reads along is the server, and whoever gets hold of its traffic; "
        f"other hospitals see none of it. {protected} When the trained detector is "
        "used, noise and dropout are off, and the bare figures are nearer to the truth."
    )
    if told["mode"] == "relay":
        text += " The hospital's layers pass on to the next hospital."
    elif told["client"] != "personal":
        secure = "secure" in str(view.config.get("aggregator"))
        text += (
            " The hospital's layers are averaged in secret, so the server knows their "
            "mean alone."
            if secure
            else " The server sees the hospital's layers as well, in the messages of a "
            "round, which makes reading back easier than what was tried here."
        )
    return text
