"""Writes the page. It loads nothing, runs nothing, and escapes whatever is not ours."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

from fedjax_health.report.findings import Finding
from fedjax_health.report.sections import Absent, Section
from fedjax_health.report.tables import Card

POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
    "base-uri 'none'; form-action 'none'"
)


class Page(NamedTuple):
    """What stands on a page.

    Attributes:
      title: what kind of report it is.
      subject: what it is about, in a word.
      name: of the folder.
      lead: a sentence on what was done.
      environment: versions and machine.
      cards: headline numbers.
      cautions: what speaks against trusting them.
      sections: what stands in it.
      absent: what does not.
    """

    title: str
    subject: str
    name: str
    lead: str
    environment: Mapping[str, Any]
    cards: Sequence[Card]
    cautions: Sequence[Finding]
    sections: Sequence[Section]
    absent: Sequence[Absent]


def render(
    page: Page,
    *,
    figures: Mapping[str, str],
    colours: Mapping[str, tuple[str, str]],
) -> str:
    """Returns the page.

    Args:
      page: what stands on it.
      figures: name -> ``<svg>`` element; the one thing that is not escaped.
      colours: name -> colour on a light and on a dark page, ``#rrggbb``.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fedjax_health.report"),
        # Always, whatever a template is called.
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    packages = page.environment.get("packages")
    version = packages.get("fedjax-health") if isinstance(packages, dict) else None
    return environment.get_template("report.html.j2").render(
        policy=POLICY,
        page=page,
        version=version,
        figures={name: Markup(svg) for name, svg in figures.items()},
        colours=colours,
    )
