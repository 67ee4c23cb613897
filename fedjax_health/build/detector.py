"""A configuration becomes a detector and its training loss."""

from typing import Literal, Protocol, cast

from fedjax_health import config, losses, models
from fedjax_health.build.custom import custom_entry, misfit
from fedjax_health.build.prepared import Prepared
from fedjax_health.build.split_learning import Cut, cut_of, split_training
from fedjax_health.config import Config, ConfigError, Custom, call_custom
from fedjax_health.core.types import InputLayout, LossFn, Model
from fedjax_health.data.store import input_width
from fedjax_health.engine.places import SplitTraining
from fedjax_health.models.detectors import joined
from fedjax_health.models.fusion import default_encoder
from fedjax_health.models.split import Reads


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
    target = _target(examples)
    streams = examples.window is not None or target == "entity"
    cut = build_cut(settings, examples)
    split = None if cut is None else cut.split
    match chosen:
        case (
            config.Gru()
            | config.Mlp()
            | config.Tcn()
            | config.Grud()
            | config.FtTransformer()
        ):
            carried = any(columns.elapsed is not None for columns in layout)
            if isinstance(chosen, config.Grud) and not carried:
                raise ConfigError(
                    "config: model: grud needs values that are carried forward where "
                    "they were not observed, and this data has none: choose --set "
                    "model=gru"
                )
            return models.encoder_detector(
                layout,
                _encoder(chosen),
                streams=streams,
                target=target,
                split=split,
            )
        case config.Fusion():
            by_name = {columns.name: columns for columns in layout}
            for name, encoder in chosen.encoders.items():
                if name not in by_name:
                    raise ConfigError(
                        f"config: model.encoders.{name}: the data has no modality "
                        f"{name!r}: it has {', '.join(by_name)}"
                    )
                if isinstance(encoder, config.Grud) and not by_name[name].elapsed:
                    raise ConfigError(
                        f"config: model.encoders.{name}: grud needs values that are "
                        "carried forward where they were not observed: choose gru"
                    )
            return models.fusion_detector(
                layout,
                encoders={n: _encoder(e) for n, e in chosen.encoders.items()},
                joint=chosen.joint,
                aligned=chosen.aligned,
                modality_dropout=chosen.modality_dropout,
                dropout=chosen.dropout,
                fuse=chosen.fuse,
                disagreement=chosen.disagreement,
                heads=chosen.heads,
                streams=streams,
                target=target,
                split=split,
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
                dense=chosen.dense,
            )
        case config.Mlp():
            return models.MlpEncoder(
                hidden=chosen.hidden,
                dropout=chosen.dropout,
                norm=chosen.norm,
                statistics=chosen.statistics,
                input_dropout=chosen.input_dropout,
                skip=chosen.skip,
            )
        case config.Tcn():
            return models.TcnEncoder(
                hidden=chosen.hidden,
                levels=chosen.levels,
                kernel=chosen.kernel,
                dropout=chosen.dropout,
                pooling=chosen.pooling,
                statistics=chosen.statistics,
                dense=chosen.dense,
            )
        case config.Grud():
            return models.GruDEncoder(
                hidden=chosen.hidden,
                hidden_decay=chosen.hidden_decay,
                dropout=chosen.dropout,
                pooling=chosen.pooling,
                statistics=chosen.statistics,
                dense=chosen.dense,
            )
        case config.FtTransformer():
            return models.TransformerEncoder(
                width=chosen.width,
                blocks=chosen.blocks,
                heads=chosen.heads,
                dropout=chosen.dropout,
                dense=chosen.dense,
            )


def build_cut(settings: Config, examples: Prepared | Examples) -> Cut | None:
    """Returns where the detector is cut and what crosses there; None for a whole one.

    Raises:
      ConfigError: for a cut that the detector cannot have.
    """
    chosen, layout = settings.model, examples.layout
    if settings.split_learning is None:
        return None
    target = _target(examples)
    streams = examples.window is not None or target == "entity"
    match chosen:
        case config.Fusion(encoders=encoders):
            readers = [
                Reads(
                    columns.name,
                    _encoder(encoders[columns.name])
                    if columns.name in encoders
                    else default_encoder(columns, streams=streams),
                    (columns,),
                )
                for columns in layout
            ]
        case config.WideDeep() | Custom():
            return None
        case _:
            readers = [Reads(joined(layout), _encoder(chosen), layout)]
    window = examples.window or 1
    return cut_of(
        settings, readers, steps=window if target == "row" else 1, window=window
    )


def build_split(
    settings: Config, examples: Prepared | Examples
) -> SplitTraining | None:
    """Returns how the halves of a split model are trained; None for a whole one."""
    return split_training(settings, build_cut(settings, examples))


def build_loss(settings: Config, model: Model, examples: Prepared | Examples) -> LossFn:
    """Returns the training loss.

    Raises:
      ConfigError: for a term that these examples cannot have.
    """
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
    own = not isinstance(settings.model, Custom)
    if chosen.burn_in and own and _target(examples) == "entity":
        raise ConfigError(
            f"config: loss.burn_in: {chosen.burn_in}: this data has one label for a "
            "whole window: set it to 0"
        )
    return losses.combine(
        model,
        supervised,
        unimodal_weight=settings.unimodal_weight,
        temporal=_temporal(settings, examples),
        alignment=_alignment(settings, examples),
        nopeek=_nopeek(settings, examples),
    )


def _nopeek(settings: Config, examples: Prepared | Examples) -> losses.Term | None:
    split = settings.split_learning
    if split is None or not split.nopeek:
        return None
    return losses.nopeek(weight=split.nopeek, layout=examples.layout)


def _temporal(settings: Config, examples: Prepared | Examples) -> losses.Term | None:
    chosen = settings.temporal
    each_step = isinstance(chosen, config.LogitSmoothness | config.EmbeddingSmoothness)
    if each_step and _target(examples) == "entity":
        raise ConfigError(
            "config: temporal: this data has one label for a whole window, so there "
            "is nothing to be smooth: choose --set temporal=window, or none"
        )
    match chosen:
        case None:
            return None
        case config.LogitSmoothness():
            return losses.logit_smoothness(weight=chosen.weight, masked=chosen.masked)
        case config.EmbeddingSmoothness():
            return losses.embedding_smoothness(
                weight=chosen.weight, sigma=chosen.sigma, layout=examples.layout
            )
        case config.WindowContrast():
            return losses.window_contrast(
                weight=chosen.weight,
                layout=examples.layout,
                temperature=chosen.temperature,
                jitter=chosen.jitter,
                scaling=chosen.scaling,
            )


def _alignment(settings: Config, examples: Prepared | Examples) -> losses.Term | None:
    chosen = settings.alignment
    if chosen is None:
        return None
    names = [columns.name for columns in examples.layout]
    if len(names) < 2 and not isinstance(settings.model, Custom):
        raise ConfigError(
            f"config: alignment: the data has one modality, {', '.join(names)}: add "
            "--set alignment=none, or another modality"
        )
    match chosen:
        case config.InfoNce():
            return losses.alignment(
                weight=chosen.weight, temperature=chosen.temperature, step=chosen.step
            )
        case config.Comm():
            return losses.comm(
                weight=chosen.weight,
                temperature=chosen.temperature,
                jitter=chosen.jitter,
                scaling=chosen.scaling,
                layout=examples.layout,
            )


def _target(examples: Prepared | Examples) -> Literal["row", "entity"]:
    found = (
        examples.parts.train.target
        if isinstance(examples, Prepared)
        else examples.target
    )
    return "entity" if found == "entity" else "row"
