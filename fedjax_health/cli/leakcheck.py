"""The leak check of a file, with the verdict first."""

import argparse
import json
import sys
import warnings
from typing import Any, TextIO

from fedjax_health.cli import show

# A plain table, its label in the column "label"; --set names other roles.
_TABLE = '[data]\nkind = "table"\n'


def check(options: argparse.Namespace) -> dict[str, Any]:
    """Searches data for what gives the label away; imports jax for no table.

    Args:
      options: path, config, overrides and seed.

    Returns:
      The report with the data's size, as JSON holds it.
    """
    from fedjax_health import build
    from fedjax_health.config import load, parse
    from fedjax_health.data.leakcheck import as_record

    changes = list(options.overrides)
    if options.path is not None:
        # Quoted, or a path such as "1" would be read as a number.
        changes.insert(0, f"data.path={json.dumps(options.path)}")
    if options.config is None and options.path is not None:
        if options.seed is not None:
            changes.append(f"seed={options.seed}")
        given = parse(_TABLE, changes)
        config = build.guess_columns(given)
    else:
        given = config = load(options.config or "demo", changes, seed=options.seed)
    named = build.name_files(config)
    if named is not None:
        print(f"reading {named}", file=sys.stderr)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        dataset = build.build_dataset(config)
    _tell_guesses(given.data, config.data)
    for warning in caught:
        print(f"warning: {warning.message}", file=sys.stderr)
    split = build.split_of(config, dataset)
    found = as_record(build.find_leaks(config, dataset, split))
    return {"rows": dataset.num_rows, "clients": dataset.num_clients, **found}


def _tell_guesses(given: Any, taken: Any):
    """Says which columns were taken for what nobody had called them."""
    if not hasattr(given, "categorical"):
        return
    told = []
    if taken.time != given.time:
        told.append(f"as the time: {taken.time}")
    words = [name for name in taken.categorical if name not in given.categorical]
    if words:
        told.append(f"as categories: {', '.join(words)}")
    if told:
        print(f"taken {'; '.join(told)}", file=sys.stderr)


def present(result: dict[str, Any], stream: TextIO):
    """Writes what was found: the checks, then every column.

    Args:
      result: what ``check`` returned.
      stream: where it goes.
    """
    failed = sum(not one["passed"] for one in result["checks"])
    verdict = "nothing gives the label away"
    if failed:
        verdict = f"{failed} of {len(result['checks'])} checks warn"
    stream.write(
        f"{verdict} ({result['rows']:,} rows, {result['clients']:,} clients)\n"
    )
    for one in result["checks"]:
        stream.write(f"{'ok     ' if one['passed'] else 'WARNING'} {one['check']}: ")
        stream.write(f"{one['message']}\n")
    rows = [
        {
            "column": column["column"],
            "role": column["role"],
            "AUROC": column["auroc"],
            "gives the label away": "yes" if column["suspicious"] else "",
        }
        for column in result["columns"]
    ]
    show.rows(rows, ("column", "role", "AUROC", "gives the label away"), stream)
