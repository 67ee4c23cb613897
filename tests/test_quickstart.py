"""The README's quickstart, as it is printed there, in a process of its own."""

import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_the_quickstart_runs_and_learns():
    code = re.search(
        r"<!-- quickstart.*?-->\s*```python\n(.*?)```", README.read_text(), re.DOTALL
    )
    assert code is not None
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning", "-c", code.group(1)],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=README.parent,
    )
    assert done.returncode == 0, done.stderr
    first, last = re.search(r"loss (\S+) -> (\S+)", done.stdout).groups()
    assert float(last) < 0.7 * float(first)
    assert "1,796 bytes from each client" in done.stdout


def test_the_commands_that_the_readme_promises_parse():
    from fedjax_health.cli.parser import parse_flags

    text = README.read_text()
    lines = re.findall(r"^fedjax-health (\S+)(.*?)(?:\s#.*)?$", text, re.MULTILINE)
    assert {name for name, _ in lines} == {
        "run",
        "resume",
        "plan",
        "privacy",
        "audit",
        "leakcheck",
        "evaluate",
        "report",
        "sweep",
        "generate",
        "presets",
    }
    for name, rest in lines:
        parse_flags(["fedjax-health", name, *rest.split()])
