"""The form of ``figures.json`` and ``leakcheck.json``, checked when they are read.

Fields that are not named here are passed over, and everything but the few that a
report cannot do without may be absent: a report shows what there is.
"""

from typing import Any, TypeVar

import msgspec

FORMAT = 1

Number = float | None
Numbers = tuple[Number, ...]
Form = TypeVar("Form")


class FiguresError(ValueError):
    """A file of figures that does not have the form of one."""


class Roc(msgspec.Struct, frozen=True):
    """Recall against the share of normal rows reported, by threshold."""

    false_alarm_rate: Numbers
    recall: Numbers


class Pr(msgspec.Struct, frozen=True):
    """Precision against recall, by threshold."""

    recall: Numbers
    precision: Numbers


class Calibration(msgspec.Struct, frozen=True):
    """Mean score and share of attacks in each bin, with the bin's rows."""

    predicted: Numbers
    observed: Numbers
    rows: Numbers


class Delay(msgspec.Struct, frozen=True):
    """Delays in steps by threshold, with the false alarms that each costs."""

    achieved_far: Numbers
    mean_delay: Numbers
    median_delay: Numbers = ()
    missed_episodes: Numbers = ()
    false_alarms_per_entity_day: Numbers | None = None
    rate: Numbers = ()


class Curves(msgspec.Struct, frozen=True):
    """Every curve that there is."""

    roc: Roc | None = None
    pr: Pr | None = None
    calibration: Calibration | None = None
    delay: Delay | None = None


class Client(msgspec.Struct, frozen=True):
    """Figures of one client; AUROC and AUPRC are None where it holds one class."""

    client: str
    rows: int
    positives: int
    auroc: Number = None
    auprc: Number = None
    f1: Number = None
    achieved_far: Number = None


class Attack(msgspec.Struct, frozen=True):
    """Figures of one type of attack, its rows against all normal ones."""

    attack: str
    rows: int
    auroc: Number = None
    auprc: Number = None
    recall: Number = None
    episodes: int | None = None
    missed_episodes: int | None = None
    mean_delay: Number = None


class Pattern(msgspec.Struct, frozen=True):
    """Figures of the rows that have the same modalities; None for one class."""

    pattern: str
    rows: int
    positives: int
    auroc: Number = None
    auprc: Number = None
    f1: Number = None


class Spread(msgspec.Struct, frozen=True):
    """One metric over the clients that hold both classes."""

    mean: Number = None
    worst: Number = None
    worst_decile: Number = None
    std: Number = None
    ranked: int | None = None
    excluded: int | None = None


class FalseAlarms(msgspec.Struct, frozen=True):
    """How often normal rows give alarm at the threshold for alarms in time."""

    per_1000_rows: Number = None
    per_entity_day: Number = None


class Confusion(msgspec.Struct, frozen=True):
    """Counts of rows by answer and truth at the threshold of the best F1."""

    true_positives: int
    false_positives: int
    false_negatives: int
    true_negatives: int


class Backdoor(msgspec.Struct, frozen=True):
    """Share of rows of other classes given the target's, with and without trigger."""

    target: int
    attack_success: Number = None
    without_trigger: Number = None


class Figures(msgspec.Struct, frozen=True):
    """What was measured on the rows of one part; see ``docs/metrics.md``."""

    metrics: dict[str, Number] = {}
    details: dict[str, Number] = {}
    format: int = FORMAT
    rows: int | None = None
    positives: int | None = None
    prevalence: Number = None
    threshold: Number = None
    delay_threshold: Number = None
    intervals: dict[str, tuple[Number, Number] | None] = {}
    interval_unit: str | None = None
    resamples: int | None = None
    resamples_left_out: int = 0
    confusion: Confusion | None = None
    curves: Curves = Curves()
    clients: tuple[Client, ...] = ()
    client_spread: dict[str, Spread] = {}
    attacks: tuple[Attack, ...] = ()
    patterns: tuple[Pattern, ...] = ()
    control: dict[str, dict[str, Number]] = {}
    false_alarms: FalseAlarms | None = None
    oracle: dict[str, Number] | None = None
    backdoor: Backdoor | None = None


class Check(msgspec.Struct, frozen=True):
    """One thing that the leak check looked at."""

    check: str
    passed: bool
    value: Number = None
    limit: Number = None
    message: str = ""


class LeakColumn(msgspec.Struct, frozen=True):
    """How well one column tells the label by itself."""

    column: str
    role: str = ""
    auroc: Number = None
    suspicious: bool = False


class LeakCheck(msgspec.Struct, frozen=True):
    """What the leak check found before training."""

    passed: bool
    checks: tuple[Check, ...] = ()
    columns: tuple[LeakColumn, ...] = ()


def read_figures(value: Any) -> Figures:
    """Returns the figures in a JSON value.

    Args:
      value: the content of ``figures.json``.

    Raises:
      FiguresError: if it has another form, a later format, or a curve whose
        columns differ in length.
    """
    version = value.get("format", FORMAT) if isinstance(value, dict) else FORMAT
    if isinstance(version, int) and version > FORMAT:
        raise FiguresError(
            f"format {version} is later than this version of fedjax-health can read: "
            "update it"
        )
    figures = _convert(value, Figures)
    for name in Curves.__struct_fields__:
        curve = getattr(figures.curves, name)
        if curve is not None:
            _check_lengths(name, curve)
    return figures


def read_leakcheck(value: Any) -> LeakCheck:
    """Returns the leak check in a JSON value.

    Args:
      value: the content of ``leakcheck.json``.

    Raises:
      FiguresError: if it has another form.
    """
    return _convert(value, LeakCheck)


def _check_lengths(name: str, curve: Any):
    columns = msgspec.structs.asdict(curve)
    lengths = {key: len(values) for key, values in columns.items() if values}
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{key} {length}" for key, length in lengths.items())
        raise FiguresError(f"curves.{name}: columns of different length: {shown}")


def _convert(value: Any, form: type[Form]) -> Form:
    try:
        return msgspec.convert(value, form)
    except msgspec.ValidationError as error:
        text = str(error).replace("`", "").replace("$.", "")
        raise FiguresError(text[:1].lower() + text[1:]) from error
