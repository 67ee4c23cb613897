"""From a run folder to its report: one page, and the figures as pictures."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedjax_health import records
from fedjax_health.records import RunFolderError
from fedjax_health.report import html, plots, tables
from fedjax_health.report.audit import audit_section
from fedjax_health.report.description import what_was_run
from fedjax_health.report.findings import cautions
from fedjax_health.report.plots import sweep as sweep_plots
from fedjax_health.report.records import View, read_folder
from fedjax_health.report.sections import sections
from fedjax_health.report.svg import inline_svg
from fedjax_health.report.sweep import sections as sweep_sections
from fedjax_health.report.sweep import summary
from fedjax_health.report.sweep.read import read_sweep

VARIABLE = "figure-"


def write_report(
    folder: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str] | None = None,
    tensorboard: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """Writes report.html, the figures as PNG, and event files where asked for.

    Equal folders give equal bytes. Files of an earlier report are replaced.

    Args:
      folder: of a finished run or sweep, or of an evaluation.
      out: the page, in place of ``report.html`` in the folder.
      tensorboard: folder for TensorBoard's event file; none is written without it.

    Returns:
      ``report``, ``plots`` (paths), ``sections`` (ids in order), ``left_out`` (title
      -> reason) and, where asked for, ``tensorboard``, the event file.

    Raises:
      RunFolderError: if there is nothing to report or a file is damaged, and if
        ``out`` is no place for a page.
      MissingExtraError: if tensorboard is asked for and not installed.
    """
    if records.sweep_folder(folder).sweep.is_file():
        if tensorboard is not None:
            raise RunFolderError(f"{folder}: a sweep has no event files, a run has")
        return _write_sweep(folder, out)
    view = read_folder(folder)
    paths = records.run_folder(folder)
    page = paths.report if out is None else _checked(Path(out))
    if tensorboard is not None:
        from fedjax_health.report import tensorboard as events

        events.require()
    figures = plots.draw(view)
    there, absent = sections(view, figures)
    audited = audit_section(folder)
    if audited is not None:
        there.append(audited)
    content = html.Page(
        title="Detection report",
        subject="Evaluation" if view.kind == "evaluation" else "Run",
        name=view.name,
        lead=what_was_run(view),
        environment=view.environment,
        cards=tables.cards(view),
        cautions=cautions(view),
        sections=there,
        absent=absent,
    )
    pictures = _write_page(content, figures, page, paths.plots)
    _remove_others(paths.plots, pictures)
    result = _told(content, pictures, page, paths.plots)
    if tensorboard is not None:
        started = paths.config if paths.config.is_file() else paths.root
        result["tensorboard"] = _write_events(view, tensorboard, pictures, started)
    return result


def _write_sweep(
    folder: str | os.PathLike[str], out: str | os.PathLike[str] | None
) -> dict[str, Any]:
    view = read_sweep(folder)
    paths = records.sweep_folder(folder)
    page = paths.report if out is None else _checked(Path(out))
    found = summary.cases(view)
    answers = summary.verdicts(view, found)
    figures = sweep_plots.draw(view)
    there, absent = sweep_sections.sections(view, found, answers, figures)
    content = html.Page(
        title="Sweep report",
        subject="Sweep",
        name=view.name,
        lead=sweep_sections.lead(view),
        environment=view.environment,
        cards=sweep_sections.cards(view, answers),
        cautions=sweep_sections.cautions(view, answers),
        sections=there,
        absent=absent,
    )
    pictures = _write_page(content, figures, page, paths.plots)
    for old in paths.plots.glob("*.png"):
        if old.stem not in pictures:
            old.unlink(missing_ok=True)
    return _told(content, pictures, page, paths.plots)


def _write_page(
    content: html.Page, figures: Mapping[str, Any], page: Path, folder: Path
) -> dict[str, bytes]:
    """Writes a page and its figures as pictures; returns the pictures."""
    captions = {d.name: d.caption for part in content.sections for d in part.drawings}
    inline = {
        name: inline_svg(
            plots.to_svg(figure, salt=name),
            prefix=name,
            label=captions.get(name, name),
            colours={f"{VARIABLE}{n}": c for n, c in plots.COLOURS.items()},
        )
        for name, figure in figures.items()
    }
    text = html.render(
        content,
        figures=inline,
        colours={n: (c, plots.DARK[n]) for n, c in plots.COLOURS.items()},
    )
    pictures = {name: plots.to_png(figure) for name, figure in figures.items()}
    records.write_text(page, text)
    folder.mkdir(exist_ok=True)
    for name, picture in pictures.items():
        records.write_bytes(folder / f"{name}.png", picture)
    return pictures


def _told(
    content: html.Page, pictures: Mapping[str, bytes], page: Path, folder: Path
) -> dict[str, Any]:
    return {
        "report": str(page),
        "plots": [str(folder / f"{name}.png") for name in pictures],
        "sections": [part.id for part in content.sections],
        "left_out": {part.title: part.reason for part in content.absent},
    }


def _write_events(
    view: View,
    folder: str | os.PathLike[str],
    pictures: dict[str, bytes],
    started: Path,
) -> str:
    from fedjax_health.report import tensorboard as events

    # The configuration is written when a run starts.
    path = events.write_events(
        view, folder, pictures=pictures, started=started.stat().st_mtime
    )
    return str(path)


def _checked(page: Path) -> Path:
    if page.suffix.lower() not in (".html", ".htm"):
        raise RunFolderError(f"{page}: a report is HTML: name a file ending in .html")
    if page.is_dir():
        raise RunFolderError(f"{page}: is a folder: name a file ending in .html")
    if not page.absolute().parent.is_dir():
        raise RunFolderError(f"{page.absolute().parent}: no such folder")
    return page


def _remove_others(folder: Path, pictures: dict[str, bytes]):
    """Removes pictures of an earlier report that this one does not have."""
    for name in plots.FIGURES:
        if name not in pictures:
            (folder / f"{name}.png").unlink(missing_ok=True)
