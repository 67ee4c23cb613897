"""Says in a sentence or two what the figures of a report belong to."""

from pathlib import PurePath
from typing import Any

from fedjax_health.report.records import View, settings_of
from fedjax_health.report.words import listing

DATA = {
    "hospital_sim": "HospitalSim, the embedded simulation",
    "events": "event series",
    "wustl": "WUSTL-EHMS-2020",
    "physionet2012": "PhysioNet 2012",
    "eicu": "the eICU demo",
    "ton_iot": "TON_IoT telemetry",
    "heart": "UCI heart disease",
    "mimic_demo": "the MIMIC-IV demo",
}

MODELS = {
    "gru": "a GRU",
    "grud": "a GRU-D",
    "tcn": "a dilated TCN",
    "mlp": "an MLP",
    "wide_deep": "a wide and deep network",
    "ft_transformer": "an FT-transformer",
    "fusion": "a gated fusion of modalities",
}

FUSIONS = {
    "concatenation": "a fusion of modalities side by side",
    "cross_attention": "a fusion of modalities by cross-attention",
    "late": "the mean of detectors of one modality each",
}

ALGORITHMS = {
    "fedavg": "FedAvg",
    "fedprox": "FedProx",
    "scaffold": "SCAFFOLD",
    "ditto": "Ditto",
}


def what_was_run(view: View) -> str:
    """Says in a sentence or two what the figures belong to.

    Args:
      view: what was read.
    """
    if view.kind == "evaluation":
        return _what_was_scored(view)
    return _what_was_trained(view)


def _what_was_scored(view: View) -> str:
    rows, clients = view.result.get("rows"), view.result.get("clients")
    text = "Data that was not trained on, scored by the detector of a finished run"
    if isinstance(rows, int) and isinstance(clients, int):
        text = (
            f"{rows:,} rows of {clients:,} {_plural(clients, 'client')}, scored by the "
            "detector of a finished run"
        )
    names = view.result.get("unseen_clients")
    unseen = len(names) if isinstance(names, list) else 0
    if unseen:
        were = "was" if unseen == 1 else "were"
        text += f"; {unseen:,} of the clients {were} not in training"
    if not view.config:
        return f"{text}."
    detector = _what_was_trained(view)
    return f"{text}. The detector is {detector[:1].lower()}{detector[1:]}"


def _what_was_trained(view: View) -> str:
    config = view.config
    if not config:
        return "Figures of a run whose configuration was not kept."
    fuse = str(settings_of(view, "model").get("fuse"))
    model = FUSIONS.get(fuse) or _named(config, "model", MODELS)
    done = view.result.get("rounds", config.get("rounds"))
    rounds = f" for {done:,} rounds" if isinstance(done, int) else ""
    algorithm = _named(config, "algorithm", ALGORITHMS)
    clients = _population(view)
    who = f"{clients:,} {_plural(clients, 'client')}" if clients else "its clients"
    held_out = view.result.get("held_out_clients")
    if clients and isinstance(held_out, int) and held_out:
        who += f" ({held_out:,} more were held out)"
    sentence = f"{model[:1].upper()}{model[1:]} trained by {algorithm} over {who}"
    sentence += f"{rounds} on {_data(view)}."
    rule = _named(config, "aggregator", {"mean": "their mean"})
    stages = [f"A round joins the clients' updates by {rule}"]
    for slot, text in [
        ("transforms", "updates go through {}"),
        ("mechanism", "privacy by {}"),
        ("attack", "malicious clients send {}"),
        ("data_attack", "malicious clients train on data changed by {}"),
    ]:
        kinds = _kinds(config.get(slot))
        if kinds:
            stages.append(text.format(listing([k.replace("_", " ") for k in kinds])))
    return f"{sentence} {'; '.join(stages)}."


def _population(view: View) -> int | None:
    told = view.result.get("training_clients")
    if isinstance(told, int):
        return told
    # A folder of an earlier version: what it does not say is not guessed at where the
    # split may have held clients out.
    if settings_of(view, "split").get("kind") in ("by_client", "leave_one_out"):
        return None
    partition = settings_of(view, "partition")
    if isinstance(partition.get("num_clients"), int):
        return partition["num_clients"]
    if view.kind == "run" and view.figures is not None and view.figures.clients:
        return len(view.figures.clients)
    return None


def _data(view: View) -> str:
    data = settings_of(view, "data")
    kind = str(data.get("kind", "hospital_sim"))
    path = data.get("path")
    file = PurePath(str(path)).name if path else ""
    if kind == "table":
        text = f"the table {file}"
    elif kind == "custom":
        text = f"data from {data.get('target', 'a function of the user')}"
    else:
        text = DATA.get(kind, kind) + (f" ({file})" if file else "")
    names = data.get("modalities")
    if isinstance(names, list | dict) and names:
        word = "modality" if len(names) == 1 else "modalities"
        text += f", {word} {listing([str(name) for name in names])}"
    return text


def _named(config: dict[str, Any], slot: str, names: dict[str, str]) -> str:
    kinds = _kinds(config.get(slot))
    if not kinds:
        return f"its {slot}"
    return names.get(kinds[0], kinds[0].replace("_", " "))


def _kinds(entry: Any) -> list[str]:
    match entry:
        case {"kind": "custom", "target": target}:
            return [str(target)]
        case {"kind": "identity"}:
            return []
        case {"kind": kind}:
            return [str(kind)]
        case list():
            return [kind for item in entry for kind in _kinds(item)]
    return []


def _plural(count: int, noun: str) -> str:
    return noun if count == 1 else f"{noun}s"
