"""What a report calls positive and negative rows: attacks, or deaths, or a disease."""

from typing import NamedTuple

from fedjax_health.report.records import View


class Nouns(NamedTuple):
    """Words for the two classes.

    Attributes:
      one: a positive, without an article.
      many: positives.
      row: a row that is positive, with its article.
      rows: such rows.
      other: a row that is negative, with its article.
      others: such rows.
      units: what has a label of its own.
      are: what is said of units that are positive.
    """

    one: str
    many: str
    row: str
    rows: str
    other: str
    others: str
    units: str
    are: str


ATTACKS = Nouns(
    one="attack",
    many="attacks",
    row="an attack row",
    rows="attack rows",
    other="a normal row",
    others="normal rows",
    units="rows",
    are="are attacks",
)

# By the name that a data set gives to its only kind of positive.
_OTHERS = {
    "death in hospital": Nouns(
        one="death",
        many="deaths",
        row="a death",
        rows="deaths",
        other="a survivor",
        others="survivors",
        units="stays",
        are="ended in death",
    ),
    "heart disease": Nouns(
        one="patient with disease",
        many="patients with disease",
        row="a patient with disease",
        rows="patients with disease",
        other="a patient without it",
        others="patients without disease",
        units="patients",
        are="have the disease",
    ),
    "positive": Nouns(
        one="positive",
        many="positives",
        row="a positive row",
        rows="positive rows",
        other="a negative row",
        others="negative rows",
        units="rows",
        are="are positive",
    ),
}


def nouns_of(view: View) -> Nouns:
    """Returns the words for the data of a run or an evaluation.

    Args:
      view: what was read.
    """
    names: set[str] = set()
    if view.figures is not None:
        names = {attack.attack for attack in view.figures.attacks}
    if not names and view.predictions is not None:
        names = set(view.predictions.attack_names) - {"normal"}
    return _OTHERS.get(min(names), ATTACKS) if len(names) == 1 else ATTACKS
