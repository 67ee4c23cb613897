"""The guarantee of a run and its bytes, as tables."""

from fedjax_health.report.privacy import (
    communication_of,
    epsilon_text,
    privacy_of,
)
from fedjax_health.report.records import View
from fedjax_health.report.tables.form import Table, rate
from fedjax_health.report.words import number, size

_GUARANTEE = (
    ("unit", "who is protected: one"),
    ("relation", "neighbouring data"),
    ("protected_against", "against"),
    ("epsilon", "epsilon, all rounds together"),
    ("delta", "delta"),
    ("rounds", "rounds"),
    ("epsilon_at_best_round", "epsilon up to the round of the model"),
    ("clients", "clients"),
    ("sampler", "how a round's clients are drawn"),
    ("noise", "noise"),
    ("noise_multiplier", "noise multiplier"),
    ("accountant", "accountant"),
)


def guarantee(view: View) -> Table | None:
    """Returns what is protected, against whom, how much and over how long.

    Args:
      view: what was read.
    """
    told = privacy_of(view)
    if not told:
        return None
    rows = []
    for name, text in _GUARANTEE:
        if name not in told:
            continue
        value = told[name]
        if name.startswith("epsilon"):
            rows.append((text, epsilon_text(value)))
        elif name == "delta" and isinstance(value, float):
            rows.append((text, f"{value:g}"))
        elif value is not None:
            rows.append((text, number(value)))
    marked = []
    for name, text in (("warnings", "warning"), ("not_covered", "not covered")):
        said = told.get(name)
        for one in said if isinstance(said, list) else ():
            if name == "warnings":
                marked.append(len(rows))
            rows.append((text, str(one)))
    return Table(
        "What is protected, against whom, how much and over how long",
        ("what", "value"),
        tuple(rows),
        frozenset({0, 1}),
        marked=frozenset(marked),
    )


def communication(view: View) -> Table | None:
    """Returns what went over the wire.

    Args:
      view: what was read.
    """
    told = communication_of(view)
    if not told:
        return None
    names = (
        ("uplink_bytes_total", "from the clients, all rounds"),
        ("downlink_bytes_total", "to the clients, all rounds"),
        ("uplink_bytes_per_client_round", "a message, on average"),
        ("dense_bytes", "a message without compression"),
    )
    rows = [(text, size(told.get(name))) for name, text in names]
    share = told.get("share_of_dense")
    if isinstance(share, int | float):
        rows.append(("share of the message without compression", rate(share)))
    return Table("Bytes on the wire", ("what", "bytes"), tuple(rows))
