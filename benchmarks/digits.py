"""The grid of ``benchmarks.robustness_grid``: cells, data and initial parameters.

NumPy alone, but for ``write``, which needs scikit-learn: the driver writes the data
once, and every process reads the same file, in whatever environment it runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

HONEST = 10
FRACTIONS = (0, 2, 4)
"""Malicious clients beside the honest ones: 0, 17 and 29 % of all."""

ATTACKS = ("sign_flip", "ipm", "alie", "mimic")
DEFENCES = ("mean", "median", "trimmed_mean", "geometric_median", "nnm_trimmed_mean")
SEEDS = (0, 1)

IPM_SCALE = 2.0
ALIE_Z = 1.5
SMOOTHING, WEISZFELD_STEPS = 0.1, 8

FEATURES, HIDDEN, CLASSES = 64, 32, 10
BATCH_SIZE = 25
LEARNING_RATE = 0.1
SIMILARITY = 0.66
TEST_EXAMPLES = 360


class Cell(NamedTuple):
    """One training run of the grid."""

    attack: str
    defence: str
    malicious: int
    seed: int

    @property
    def name(self) -> str:
        """The cell as one word."""
        return f"{self.attack}/{self.defence}/{self.malicious}/{self.seed}"


def cells() -> list[Cell]:
    """Returns the whole grid."""
    return [
        Cell(attack, defence, malicious, seed)
        for defence in DEFENCES
        for malicious in FRACTIONS
        for attack in ATTACKS
        for seed in SEEDS
    ]


def cell_of(name: str) -> Cell:
    """Returns the cell of a name."""
    attack, defence, malicious, seed = name.split("/")
    return Cell(attack, defence, int(malicious), int(seed))


def blocks(seed: int) -> list[list[Cell]]:
    """Deals the grid into random blocks, each with every attack on every defence once.

    Returns:
      Disjoint blocks of 20 cells that make up the grid; fraction and seed of a pair
      are drawn without replacement from block to block.
    """
    rng = np.random.default_rng(seed)
    kinds = [(f, s) for f in FRACTIONS for s in SEEDS]
    dealt: list[list[Cell]] = [[] for _ in kinds]
    for attack in ATTACKS:
        for defence in DEFENCES:
            for block, kind in zip(dealt, rng.permutation(len(kinds)), strict=True):
                block.append(Cell(attack, defence, *kinds[kind]))
    for block in dealt:
        rng.shuffle(block)
    return [[Cell(*cell) for cell in block] for block in dealt]


class Data(NamedTuple):
    """What every engine trains on.

    Attributes:
      x: float32 ``[examples, 64]``, the clients' examples one client after the other.
      label: int32 ``[examples]``.
      offsets: int64 ``[honest + 1]``.
      test_x: float32 ``[360, 64]``.
      test_label: int32 ``[360]``.
      params: initial parameters of each seed, name -> ``[seeds, ...]``.
    """

    x: np.ndarray
    label: np.ndarray
    offsets: np.ndarray
    test_x: np.ndarray
    test_label: np.ndarray
    params: dict[str, np.ndarray]


def split(label: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """Deals examples to the honest clients, as ByzFL's ``gamma_similarity_niid`` does.

    A share ``SIMILARITY`` of them is dealt at random, the rest in the order of their
    labels, to every client the same number.
    """
    order = rng.permutation(len(label))
    alike = int(len(label) * SIMILARITY)
    rest = order[alike:]
    rest = rest[np.argsort(label[rest], kind="stable")]
    pairs = zip(
        np.array_split(order[:alike], HONEST),
        np.array_split(rest, HONEST),
        strict=True,
    )
    return [np.concatenate(pair) for pair in pairs]


def initial_params(seed: int, hidden: int) -> dict[str, np.ndarray]:
    """Returns PyTorch's default initialisation of the MLP, uniform in its fan-in."""
    rng = np.random.default_rng([7, seed])

    def uniform(fan_in: int, *shape: int) -> np.ndarray:
        bound = 1.0 / np.sqrt(fan_in)
        return rng.uniform(-bound, bound, shape).astype(np.float32)

    return {
        "w1": uniform(FEATURES, FEATURES, hidden),
        "b1": uniform(FEATURES, hidden),
        "w2": uniform(hidden, hidden, CLASSES),
        "b2": uniform(hidden, CLASSES),
    }


def build(x: np.ndarray, label: np.ndarray, *, hidden: int = HIDDEN) -> Data:
    """Returns the clients, the test set and the initial parameters.

    Args:
      x: ``[examples, 64]``, pixels.
      label: ``[examples]``.
      hidden: hidden units of the MLP.
    """
    rng = np.random.default_rng(0)
    order = rng.permutation(len(label))
    test, train = order[:TEST_EXAMPLES], order[TEST_EXAMPLES:]
    # One mean and one deviation for all pixels, as torchvision's Normalize has.
    scaled = ((x - x[train].mean()) / x[train].std()).astype(np.float32)
    label = label.astype(np.int32)
    dealt = [train[places] for places in split(label[train], rng)]
    sizes = [len(places) for places in dealt]
    first = [initial_params(seed, hidden) for seed in SEEDS]
    return Data(
        x=scaled[np.concatenate(dealt)],
        label=label[np.concatenate(dealt)],
        offsets=np.concatenate([[0], np.cumsum(sizes)]),
        test_x=scaled[test],
        test_label=label[test],
        params={name: np.stack([p[name] for p in first]) for name in first[0]},
    )


def write(path: Path, *, hidden: int = HIDDEN) -> None:
    """Writes scikit-learn's digits as ``build`` prepares them."""
    from sklearn.datasets import load_digits

    x, label = load_digits(return_X_y=True)
    data = build(x, label, hidden=hidden)
    np.savez(path, **data._asdict() | {"params": np.array(0)}, **data.params)


def read(path: Path) -> Data:
    """Reads what ``write`` wrote."""
    with np.load(path) as held:
        arrays = {name: held[name] for name in held.files}
    params = {name: arrays[name] for name in ("w1", "b1", "w2", "b2")}
    fields = {name: arrays[name] for name in Data._fields if name != "params"}
    return Data(**fields, params=params)


def accuracy(params: dict[str, np.ndarray], data: Data) -> float:
    """Returns the share of the test set that the MLP gets right."""
    hidden = np.maximum(data.test_x @ params["w1"] + params["b1"], 0.0)
    logits = hidden @ params["w2"] + params["b2"]
    return float(np.mean(np.argmax(logits, axis=1) == data.test_label))
