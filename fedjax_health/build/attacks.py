"""A configuration becomes the attacks of the malicious clients."""

import difflib

from fedjax_health import attacks, config
from fedjax_health.build.custom import custom_entry
from fedjax_health.config import Config, ConfigError
from fedjax_health.core.types import DataAttack, UpdateAttack


def build_attack(settings: Config) -> UpdateAttack | None:
    """Returns what malicious clients do to their messages.

    Raises:
      ConfigError: for what does not go together.
    """
    if settings.attack is None:
        return None
    try:
        attack = _update_attack(settings.attack)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"config: attack: {error}") from error
    return _timed(settings, attack)


def build_data_attack(
    settings: Config, columns: tuple[str, ...] = ()
) -> DataAttack | None:
    """Returns what malicious clients do to their data.

    Args:
      settings: the configuration.
      columns: names of the model's input columns, by which a trigger finds its own.

    Raises:
      ConfigError: for a column that is not there, or what does not go together.
    """
    if settings.data_attack is None:
        return None
    _check_steps(settings)
    try:
        attack = _data_attack(settings.data_attack, columns)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"config: data_attack: {error}") from error
    return _timed(settings, attack)


def _check_steps(settings: Config) -> None:
    """Refuses a trigger at steps that an example does not have."""
    chosen, length = settings.data_attack, settings.window.length
    if not isinstance(chosen, config.Backdoor | config.DistributedBackdoor):
        return
    if chosen.steps is not None and length == 1:
        raise ConfigError(
            f"config: data_attack.steps: {list(chosen.steps)}: examples are single "
            "records (window.length 1), which have no steps: leave steps out"
        )
    outside = [s for s in chosen.steps or () if not -length <= s < length]
    if outside:
        raise ConfigError(
            f"config: data_attack.steps: {outside[0]}: a window has {length} steps, "
            f"from 0 to {length - 1}, or from -{length} to -1 (window.length)"
        )


def _timed(settings: Config, attack):
    when = settings.attackers
    if when == config.Attackers():
        return attack
    return attacks.during(attack, start=when.start, end=when.end, share=when.share)


def _update_attack(chosen) -> UpdateAttack:
    match chosen:
        case config.SignFlip():
            return attacks.sign_flip(
                of=chosen.of, scale=chosen.scale, knowledge=chosen.knowledge
            )
        case config.Ipm():
            return attacks.ipm(scale=chosen.scale, knowledge=chosen.knowledge)
        case config.Alie():
            return attacks.alie(
                z=chosen.z,
                sign=chosen.sign,
                num_malicious=chosen.num_malicious,
                ddof=chosen.ddof,
                knowledge=chosen.knowledge,
            )
        case config.Optimized():
            return attacks.optimized(
                direction=chosen.direction, limit=chosen.limit, sign=chosen.sign
            )
        case config.Mimic():
            return attacks.mimic(warmup=chosen.warmup)
        case config.MinMax():
            return attacks.min_max(
                deviation=chosen.deviation, knowledge=chosen.knowledge
            )
        case config.MinSum():
            return attacks.min_sum(
                deviation=chosen.deviation, knowledge=chosen.knowledge
            )
        case config.Fang():
            return attacks.fang(
                form=chosen.form,
                num_malicious=chosen.num_malicious,
                threshold=chosen.threshold,
                spread=chosen.spread,
                knowledge=chosen.knowledge,
            )
        case config.Gaussian():
            return attacks.gaussian(std=chosen.std, center=chosen.center)
        case config.Nonfinite():
            return attacks.nonfinite(value=chosen.value)
        case config.FreeRider():
            return attacks.free_rider(
                replay=chosen.replay, noise=chosen.noise, decay=chosen.decay
            )
        case config.Sybil():
            return attacks.sybil(scale=chosen.scale, jitter=chosen.jitter)
        case config.ModelReplacement():
            return attacks.model_replacement(
                scale=chosen.scale,
                server_learning_rate=chosen.server_learning_rate,
                max_norm=chosen.max_norm,
            )
        case config.Neurotoxin():
            return attacks.neurotoxin(
                masked=chosen.masked, scale=chosen.scale, max_norm=chosen.max_norm
            )
    return custom_entry(chosen, UpdateAttack, path="attack")


def _data_attack(chosen, columns: tuple[str, ...]) -> DataAttack:
    match chosen:
        case config.LabelFlip():
            return attacks.label_flip()
        case config.TargetedLabelFlip():
            return attacks.targeted_label_flip(
                source=chosen.source, target=chosen.target, share=chosen.share
            )
        case config.LabelNoise():
            return attacks.label_noise(rate=chosen.rate)
        case config.Backdoor():
            return attacks.backdoor(
                build_trigger(chosen, columns), target=chosen.target, share=chosen.share
            )
        case config.DistributedBackdoor():
            return attacks.distributed_backdoor(
                build_trigger(chosen, columns),
                target=chosen.target,
                share=chosen.share,
                parts=chosen.parts,
            )
    return custom_entry(chosen, DataAttack, path="data_attack")


def trigger_of(
    settings: Config, columns: tuple[str, ...]
) -> tuple[attacks.Trigger, int] | None:
    """Returns the whole trigger of a run's backdoor and the class that it shall mean.

    Args:
      settings: the configuration.
      columns: names of the model's input columns.

    Returns:
      None where clients plant no backdoor.

    Raises:
      ConfigError: for a column that is not there.
    """
    chosen = settings.data_attack
    if isinstance(chosen, config.Backdoor | config.DistributedBackdoor):
        return build_trigger(chosen, columns), chosen.target
    return None


def build_trigger(
    chosen: config.Backdoor | config.DistributedBackdoor, columns: tuple[str, ...]
) -> attacks.Trigger:
    """Returns the trigger of a backdoor, its columns by their numbers.

    A value that is planted is also said to be observed, just now, where the input has
    columns for that.

    Args:
      chosen: the record.
      columns: names of the model's input columns.

    Raises:
      ConfigError: for a column that is not there.
    """
    numbers, values = [], []
    for name, value in zip(chosen.columns, chosen.values, strict=True):
        if name not in columns:
            near = difflib.get_close_matches(name, columns, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(
                f"config: data_attack.columns: the input has no column {name!r}{hint} "
                f"It has {', '.join(columns)}"
            )
        for column, planted in (
            (name, value),
            (f"{name} observed", 1.0),
            (f"{name} elapsed", 0.0),
        ):
            if column in columns:
                numbers.append(columns.index(column))
                values.append(planted)
    return attacks.Trigger(tuple(numbers), tuple(values), chosen.steps)
