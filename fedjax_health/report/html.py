"""Writes the page. It loads nothing, runs nothing, and escapes whatever is not ours."""

from collections.abc import Mapping

import jinja2
from markupsafe import Markup

from fedjax_health.report import tables
from fedjax_health.report.description import what_was_run
from fedjax_health.report.findings import cautions
from fedjax_health.report.records import View
from fedjax_health.report.sections import Absent, Section

POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
    "base-uri 'none'; form-action 'none'"
)


def render(
    view: View,
    sections: list[Section],
    absent: list[Absent],
    *,
    figures: Mapping[str, str],
    colours: Mapping[str, tuple[str, str]],
) -> str:
    """Returns the page.

    Args:
      view: what was read.
      sections: what stands in it.
      absent: what does not.
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
    packages = view.environment.get("packages")
    version = packages.get("fedjax-health") if isinstance(packages, dict) else None
    return environment.get_template("report.html.j2").render(
        policy=POLICY,
        view=view,
        subject="Evaluation" if view.kind == "evaluation" else "Run",
        description=what_was_run(view),
        version=version,
        cards=tables.cards(view),
        cautions=cautions(view),
        sections=sections,
        absent=absent,
        figures={name: Markup(svg) for name, svg in figures.items()},
        colours=colours,
    )
