"""A configuration becomes a detector and its training loss."""

from typing import cast

from fedjax_health import config, losses, models
from fedjax_health.build.custom import custom_entry, misfit
from fedjax_health.build.prepare import Prepared
from fedjax_health.config import Config, Custom, call_custom
from fedjax_health.core.types import LossFn, Model
from fedjax_health.data.store import assembled_width


def build_model(settings: Config, prepared: Prepared) -> Model:
    """Returns the detector, made for the width of the data."""
    features = assembled_width(prepared.parts.train)
    chosen = settings.model
    match chosen:
        case config.Gru():
            return models.gru_detector(
                features,
                hidden=chosen.hidden,
                dropout=chosen.dropout,
                norm=chosen.norm,
            )
        case config.Mlp():
            return models.mlp(
                features,
                hidden=chosen.hidden,
                dropout=chosen.dropout,
                norm=chosen.norm,
                streams=prepared.window is not None,
            )
        case Custom():
            return custom_entry(chosen, Model, features, path="model")


def build_loss(settings: Config, model: Model) -> LossFn:
    """Returns the training loss."""
    chosen = settings.loss
    match chosen:
        case config.Bce():
            return losses.masked_bce(
                model, positive_weight=chosen.positive_weight, burn_in=chosen.burn_in
            )
        case Custom():
            loss_fn: LossFn = call_custom(chosen, model, path="loss")
            if not callable(loss_fn):
                raise misfit(chosen, loss_fn, "LossFn", path="loss")
            return cast(LossFn, loss_fn)
