"""A table with categories, gaps and a modality without gaps, in three wards."""

import numpy as np

from fedjax_health.data.schema import Dataset

COLOURS = ("red", "green", "blue", "never")
SHAPES = ("round", "10", "9")


def made(sizes=(60, 40, 25), *, seed=0, missing=0.2):
    """Modality "notes" has two columns of categories and gaps, "flow" has neither."""
    generator = np.random.default_rng(seed)
    rows = sum(sizes)
    client = np.repeat(np.arange(len(sizes)), sizes).astype(np.int32)
    notes = np.stack(
        [
            generator.normal(size=rows) * 3 + client,
            generator.integers(0, 3, rows),
            generator.integers(0, 3, rows),
        ],
        axis=1,
    )
    notes[generator.random(notes.shape) < missing] = np.nan
    flow = generator.normal(size=(rows, 4)) @ generator.normal(size=(4, 4))
    label = (generator.random(rows) < 0.3).astype(np.float32)
    return Dataset(
        features={"notes": notes.astype(np.float32), "flow": flow.astype(np.float32)},
        feature_names={"notes": ("dose", "colour", "shape"), "flow": tuple("abcd")},
        label=label,
        attack=label.astype(np.int32),
        attack_names=("normal", "attack"),
        client=client,
        client_names=tuple(f"ward {index}" for index in range(len(sizes))),
        entity=np.zeros(rows, np.int64),
        time=np.arange(rows, dtype=np.float64),
        masked=frozenset({"notes"}),
        categories={"notes": {"colour": COLOURS, "shape": SHAPES}},
    )
