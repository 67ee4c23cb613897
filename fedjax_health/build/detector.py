"""A configuration becomes a detector and its training loss."""

from typing import Literal, Protocol, cast

from fedjax_health import config, losses, models
from fedjax_health.build.custom import custom_entry, misfit
from fedjax_health.build.prepared import Prepared
from fedjax_health.config import Config, ConfigError, Custom, call_custom
from fedjax_health.core.types import InputLayout, LossFn, Model
from fedjax_health.data.store import input_width


class Examples(Protocol):
    """What a detector must know of its examples."""

    @property
    def layout(self) -> InputLayout:
        """Where each modality lies in ``batch["x"]``."""
        ...

    @property
    def window(self) -> int | None:
        """Time steps of an example, or None for single records."""
        ...

    @property
    def target(self) -> str:
        """What a label belongs to; an entity's rows always are one window."""
        ...


def build_model(settings: Config, examples: Prepared | Examples) -> Model:
    """Returns the detector, made for the columns of the data."""
    chosen = settings.model
    layout = examples.layout
    found = (
        examples.parts.train.target
        if isinstance(examples, Prepared)
        else examples.target
    )
    target: Literal["row", "entity"] = "entity" if found == "entity" else "row"
    streams = examples.window is not None or target == "entity"
    match chosen:
        case config.Gru():
            return models.gru_detector(
                layout,
                hidden=chosen.hidden,
                dropout=chosen.dropout,
                norm=chosen.norm,
                target=target,
                pooling=chosen.pooling,
                statistics=chosen.statistics,
            )
        case config.Mlp():
            return models.mlp(
                layout,
                hidden=chosen.hidden,
                dropout=chosen.dropout,
                norm=chosen.norm,
                streams=streams,
                target=target,
                statistics=chosen.statistics,
            )
        case config.Fusion():
            names = [columns.name for columns in layout]
            for name in chosen.encoders:
                if name not in names:
                    raise ConfigError(
                        f"config: model.encoders.{name}: the data has no modality "
                        f"{name!r}: it has {', '.join(names)}"
                    )
            return models.fusion_detector(
                layout,
                encoders={n: _encoder(e) for n, e in chosen.encoders.items()},
                joint=chosen.joint,
                aligned=chosen.aligned,
                modality_dropout=chosen.modality_dropout,
                dropout=chosen.dropout,
                streams=streams,
                target=target,
            )
        case config.WideDeep():
            if streams:
                raise ConfigError(
                    "config: model: wide_deep reads single records: add --set "
                    "window.length=1, for stays --set summarise.statistics=[...], or "
                    "choose --set model=gru"
                )
            return models.wide_deep(
                layout,
                hidden=chosen.hidden,
                input_dropout=chosen.input_dropout,
                dropout=chosen.dropout,
            )
        case Custom():
            return custom_entry(chosen, Model, input_width(layout), path="model")


def _encoder(chosen: config.Encoder) -> models.Encoder:
    match chosen:
        case config.Gru():
            return models.GruEncoder(
                hidden=chosen.hidden,
                dropout=chosen.dropout,
                norm=chosen.norm,
                pooling=chosen.pooling,
                statistics=chosen.statistics,
            )
        case config.Mlp():
            return models.MlpEncoder(
                hidden=chosen.hidden,
                dropout=chosen.dropout,
                norm=chosen.norm,
                statistics=chosen.statistics,
            )


def build_loss(settings: Config, model: Model) -> LossFn:
    """Returns the training loss."""
    chosen = settings.loss
    match chosen:
        case config.Bce():
            supervised = losses.bce(
                positive_weight=chosen.positive_weight, burn_in=chosen.burn_in
            )
        case config.Focal():
            supervised = losses.focal_bce(
                gamma=chosen.gamma, alpha=chosen.alpha, burn_in=chosen.burn_in
            )
        case Custom():
            loss_fn: LossFn = call_custom(chosen, model, path="loss")
            if not callable(loss_fn):
                raise misfit(chosen, loss_fn, "LossFn", path="loss")
            return cast(LossFn, loss_fn)
    return losses.combine(model, supervised, unimodal_weight=settings.unimodal_weight)
