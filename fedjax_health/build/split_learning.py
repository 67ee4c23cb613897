"""A configuration becomes a cut, and says which parts some clients lack."""

import functools
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fedjax_health import config, models
from fedjax_health.build.prepared import Prepared
from fedjax_health.config import Config, ConfigError
from fedjax_health.data.presence import present_modalities
from fedjax_health.data.schema import last_rows
from fedjax_health.engine.places import Parts, SplitTraining
from fedjax_health.models import split as splits
from fedjax_health.models.encoders import num_layers, width_at


def model_split(settings: Config) -> models.Split | None:
    """Returns where the model is cut; None for a whole one.

    Raises:
      ConfigError: for steps that make no sense on a wire.
    """
    chosen = settings.split_learning
    if chosen is None:
        return None
    try:
        return models.Split(
            chosen.cut,
            chosen.modality,
            chosen.labels,
            tuple(map(wire_step, chosen.activations)),
            tuple(map(wire_step, chosen.cotangents)),
        )
    except ValueError as error:
        raise ConfigError(f"config: split_learning: {error}") from error


def wire_step(chosen: config.Cotangent):
    """Returns the step that a record stands for."""
    match chosen:
        case config.WireClip(max_norm=norm):
            return models.ClipExample(norm)
        case config.WireNoise(multiplier=multiplier):
            return models.Noise(multiplier)
        case config.WireQuantise(bits=bits):
            return models.Quantise(bits)
        case config.WireTopK(keep=keep):
            return models.TopK(keep)
        case config.WireDropout(rate=rate):
            return models.DropActivations(rate)
        case config.WireMaxNorm():
            return models.MaxNorm()
        case config.WireMarvell(power=power):
            return models.Marvell(power)


class Cut(NamedTuple):
    """Where a detector is cut, and what crosses there.

    Attributes:
      split: the cut with its steps.
      readers: all encoders, in the order of the modalities.
      cut: the one that is cut.
      borders: all that crosses for one example in one visit.
    """

    split: models.Split
    readers: tuple[splits.Reads, ...]
    cut: splits.Reads
    borders: tuple[splits.Border, ...]

    @property
    def width(self) -> int:
        """Numbers of the embedding of the encoder that is cut."""
        encoder = self.cut.encoder
        return width_at(encoder, num_layers(encoder), self.cut.layout)


def cut_of(
    settings: Config, readers: Sequence[splits.Reads], *, steps: int, window: int
) -> Cut | None:
    """Returns where the detector is cut; None for a whole one.

    Args:
      settings: the configuration.
      readers: the modalities' encoders, or the only one.
      steps: times of an example for which there is an answer.
      window: times of an example.

    Raises:
      ConfigError: for a cut that the encoder cannot have.
    """
    split = model_split(settings)
    if split is None:
        return None
    names = [one.name for one in readers]
    path = "config: split_learning"
    if len(readers) == 1 and split.modality is not None:
        raise ConfigError(
            f"{path}.modality: {split.modality!r}: the detector has one encoder: "
            "leave it out"
        )
    if len(readers) > 1 and split.modality not in names:
        raise ConfigError(
            f"{path}.modality: {split.modality!r}: one of {', '.join(names)}"
        )
    place = 0 if split.modality is None else names.index(split.modality)
    cut = readers[place]
    try:
        splits.check_split(split, cut.encoder, owner=path)
        borders = splits.borders_of(
            split,
            cut,
            [one for one in readers if one is not cut],
            steps=steps,
            window=window,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return Cut(split, tuple(readers), cut, borders)


def split_training(settings: Config, found: Cut | None) -> SplitTraining | None:
    """Returns how the halves are trained; None for a whole model."""
    if found is None:
        return None
    assert settings.split_learning is not None
    server, client = splits.places(found.split, found.cut.encoder)
    up, down = (
        sum(border.num_bytes for border in found.borders if border.up == towards)
        for towards in (True, False)
    )
    return SplitTraining(server, client, settings.split_learning.mode, up, down)


# What of a fusion only those can train that have the modality's data; the learned
# vector for its absence is trained by the others.
_OWN = re.compile(r"^modality_(.*?)/(?:encoder|head|aligned|token)/")


@functools.cache
def modality_parts(names: tuple[str, ...]) -> Parts:
    """Returns the parts of a fusion of these modalities."""

    def of(path: str) -> int | None:
        found = _OWN.match(path)
        return None if found is None else names.index(found.group(1))

    return Parts(names, of)


def part_shares(prepared: Prepared) -> np.ndarray:
    """Returns what share of a client's examples has each modality, ``[clients, m]``.

    Whether a modality is there is asked of each training row, as the end of a window.
    """
    train = prepared.parts.train
    present = present_modalities(train, window=prepared.window)
    rows = train.client
    if train.target == "entity":
        rows = rows[last_rows(train)]
    clients = prepared.store.num_clients
    counts = np.maximum(np.bincount(rows, minlength=clients)[:clients], 1)
    columns = [
        np.bincount(rows, weights=present[:, m], minlength=clients)[:clients] / counts
        for m in range(present.shape[1])
    ]
    return np.stack(columns, axis=1).astype(np.float32)
