"""The whole configuration of a run, and the combinations that cannot work."""

from typing import Literal

import msgspec

from fedjax_health.config.aggregators import Aggregator, FlTrust, Mean, Mixing
from fedjax_health.config.attacks import Attackers, DataAttack, UpdateAttack
from fedjax_health.config.common import (
    BelowOne,
    ConfigError,
    Count,
    Custom,
    NonNegative,
    Positive,
    Record,
    Seed,
)
from fedjax_health.config.data import Data, HospitalSim
from fedjax_health.config.detector import (
    Alignment,
    Bce,
    Comm,
    EmbeddingSmoothness,
    Encoder,
    Focal,
    FtTransformer,
    Fusion,
    Gru,
    Grud,
    InfoNce,
    LogitSmoothness,
    Loss,
    Mlp,
    Model,
    Tcn,
    Temporal,
    WideDeep,
    WindowContrast,
)
from fedjax_health.config.federation import (
    Checkpoint,
    Evaluation,
    Fixed,
    Norm,
    Personal,
    Sampling,
)
from fedjax_health.config.learning import (
    Algorithm,
    Ditto,
    FedAvg,
    Local,
    Scaffold,
    Server,
    ServerSgd,
    Sgd,
)
from fedjax_health.config.preparation import (
    ByClient,
    Chronological,
    Components,
    EpisodeBlocks,
    LeaveOneOut,
    Natural,
    Outliers,
    Partition,
    Root,
    Scaling,
    Split,
    Summarise,
    Window,
)
from fedjax_health.config.privacy import Mechanism, Privacy, check_privacy
from fedjax_health.config.split_learning import SplitLearning
from fedjax_health.config.transforms import Transform


class Config(Record, frozen=True):
    """A run: data, model, training, federation.

    Attributes:
      seed: root of everything random.
      rounds: rounds of training.
      data: where the data comes from.
      summarise: statistics of each stay in place of its course; the course itself where
        it is left out.
      partition: how rows become clients.
      split: training, validation and test part.
      window: what one example is.
      scaling: standardisation of the features.
      outliers: filter of values far outside; none where it is left out.
      pca: modality -> number of principal components in place of its columns, or the
        share of the variance that they explain.
      balance: weight of an example in the loss: the same for all ("none"), or such
        that both classes of a client count alike ("client").
      model: the detector.
      loss: the training loss.
      unimodal_weight: weight of the same loss on each modality's own logits, where the
        model has them.
      temporal: consistency over time, added to the loss; none where it is left out.
      alignment: agreement between modalities, added to the loss; none where it is left
        out.
      algorithm: the federated algorithm.
      local: training on the client.
      server: the server's optimiser.
      sampling: how the cohort of a round is drawn.
      dropout: probability that a client of the cohort does not answer.
      weighting: weight of a message: its client's examples, or the same for all.
      personal: parameters that stay on the client; none where it is left out.
      split_learning: where the model is cut in two; whole where it is left out.
      modality_average: whether the encoder of a modality is averaged over all clients
        of a round, or over those present that have its data.
      transforms: what happens to a client's message, in order.
      malicious: share of the clients, or their ids, that attack.
      attackers: in which rounds they do, and how many of them at a time.
      assumed_malicious: share of a cohort that rules and mixings take to be malicious
        where they do not say so themselves; the true share where it is left out.
      data_attack: what malicious clients do to their data.
      attack: what malicious clients send.
      mixings: what mixes the messages of a cohort before the rule, in order.
      aggregator: how the messages of a cohort become one.
      root: the server's own data, for the rules that need some; none where it is left
        out.
      mechanism: the privacy mechanism.
      privacy: how epsilon is stated, and which one is aimed at; delta 1e-5 by the
        accountant pld where it is left out.
      parallelism: clients one after another ("scan") or side by side ("vmap").
      chunk: clients side by side at a time; a memory budget decides where it is left
        out.
      devices: devices to spread clients over; all of them where it is left out.
      evaluation: when the model is scored.
      checkpoint: when the state is saved.
      leakcheck: whether the data is searched for what gives the label away before
        anything is trained; it warns and stops nothing.
    """

    seed: Seed = 0
    rounds: Positive = 50
    data: Data = HospitalSim()
    summarise: Summarise | None = None
    partition: Partition = Natural()
    split: Split = Chronological()
    window: Window = Window()
    scaling: Scaling = Scaling()
    outliers: Outliers | None = None
    pca: Components = msgspec.field(default_factory=dict)
    balance: Literal["none", "client"] = "none"
    model: Model = Gru()
    loss: Loss = Bce()
    unimodal_weight: NonNegative = 0.3
    temporal: Temporal | None = None
    alignment: Alignment | None = None
    algorithm: Algorithm = FedAvg()
    local: Local = Local()
    server: Server = ServerSgd()
    sampling: Sampling = Fixed()
    dropout: BelowOne = 0.0
    weighting: Literal["examples", "uniform"] = "examples"
    personal: Personal | None = None
    split_learning: SplitLearning | None = None
    modality_average: Literal["all", "present"] = "all"
    transforms: tuple[Transform, ...] = ()
    malicious: float | tuple[Count, ...] = 0.0
    attackers: Attackers = Attackers()
    assumed_malicious: BelowOne | None = None
    data_attack: DataAttack | None = None
    attack: UpdateAttack | None = None
    mixings: tuple[Mixing, ...] = ()
    aggregator: Aggregator = Mean()
    root: Root | None = None
    mechanism: Mechanism | None = None
    privacy: Privacy | None = None
    parallelism: Literal["auto", "scan", "vmap"] = "auto"
    chunk: Positive | None = None
    devices: Positive | None = None
    evaluation: Evaluation = Evaluation()
    checkpoint: Checkpoint = Checkpoint()
    leakcheck: bool = True

    def __post_init__(self):
        for check in (
            _check_algorithm,
            _check_clients,
            _check_root,
            _check_held_out,
            _check_mapping,
            _check_window,
            _check_blocks,
            _check_terms,
            _check_split_learning,
        ):
            check(self)
        check_privacy(self.mechanism, self.privacy)


def _check_algorithm(config: Config):
    match config.algorithm, config.local.optimizer:
        case Scaffold(), Sgd(momentum=0.0):
            pass
        case Scaffold(), Sgd(momentum=momentum):
            raise ConfigError(
                f"config: local.optimizer.momentum: {momentum}: scaffold takes the "
                "mean gradient from the local steps, which momentum bends: set it to 0"
            )
        case Scaffold(), _:
            raise ConfigError(
                "config: local.optimizer: scaffold corrects gradients and needs plain "
                "sgd: add --set local.optimizer=sgd, or choose another algorithm"
            )
    if config.personal is not None and isinstance(config.algorithm, Scaffold | Ditto):
        raise ConfigError(
            "config: personal: personal layers go with fedavg and fedprox, whose "
            "clients keep nothing else: add --set personal=none, or choose one of these"
        )
    match config.personal, config.model:
        case Norm(), (Gru(norm=False) | Mlp(norm=False)):
            raise ConfigError(
                "config: personal: norm: the model has no normalisation layer: add "
                "--set model.norm=true"
            )
        case Norm(), Grud() | WideDeep():
            raise ConfigError(
                "config: personal: norm: the model has no normalisation layer: choose "
                "another, such as --set model=gru --set model.norm=true"
            )
        case Norm(), Fusion(encoders=named) if not any(map(_has_norm, named.values())):
            raise ConfigError(
                "config: personal: norm: no encoder of the model was given a "
                "normalisation layer: name one, such as --set "
                "'model.encoders.NAME={kind=\"gru\",norm=true}'"
            )


def _has_norm(encoder: Encoder) -> bool:
    match encoder:
        case Gru(norm=norm) | Mlp(norm=norm):
            return norm
        case Grud():
            return False
        case Tcn() | FtTransformer():
            return True


def _check_clients(config: Config):
    malicious = config.malicious
    if isinstance(malicious, tuple):
        if len(set(malicious)) < len(malicious):
            raise ConfigError("config: malicious: a client id occurs twice")
    elif not 0 <= malicious < 1:
        raise ConfigError(
            f"config: malicious: {malicious}: a share of the clients in [0, 1), or a "
            "list of client ids"
        )
    if isinstance(config.partition, Natural):
        return
    population = config.partition.num_clients
    cohort = config.sampling.cohort_size
    if cohort is not None and cohort > population:
        raise ConfigError(
            f"config: sampling.cohort_size: {cohort}: there are only {population} "
            "clients (partition.num_clients)"
        )
    if isinstance(malicious, tuple) and max(malicious, default=0) >= population:
        raise ConfigError(
            f"config: malicious: client id {max(malicious)}: ids run from 0 to "
            f"{population - 1} (partition.num_clients)"
        )


def _check_root(config: Config):
    root = config.root
    if root is None:
        if isinstance(config.aggregator, FlTrust):
            raise ConfigError(
                "config: aggregator: fltrust trusts what points along the server's own "
                "update, and the server has no data: name the site that gives it some "
                "with --set root.client=NAME"
            )
        return
    if not isinstance(config.aggregator, FlTrust | Custom):
        kind = config.aggregator.__struct_config__.tag
        raise ConfigError(
            f"config: root: aggregator {kind} makes no use of the server's own data: "
            "add --set root=none, or --set aggregator=fltrust"
        )
    if not root.client:
        raise ConfigError(
            "config: root.client: names no client: add --set root.client=NAME"
        )


def _check_held_out(config: Config):
    """Refuses what clients that never train cannot have."""
    match config.split:
        case ByClient():
            kind = "by_client"
        case LeaveOneOut():
            kind = "leave_one_out"
        case _:
            return
    if not isinstance(config.partition, Natural):
        raise ConfigError(
            f"config: partition: split {kind} holds clients of the data out, and this "
            "partition makes others of them: add --set partition=natural"
        )
    if config.personal is not None or isinstance(config.algorithm, Ditto):
        what = "personal" if config.personal is not None else "algorithm"
        raise ConfigError(
            f"config: {what}: clients that split {kind} holds out have no parameters "
            "of their own: add --set "
            + ("personal=none" if what == "personal" else "algorithm=fedavg")
            + ", or choose another split"
        )


def _check_mapping(config: Config):
    if config.parallelism == "scan" and (config.chunk or 1) > 1:
        raise ConfigError(
            f"config: chunk: {config.chunk}: parallelism scan takes one client at "
            "a time: leave chunk out, or set parallelism to vmap"
        )


def _check_window(config: Config):
    if config.summarise is not None and config.window.length > 1:
        raise ConfigError(
            f"config: window.length: {config.window.length}: summarise leaves one "
            "record of each stay: add --set window.length=1"
        )
    burn_in = config.loss.burn_in if isinstance(config.loss, Bce | Focal) else 0
    if burn_in >= config.window.length:
        raise ConfigError(
            f"config: loss.burn_in: {burn_in}: leaves no step of a window "
            f"of {config.window.length} (window.length)"
        )
    if config.window.length > 1:
        return
    model = config.model
    named = model.encoders.items() if isinstance(model, Fusion) else ()
    of_time = [model, *(encoder for _, encoder in named)]
    for record in of_time:
        if isinstance(record, Gru | Grud | Tcn):
            kind = record.__struct_config__.tag
            raise ConfigError(
                f"config: window.length: 1: a {kind} needs windows of 2 steps or more; "
                "choose mlp for single rows"
            )


def _check_blocks(config: Config):
    """Refuses blocks that the embargo leaves nothing of."""
    split = config.split
    if not isinstance(split, EpisodeBlocks):
        return
    length = config.window.length
    of_window = length if length > 1 else 0
    embargo = of_window if split.embargo is None else split.embargo
    if split.block <= 2 * embargo:
        why = " (the window's length)" if split.embargo is None else ""
        raise ConfigError(
            f"config: split.block: {split.block}: the embargo takes {embargo} rows"
            f"{why} off both ends of a block: give more than {2 * embargo}, or a "
            "smaller split.embargo"
        )


def _check_split_learning(config: Config):
    model = config.model
    if config.modality_average == "present" and not isinstance(model, Fusion):
        raise ConfigError(
            "config: modality_average: present: needs a model with an encoder for each "
            "modality: choose --set model=fusion, or --set modality_average=all"
        )
    split = config.split_learning
    if split is None:
        return
    if isinstance(model, WideDeep | Custom):
        kind = model.__struct_config__.tag
        raise ConfigError(
            f"config: split_learning: a {kind} model has no layers to cut between: "
            "choose --set model=mlp, gru, tcn, grud, ft_transformer or fusion"
        )
    if split.modality is not None and not isinstance(model, Fusion):
        raise ConfigError(
            f"config: split_learning.modality: {split.modality!r}: this model has one "
            "encoder for all modalities: leave it out, or choose --set model=fusion"
        )
    if split.nopeek and not (isinstance(model, Fusion) and split.modality):
        raise ConfigError(
            "config: split_learning.nopeek: needs a fusion of several modalities: "
            "choose --set model=fusion and name split_learning.modality, or set it to 0"
        )
    if config.local.example_privacy is not None:
        raise ConfigError(
            "config: local.example_privacy: across a cut the server sees what an "
            "example becomes, whatever its gradient: use split_learning.activations "
            "(clip and noise), and --set local.example_privacy=none"
        )


def _check_terms(config: Config):
    """Refuses terms of the loss that the model or the batches cannot give."""
    temporal, model = config.temporal, config.model
    comparing = {"alignment": config.alignment is not None}
    comparing["temporal"] = isinstance(temporal, WindowContrast)
    for name, compares in comparing.items():
        if compares and config.local.device_steps is not None:
            raise ConfigError(
                f"config: {name}: it compares the examples of a batch, and a batch "
                f"holds those of one device alone: add --set {name}=none, or --set "
                "local.device_steps=none"
            )
        if compares and config.local.example_privacy is not None:
            raise ConfigError(
                f"config: {name}: it compares the examples of a batch, and DP-SGD "
                f"takes each by itself: add --set {name}=none, or --set "
                "local.example_privacy=none"
            )
    for name in ("temporal", "alignment"):
        if getattr(config, name) is not None and isinstance(config.loss, Custom):
            raise ConfigError(
                f"config: {name}: a loss of your own stands alone: add --set "
                f"{name}=none, or join the term inside it (losses.combine)"
            )
    returns_parts = isinstance(model, Fusion | Custom)
    match temporal:
        case LogitSmoothness() | EmbeddingSmoothness() if config.window.length < 2:
            raise ConfigError(
                "config: temporal: there is no time in windows of 1 step: add --set "
                "temporal=none, or a longer window.length"
            )
        case EmbeddingSmoothness() | WindowContrast() if not returns_parts:
            kind = temporal.__struct_config__.tag
            raise ConfigError(
                f"config: temporal: {kind} needs a model that hands out its embedding: "
                "choose --set model=fusion, for one modality too, or --set "
                "temporal=logit"
            )
    late = isinstance(model, Fusion) and model.fuse == "late"
    of_embedding = {
        "temporal": isinstance(temporal, EmbeddingSmoothness | WindowContrast),
        "alignment": isinstance(config.alignment, Comm),
    }
    for name, needed in of_embedding.items():
        if needed and late:
            kind = getattr(config, name).__struct_config__.tag
            raise ConfigError(
                f"config: {name}: {kind} needs the embedding of a joint layer, which "
                "model.fuse=late does not have: add --set "
                f"{name}=none, or --set model.fuse=gated"
            )
    if config.alignment is None:
        return
    if not returns_parts:
        raise ConfigError(
            "config: alignment: needs a model with an encoder for each modality: "
            "choose --set model=fusion, or --set alignment=none"
        )
    compared = isinstance(config.alignment, InfoNce)
    if compared and isinstance(model, Fusion) and not model.aligned:
        raise ConfigError(
            "config: model.aligned: 0: alignment needs a space in which modalities are "
            "compared: give it a width, such as 32"
        )
