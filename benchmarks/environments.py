"""Makes the virtual environments of the rivals: ``python -m benchmarks.environments``.

Each rival runs in an environment of its own with pinned versions, since none of them
installs beside a current jax. FedJAX is installed package by package without its
declared dependencies: newer jax breaks or slows it, and resolving would bring one.
pip's own settings (index, proxy, wheel folders) apply as usual.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

DEFAULT_ROOT = Path(".benchmark-envs")
_MARK = "benchmark-environment"


class Environment(NamedTuple):
    """One rival's environment.

    Attributes:
      python: the version of Python, "3.10".
      installs: arguments of ``pip install``, one call each, in this order.
      probe: a program that must run for the environment to count as made.
    """

    python: str
    installs: tuple[tuple[str, ...], ...]
    probe: str


ENVIRONMENTS = {
    "fedjax": Environment(
        python="3.10",
        installs=(
            (
                "--no-deps",
                "fedjax==0.0.17",
                "jax==0.4.20",
                "jaxlib==0.4.20",
                "numpy==1.26.4",
                "scipy==1.12.0",
                "optax==0.1.7",
                "dm-haiku==0.0.10",
                "absl-py==2.1.0",
                "certifi==2024.2.2",
                "charset-normalizer==3.3.2",
                "chex==0.1.85",
                "idna==3.7",
                "jmp==0.0.4",
                "ml-dtypes==0.3.2",
                "msgpack==1.0.8",
                "opt-einsum==3.3.0",
                "requests==2.31.0",
                "tabulate==0.9.0",
                "toolz==0.12.1",
                "typing-extensions==4.12.2",
                "urllib3==2.2.1",
            ),
        ),
        probe="import fedjax; from fedjax.algorithms import fed_avg",
    ),
    "pfl": Environment(
        python="3.11",
        # torch first: a wheel without GPU libraries, if pip has been shown one, must
        # not lose to the one that pfl would ask for.
        installs=(
            ("torch==2.13.0",),
            ("pfl==0.6.0", "numpy==2.4.6", "scipy==1.17.1"),
        ),
        probe="import pfl.model.pytorch",
    ),
    "byzfl": Environment(
        python="3.11",
        # byzfl asks for torchvision and more, which its aggregators do not need.
        installs=(
            ("torch==2.13.0",),
            ("numpy==2.4.6", "scipy==1.17.1"),
            ("--no-deps", "byzfl==0.0.11"),
        ),
        probe="import torch, numpy, scipy",
    ),
    "flower": Environment(
        python="3.11",
        installs=(("flwr==1.42.0", "numpy==2.4.6", "cryptography==50.0.2"),),
        probe="from flwr.common.secure_aggregation import secaggplus_utils",
    ),
}


class EnvironmentsError(RuntimeError):
    """An environment that cannot be made; the text says why and what to do."""


def python_of(name: str, root: Path) -> Path:
    """Returns the interpreter of an environment, whether or not it has been made."""
    return root / name / "bin" / "python"


def is_ready(name: str, root: Path) -> bool:
    """Whether an environment was made to the end and with today's pins."""
    mark = root / name / _MARK
    return mark.exists() and mark.read_text() == _fingerprint(name)


def command_for(name: str, root: Path) -> str:
    """Returns the command that makes an environment."""
    return f"python -m benchmarks.environments {name} --root {root}"


def _fingerprint(name: str) -> str:
    return hashlib.sha256(repr(ENVIRONMENTS[name]).encode()).hexdigest()


def find_python(version: str, given: str | None = None) -> str:
    """Returns an interpreter of a version.

    Args:
      version: such as "3.10".
      given: a path to use; None looks at this interpreter, the PATH and pyenv's
        folder.

    Raises:
      EnvironmentsError: if there is none, or the given one is another version.
    """
    if given is not None:
        candidates = [given]
    else:
        folder = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
        candidates = [
            sys.executable,
            shutil.which(f"python{version}"),
            *(str(p) for p in sorted(folder.glob(f"{version}.*/bin/python"))),
        ]
    for candidate in candidates:
        if candidate and _version_of(candidate) == version:
            return candidate
    option = f"--python{version.replace('.', '')}"
    if given is not None:
        found = _version_of(given) or "no Python at all"
        raise EnvironmentsError(
            f"{option} {given}: Python {version} is needed, this is {found}"
        )
    raise EnvironmentsError(
        f"Python {version} was not found: install it and name it with {option} PATH"
    )


def _version_of(python: str) -> str | None:
    program = "import sys; print('%d.%d' % sys.version_info[:2])"
    try:
        answer = subprocess.run(
            [python, "-c", program], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip()


def make(name: str, root: Path, *, python: str | None = None) -> Path:
    """Makes an environment, in place of what stands there; returns its interpreter.

    Args:
      name: one of ``ENVIRONMENTS``.
      root: the folder that holds all environments.
      python: an interpreter of the right version; None looks for one.

    Raises:
      EnvironmentsError: if there is no such interpreter or an installation fails; what
        was made so far is removed.
    """
    environment = ENVIRONMENTS[name]
    interpreter = find_python(environment.python, python)
    folder = root / name
    shutil.rmtree(folder, ignore_errors=True)
    inside = str(python_of(name, root))
    steps = [
        [interpreter, "-m", "venv", str(folder)],
        *(
            [inside, "-m", "pip", "install", "--quiet", *arguments]
            for arguments in environment.installs
        ),
        [inside, "-c", environment.probe],
    ]
    for step in steps:
        done = subprocess.run(step, capture_output=True, text=True)
        if done.returncode:
            shutil.rmtree(folder, ignore_errors=True)
            said = (done.stderr or done.stdout).strip().splitlines()[-8:]
            raise EnvironmentsError(
                f"environment {name}: {' '.join(step)} failed:\n" + "\n".join(said)
            )
    (folder / _MARK).write_text(_fingerprint(name))
    return python_of(name, root)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="+", choices=sorted(ENVIRONMENTS))
    parser.add_argument("--root", type=Path, default=DEFAULT_ROOT)
    parser.add_argument("--python310", help="an interpreter of Python 3.10")
    parser.add_argument("--python311", help="an interpreter of Python 3.11")
    parser.add_argument(
        "--force", action="store_true", help="make it anew though it is ready"
    )
    args = parser.parse_args()
    pythons = {"3.10": args.python310, "3.11": args.python311}
    for name in args.names:
        if is_ready(name, args.root) and not args.force:
            print(f"{name}: ready in {args.root / name}")
            continue
        try:
            made = make(name, args.root, python=pythons[ENVIRONMENTS[name].python])
        except EnvironmentsError as error:
            print(error, file=sys.stderr)
            return 1
        print(f"{name}: made, {made}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
