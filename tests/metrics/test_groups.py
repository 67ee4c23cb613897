import json

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk

from fedjax_health.metrics.delay import detection_delay
from fedjax_health.metrics.groups import (
    attack_figures,
    client_figures,
    pattern_figures,
    patterns,
)
from fedjax_health.metrics.summary import Scored, Thresholds

AT = Thresholds(0.5, 0.7)


def rows(seed=0):
    rng = np.random.default_rng(seed)
    kind = np.repeat(rng.choice(4, 60, p=[0.7, 0.1, 0.1, 0.1]), 10)
    label = (kind > 0).astype(int)
    score = np.round(1 / (1 + np.exp(-(rng.normal(size=600) + kind - 1))), 2)
    return Scored(score, label, np.repeat(np.arange(6), 100)), kind


def test_client_figures_equal_a_loop():
    test, _ = rows()
    client = np.random.default_rng(1).integers(0, 5, 600)
    test.label[client == 3] = 0
    listed, spread = client_figures(test, AT, client=client, names=list("abcdef"))
    assert [row["client"] for row in listed] == list("abcdef")
    ranked = []
    for i, row in enumerate(listed[:5]):
        here = client == i
        score, label = test.score[here], test.label[here]
        assert row["rows"] == here.sum()
        assert row["positives"] == label.sum()
        np.testing.assert_allclose(
            row["f1"], sk.f1_score(label, score >= 0.5, zero_division=0)
        )
        np.testing.assert_allclose(
            row["achieved_far"], np.mean(score[label == 0] >= 0.7)
        )
        if i == 3:
            assert row["auroc"] is row["auprc"] is None
        else:
            np.testing.assert_allclose(row["auroc"], sk.roc_auc_score(label, score))
            np.testing.assert_allclose(
                row["auprc"], sk.average_precision_score(label, score)
            )
            ranked.append(row["auroc"])
    assert listed[5] == {
        "client": "f",
        "rows": 0,
        "positives": 0,
        "auroc": None,
        "auprc": None,
        "f1": 0.0,
        "achieved_far": None,
    }
    assert (spread["auroc"]["ranked"], spread["auroc"]["excluded"]) == (4, 2)
    np.testing.assert_allclose(spread["auroc"]["mean"], np.mean(ranked))
    np.testing.assert_allclose(spread["auroc"]["worst"], min(ranked))
    np.testing.assert_allclose(spread["auroc"]["worst_decile"], min(ranked))
    np.testing.assert_allclose(spread["auroc"]["std"], np.std(ranked))
    json.dumps([listed, spread], allow_nan=False)


def test_clients_without_names_and_records():
    test, _ = rows()
    client = np.repeat([7, 40], 300)
    listed, _ = client_figures(
        test._replace(segment=None), Thresholds(0.5), client=client
    )
    assert [row["client"] for row in listed] == ["7", "40"]
    assert [row["achieved_far"] for row in listed] == [None, None]
    nothing = np.zeros(600)
    _, spread = client_figures(test._replace(label=nothing), AT, client=client)
    assert spread["auprc"] == {
        "mean": None,
        "worst": None,
        "worst_decile": None,
        "std": None,
        "ranked": 0,
        "excluded": 2,
    }


def test_attack_figures_equal_a_loop():
    test, kind = rows()
    names = ["normal", "flood", "replay", "spoof", "never seen"]
    listed = attack_figures(test, AT, attack=kind, window=2, names=names)
    assert [row["attack"] for row in listed] == ["flood", "replay", "spoof"]
    whole = detection_delay(*test, threshold=0.7, window=2)
    assert sum(row["episodes"] for row in listed) == whole["episodes"]
    assert sum(row["missed_episodes"] for row in listed) == whole["missed_episodes"]
    total = sum(row["mean_delay"] * row["episodes"] for row in listed)
    np.testing.assert_allclose(total / whole["episodes"], whole["mean_delay"])
    for k, row in enumerate(listed, start=1):
        here = (kind == 0) | (kind == k)
        score, label = test.score[here], kind[here] == k
        assert row["rows"] == label.sum()
        np.testing.assert_allclose(row["auroc"], sk.roc_auc_score(label, score))
        np.testing.assert_allclose(
            row["auprc"], sk.average_precision_score(label, score)
        )
        np.testing.assert_allclose(row["recall"], sk.recall_score(label, score >= 0.5))
    json.dumps(listed, allow_nan=False)


def test_an_episode_is_of_the_type_of_its_onset():
    kind = np.array([0, 0, 2, 2, 1, 1, 0, 1, 0])
    test = Scored(np.where(kind == 1, 0.9, 0.1), (kind > 0).astype(int), np.zeros(9))
    first, second = attack_figures(test, AT, attack=kind, window=0)
    assert (first["attack"], first["episodes"], first["mean_delay"]) == ("1", 1, 0.0)
    assert (second["attack"], second["episodes"], second["mean_delay"]) == ("2", 1, 2.0)
    assert second["missed_episodes"] == 0
    only = attack_figures(
        Scored([0.9, 0.1, 0.9], [1, 1, 1], [0, 0, 0]), AT, attack=[1, 2, 1], window=0
    )
    assert only[0]["auroc"] is None
    assert only[1]["mean_delay"] is None


def test_records_have_no_episodes():
    test, kind = rows()
    for given in (test._replace(segment=None), test):
        thresholds = AT if given.segment is None else Thresholds(0.5)
        for row in attack_figures(given, thresholds, attack=kind, window=2):
            assert (
                row["episodes"] is row["missed_episodes"] is row["mean_delay"] is None
            )
            assert row["auroc"] is not None


def test_input_without_an_answer_is_refused():
    test, kind = rows()
    with pytest.raises(ValueError, match="clients must be indices into 2 names"):
        client_figures(test, AT, client=kind, names=["a", "b"])
    with pytest.raises(ValueError, match="clients"):
        client_figures(test, AT, client=kind[:5])
    with pytest.raises(ValueError, match="attacks must be indices into 2 names"):
        attack_figures(test, AT, attack=kind, window=1, names=["normal", "x"])
    wrong = np.where(np.arange(600) == np.argmin(kind), 1, kind)
    with pytest.raises(ValueError, match="is normal by its label and 'x'"):
        attack_figures(test, AT, attack=wrong, window=1, names=["normal", *"xyz"])


def test_pattern_figures_equal_a_groupby():
    test, _ = rows()
    present = np.random.default_rng(2).random((600, 2)) < [0.7, 0.6]
    present[:5] = False
    test.label[:5] = 0
    listed = pattern_figures(test, AT, present=present, modalities=["flow", "vitals"])
    names = ["flow + vitals", "flow only", "vitals only", "none"]
    assert [row["pattern"] for row in listed] == names
    frame = pd.DataFrame(
        {
            "pattern": np.select(
                [present.all(1), present[:, 0], present[:, 1]], names[:3], "none"
            ),
            "score": test.score,
            "label": test.label,
        }
    )
    for row in listed[:3]:
        here = frame[frame.pattern == row["pattern"]]
        want = {
            "rows": len(here),
            "positives": here.label.sum(),
            "auroc": sk.roc_auc_score(here.label, here.score),
            "auprc": sk.average_precision_score(here.label, here.score),
            "f1": sk.f1_score(here.label, here.score >= 0.5),
        }
        assert {n: row[n] for n in want} == pytest.approx(want)
    # Nothing was observed, and what is left is of one class.
    few = present.any(1)
    few[:5] = False
    test.label[~few] = 0
    none = pattern_figures(test, AT, present=present, modalities=["flow", "vitals"])[-1]
    assert none == {
        "pattern": "none",
        "rows": int((~few).sum()),
        "positives": 0,
        "auroc": None,
        "auprc": None,
        "f1": None,
    }
    json.dumps(listed)


def test_patterns_with_more_modalities_come_first():
    flags = np.array([[0, 0, 1], [0, 1, 1], [1, 1, 1], [0, 1, 1], [1, 0, 1], [1, 0, 0]])
    number, names = patterns(flags, "abc")
    assert names == ["a + b + c", "a + c", "b + c", "a only", "c only"]
    assert [names[i] for i in number] == [
        *("c only", "b + c", "a + b + c", "b + c", "a + c", "a only"),
    ]
    assert patterns([[True], [False]], ["a"])[1] == ["a", "none"]
    with pytest.raises(ValueError, match=r"\[rows, 2\]"):
        patterns(flags, "ab")
    test, _ = rows()
    with pytest.raises(ValueError, match="present has 6 rows, scores have 600"):
        pattern_figures(test, AT, present=flags, modalities="abc")
