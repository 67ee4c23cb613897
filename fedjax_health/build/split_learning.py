"""A configuration becomes a cut, and says which parts some clients lack."""

import functools
import re

import numpy as np

from fedjax_health import config, models
from fedjax_health.build.prepared import Prepared
from fedjax_health.config import Config, ConfigError
from fedjax_health.core.types import InputLayout
from fedjax_health.data.presence import present_modalities
from fedjax_health.data.schema import last_rows
from fedjax_health.engine.places import Parts, SplitTraining
from fedjax_health.models import split as splits
from fedjax_health.models.fusion import default_encoder


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


def split_training(
    settings: Config,
    layout: InputLayout,
    named: dict[str, models.Encoder],
    single: models.Encoder | None,
    *,
    steps: int,
) -> SplitTraining | None:
    """Returns how the halves are trained; None for a whole model.

    Args:
      settings: the configuration.
      layout: of the modalities.
      named: modality -> encoder, of a fusion.
      single: the encoder of a model that has one.
      steps: times of an example for which there is an answer.
    """
    split = model_split(settings)
    if split is None:
        return None
    assert settings.split_learning is not None
    others: tuple[models.Encoder, ...] = ()
    if single is None:
        every = {
            c.name: named.get(c.name) or default_encoder(c, streams=steps > 1)
            for c in layout
        }
        encoder = every[split.modality or layout[0].name]
        others = tuple(e for n, e in every.items() if n != split.modality)
        if split.modality is None:
            others = ()
    else:
        encoder = single
    server, client = splits.places(split, encoder)
    try:
        up, down = splits.bytes_of(split, encoder, others, steps=steps)
    except ValueError as error:
        raise ConfigError(f"config: {error}") from error
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
