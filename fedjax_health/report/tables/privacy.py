"""The guarantee of a run and its bytes, as tables."""

from typing import Any

from fedjax_health.report.privacy import (
    communication_of,
    epsilon_text,
    guarantees_of,
)
from fedjax_health.report.records import View, numbers_of
from fedjax_health.report.tables.form import Table, rate
from fedjax_health.report.words import number, size

_GUARANTEE = (
    ("unit", "who is protected: one"),
    ("relation", "neighbouring data"),
    ("protected_against", "against"),
    ("epsilon", "epsilon, all rounds together"),
    ("epsilon_activations", "epsilon of the activations alone"),
    ("delta", "delta"),
    ("crossings", "times that an example crosses, at most"),
    ("rounds", "rounds"),
    ("epsilon_at_best_round", "epsilon up to the round of the model"),
    ("clients", "clients"),
    ("least_protected", "client whose examples are protected least"),
    ("examples_of_least_protected", "its examples"),
    ("sampler", "sampling"),
    ("noise", "noise"),
    ("noise_multiplier", "noise multiplier"),
    ("accountant", "accountant"),
)

_PHASES = ("advertise_keys", "share_keys", "masked_input", "unmasking")


def guarantees(view: View) -> list[Table]:
    """Returns what is protected, against whom, how much and over how long.

    Args:
      view: what was read.

    Returns:
      A table for each unit that is protected.
    """
    return [_guarantee(told) for told in guarantees_of(view)]


def _guarantee(told: dict[str, Any]) -> Table:
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
        f"Privacy of one {told.get('unit', 'client')}: against whom, how much and over "
        "how long",
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
    for name, text in (
        ("wire_up_bytes_total", "across the cut to the server, all rounds"),
        ("wire_down_bytes_total", "across the cut to the clients, all rounds"),
    ):
        if name in told:
            rows.append((text, size(told[name])))
    share = told.get("share_of_dense")
    if isinstance(share, int | float):
        rows.append(("share of the message without compression", rate(share)))
    return Table("Bytes on the wire", ("what", "bytes"), tuple(rows))


def secure_sums(view: View) -> Table | None:
    """Returns what the phases of a secure sum sent, by round on average.

    Args:
      view: what was read.
    """
    columns = ("messages", "bytes_up", "bytes_down")
    rows = []
    for phase in _PHASES:
        found = [numbers_of(view, f"secagg_{name}_{phase}")[1] for name in columns]
        if not all(len(values) for values in found):
            continue
        messages, up, down = (float(values.mean()) for values in found)
        name = phase.replace("_", " ")
        rows.append((name, f"{messages:,.1f}", size(up), size(down)))
    if not rows:
        return None
    return Table(
        "Phases of the secure sum, by round on average",
        ("phase", "messages", "from the clients", "to the clients"),
        tuple(rows),
    )
