"""What crosses which border of a split model, and what can be read back, as tables."""

from typing import Any

from fedjax_health.report.privacy import communication_of, epsilon_text
from fedjax_health.report.records import View
from fedjax_health.report.tables.form import Table
from fedjax_health.report.wire import epsilons_of, leakage_of
from fedjax_health.report.words import DASH, number, size

_COLUMNS = (
    "from, to",
    "what",
    "numbers of an example",
    "bits",
    "bytes a round",
    "protection",
    "what can be read back",
)


def borders(view: View) -> Table | None:
    """Returns what crosses which border; None for a run whose wire was not read.

    Args:
      view: what was read.
    """
    told = leakage_of(view)
    if not told:
        return None
    rounds = max(int(view.result.get("rounds") or 1), 1)
    sums = communication_of(view)
    rows = []
    for place, border in enumerate(told["borders"], 1):
        sides = ("hospital", "server")
        from_, to = sides if border["up"] else sides[::-1]
        rows.append(
            (
                f"{place}: {from_} to {to}",
                f"{border['carries']}, {border['of']}"
                if border["of"]
                else border["carries"],
                number(border["numbers"]),
                number(border["bits"]),
                size(_of_round(border, told["borders"], sums, rounds)),
                ", ".join(border["steps"]) or "none",
                _read_back(border, told, epsilons_of(view)),
            )
        )
    rows += _messages(view, sums, rounds, len(rows))
    return Table(
        "What crosses which border",
        _COLUMNS,
        tuple(rows),
        frozenset({0, 1, 5, 6}),
    )


def _of_round(
    border: dict[str, Any],
    every: list[dict[str, Any]],
    sums: dict[str, Any],
    rounds: int,
) -> float | None:
    """Returns a border's part of what crossed its way, bytes of a round on average."""
    total = sums.get(f"wire_{'up' if border['up'] else 'down'}_bytes_total")
    same = sum(other["bytes"] for other in every if other["up"] == border["up"])
    if not isinstance(total, int | float) or not same:
        return None
    return total / rounds * border["bytes"] / same


def _read_back(
    border: dict[str, Any], told: dict[str, Any], epsilons: dict[str, Any]
) -> str:
    read = (border.get("read") or {}).get("sent")
    if border["carries"] == "labels":
        return "the labels themselves"
    if not border["up"]:
        return "nothing that its receiver did not give or have"
    if read is None:
        return DASH
    if "decoder_error" in read:
        text = (
            f"records: decoder error {_short(read['decoder_error'])} (1 is the mean), "
            f"distance correlation {_short(read['correlation'])} (by chance "
            f"{_short(read['correlation_by_chance'])})"
        )
        if "epsilon_activations" in epsilons and border["of"] == told["modality"]:
            found = _epsilon(epsilons["epsilon_activations"])
            text += f"; epsilon of an example: {found}"
        return text
    text = (
        f"labels: AUROC {_short(read['norm'])} by length, "
        f"{_short(read['direction'])} by direction"
    )
    if "epsilon" in epsilons:
        text += f"; epsilon of 1 and this together: {_epsilon(epsilons['epsilon'])}"
    return text


def _epsilon(value: Any) -> str:
    large = isinstance(value, float) and value >= 100
    return f"{value:,.0f}" if large else epsilon_text(value)


def _short(value: Any) -> str:
    return number(value, 2)


def _messages(
    view: View, sums: dict[str, Any], rounds: int, before: int
) -> list[tuple[str, ...]]:
    """Returns the messages of a round, which cross beside the wire."""
    shapes = view.config.get("transforms")
    kinds = [str(one.get("kind")) for one in shapes or () if isinstance(one, dict)]
    rows = []
    for place, (name, sides, what) in enumerate(
        (
            ("uplink", "hospital to server", "updates of all but the server's half"),
            ("downlink", "server to hospital", "the model but the server's half"),
        ),
        before + 1,
    ):
        total = sums.get(f"{name}_bytes_total")
        if not isinstance(total, int | float):
            continue
        up = name == "uplink"
        rows.append(
            (
                f"{place}: {sides}",
                f"messages of a round: {what}",
                DASH,
                DASH,
                size(total / rounds),
                (", ".join(kinds) or "none") if up else "none",
                "see the leakage audit (fedjax-health audit)" if up else "the model",
            )
        )
    return rows


def read_back(view: View) -> Table | None:
    """Returns every figure of the wire, with its interval and beside a bare wire.

    Args:
      view: what was read.
    """
    told = leakage_of(view)
    kinds = (
        ("decoder_error", "decoder's squared error, the mean's is 1", 1.0),
        ("correlation", "distance correlation", None),
        ("norm", "labels by length, AUROC", 0.5),
        ("direction", "labels by direction, AUROC", 0.5),
    )
    rows = []
    for place, border in enumerate(told.get("borders", ()), 1):
        read = border.get("read")
        for name, text, guessing in kinds:
            if read is None or name not in read["sent"]:
                continue
            sent = read["sent"]
            rows.append(
                (
                    f"{place}: {border['carries']}, {border['of']}",
                    text,
                    number(sent[name]),
                    _interval(sent.get(f"{name}_interval")),
                    number(read["bare"][name]),
                    number(sent.get(f"{name}_by_chance", guessing)),
                )
            )
    if not rows:
        return None
    return Table(
        "What can be read back, over the wire as it is and over a bare one",
        ("border", "figure", "value", "95 % interval", "bare wire", "guessing"),
        tuple(rows),
        frozenset({0, 1}),
    )


def _interval(pair: Any) -> str:
    if not isinstance(pair, list) or None in pair:
        return DASH
    return f"{number(pair[0])} to {number(pair[1])}"
