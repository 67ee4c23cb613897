"""Privacy and communication in a report: in words, as tables, as figures, escaped."""

import json
import math

import numpy as np
import pytest

from fedjax_health import records
from fedjax_health.report import plots, write_report
from fedjax_health.report.findings import cautions
from fedjax_health.report.privacy import is_told, paragraphs
from fedjax_health.report.records import read_folder
from fedjax_health.report.tables import communication, guarantees, secure_sums
from fedjax_health.report.words import DASH, byte_unit, size
from tests.report import folder
from tests.report.test_tensorboard import read_back

FIGURES = ("epsilon", "traffic", "messages")


def result(**privacy):
    told = {
        "unit": "client",
        "relation": "add or remove one: a client is there or is not",
        "sampler": "Poisson, each of 40 clients at rate 0.25",
        "rounds": 4,
        "epsilon": 3.25,
        "delta": 1e-5,
        "accountant": "pld",
        "noise": "discrete Gaussian on a lattice, release grade",
        "noise_multiplier": 1.5,
        "protected_against": f"whoever reads {folder.SCRIPT}",
        "not_covered": [folder.IMAGE, "the metrics"],
        "warnings": [],
        "clients": 40,
        "best_round": 2,
        "epsilon_at_best_round": 2.125,
        **privacy,
    }
    return {
        "metrics": {"auroc": 0.912},
        "rounds": 4,
        "best_round": 2,
        "privacy": told,
        "communication": {
            "uplink_bytes_total": 4_000_000,
            "downlink_bytes_total": 16_000_000,
            "uplink_bytes_per_client_round": 100_000.0,
            "dense_bytes": 400_000,
            "share_of_dense": 0.25,
        },
    }


def lines(**values):
    rows = [
        {
            "round": n,
            "loss": 1 / n,
            "uplink_bytes": 1_000_000,
            "downlink_bytes": 4_000_000,
            "uplink_bytes_total": 1_000_000 * n,
            "downlink_bytes_total": 4_000_000 * n,
            "clip_fraction": 0.5 / n,
            "saturation": 0.001 * (n == 3),
            "aborted": int(n == 3),
        }
        for n in range(1, 5)
    ]
    rows[1] |= {"epsilon": 2.125, "validation_auroc": 0.9}
    rows[3] |= {"epsilon": 3.25, "validation_auroc": 0.8}
    return [{**row, **values} for row in rows]


def write(root, *, rows=None, **privacy):
    paths = folder.write_run(root, predictions=None, result=result(**privacy))
    paths.metrics.unlink()
    records.append_jsonl(paths.metrics, lines() if rows is None else rows)
    return paths


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return write(tmp_path_factory.mktemp("private") / "ward")


@pytest.fixture
def view(paths):
    return read_folder(paths.root)


def test_the_section_stands_in_the_page_with_its_figures_and_escaped(paths, tmp_path):
    with folder.no_pictures():
        told = write_report(paths.root, out=tmp_path / "page.html")
    place = told["sections"].index("privacy")
    assert told["sections"][place - 1] == "training"
    written = {path.rsplit("/", 1)[1] for path in told["plots"]}
    assert {f"{name}.png" for name in FIGURES} <= written
    text = (tmp_path / "page.html").read_text()
    part = text.split('<section id="privacy">')[1].split("</section>")[0]
    assert part.count("<svg") == 3
    assert "whoever reads &lt;script&gt;" in part
    assert folder.SCRIPT not in text
    assert "&#34;&gt;&lt;img src=x onerror=" in part


def test_the_guarantee_is_told_in_words(view):
    (table,) = guarantees(view)
    rows = dict(table.rows)
    assert rows["epsilon, all rounds together"] == "3.250"
    assert rows["epsilon up to the round of the model"] == "2.125"
    assert rows["delta"] == "1e-05"
    assert rows["neighbouring data"].startswith("add or remove one")
    left_out = [row[1] for row in table.rows if row[0] == "not covered"]
    assert left_out == [folder.IMAGE, "the metrics"]
    meaning, chosen, sent, shaped, aborted = paragraphs(view)
    assert f"exp(epsilon) = {math.exp(3.25):.1f}," in meaning
    assert "whether one client was there" in meaning
    assert "model of round 2 was chosen" in chosen
    assert sent == (
        "Clients sent 4.0 MB in all and received 16.0 MB. One message took 100 kB on "
        "average, 25 % of the model without compression."
    )
    mean = 100 * np.mean([0.5 / n for n in range(1, 5)])
    assert f"{mean:.1f} % of a round's messages" in shaped
    assert "In the worst round 0.1 % of the numbers" in shaped
    assert aborted.startswith("In 1 of 4 rounds (3) fewer messages came in")
    assert "count as spent" in aborted
    assert dict(communication(view).rows)["a message, on average"] == "100 kB"


def test_figures_show_the_lines(view):
    drawn = plots.draw(view)
    (curve, best) = drawn["epsilon"].axes[0].lines
    assert curve.get_xydata().tolist() == [[2, 2.125], [4, 3.25]]
    assert best.get_xdata()[0] == 2
    left, right = drawn["traffic"].axes
    assert [axes.get_ylabel() for axes in (left, right)] == ["MB", "MB"]
    assert left.lines[0].get_ydata().tolist() == [1.0] * 4
    assert right.lines[1].get_ydata().tolist() == [4.0, 8.0, 12.0, 16.0]
    clipped, saturated, aborted = drawn["messages"].axes[0].lines
    assert clipped.get_ydata().max() == 0.5
    assert saturated.get_ydata().tolist() == [0, 0, 0.001, 0]
    assert aborted.get_xdata().tolist() == [3]


def test_event_files_hold_epsilon_and_bytes(paths, tmp_path):
    pytest.importorskip("tensorboard", reason="the tensorboard extra is not installed")
    with folder.no_pictures():
        write_report(paths.root, out=tmp_path / "a.html", tensorboard=tmp_path / "tb")
    events = read_back(tmp_path / "tb")
    epsilon = [(e.step, e.value) for e in events.Scalars("training/epsilon")]
    assert epsilon == [(2, 2.125), (4, 3.25)]
    assert events.Scalars("training/uplink_bytes_total")[-1].value == 4e6
    assert events.Scalars("training/downlink_bytes")[0].value == 4e6


def test_weak_guarantees_are_warned_of(tmp_path):
    noise = "float32 Gaussian: simulation-grade noise"
    weak = write(
        tmp_path / "ward",
        noise=noise,
        epsilon=12.0,
        relation="replace one: one client's data are exchanged for any others",
        warnings=["delta=0.3 is 1/n or more"],
    )
    view = read_folder(weak.root)
    said = {finding.about: finding.text for finding in cautions(view)}
    assert said["Simulation-grade noise"] == f"{noise}."
    assert said["Privacy"] == "delta=0.3 is 1/n or more."
    (table,) = guarantees(view)
    assert [table.rows[i][0] for i in table.marked] == ["warning"]
    meaning = paragraphs(view)[0]
    assert "no protection" in meaning
    assert "which data one client holds" in meaning
    assert "simulation-grade" in meaning


def test_an_infinite_epsilon_is_no_bound(tmp_path):
    rows = [{**line, "epsilon": None} for line in lines()]
    open_ended = write(
        tmp_path / "ward", rows=rows, epsilon=None, epsilon_at_best_round=None
    )
    view = read_folder(open_ended.root)
    (table,) = guarantees(view)
    assert dict(table.rows)["epsilon, all rounds together"] == "no bound"
    assert "nothing is guaranteed" in paragraphs(view)[0]
    assert "epsilon" not in plots.draw(view)


def test_a_compressed_run_without_a_mechanism_tells_its_bytes(tmp_path):
    paths = write(tmp_path / "ward")
    known = json.loads(paths.result.read_text())
    del known["privacy"]
    paths.result.write_text(json.dumps(known))
    paths.metrics.unlink()
    few = ("round", "loss", "uplink_bytes", "downlink_bytes")
    rows = [{k: line[k] for k in few} for line in lines()]
    records.append_jsonl(paths.metrics, rows)
    # By nothing but its configuration does it differ from a plain run.
    assert not is_told(read_folder(paths.root))
    with paths.config.open("a") as file:
        file.write('\n[[transforms]]\nkind = "top_k"\n')
    view = read_folder(paths.root)
    assert [name for name in plots.draw(view) if name in FIGURES] == ["traffic"]
    assert guarantees(view) == []
    assert len(paragraphs(view)) == 1


def test_examples_that_are_protected_have_a_table_of_their_own(tmp_path):
    paths = write(tmp_path / "ward")
    known = json.loads(paths.result.read_text())
    known["example_privacy"] = {
        **known["privacy"],
        "unit": "example",
        "epsilon": 8.5,
        "noise": "float32 Gaussian: simulation-grade noise",
        "least_protected": folder.SCRIPT,
    }
    paths.result.write_text(json.dumps(known))
    view = read_folder(paths.root)
    client, example = guarantees(view)
    assert client.caption.startswith("Privacy of one client:")
    assert example.caption.startswith("Privacy of one example:")
    rows = dict(example.rows)
    assert rows["client whose examples are protected least"] == folder.SCRIPT
    assert paragraphs(view)[1].startswith("For one example epsilon is 8.500")
    assert "Simulation-grade noise" in {finding.about for finding in cautions(view)}


def test_phases_of_a_secure_sum_have_a_table(tmp_path, view):
    phases = {
        f"secagg_{what}_{phase}": value
        for what, value in (("messages", 4.0), ("bytes_up", 2e6), ("bytes_down", 1.0))
        for phase in ("share_keys", "masked_input")
    }
    paths = write(tmp_path / "ward", rows=lines(**phases))
    table = secure_sums(read_folder(paths.root))
    assert table.rows == (
        ("share keys", "4.0", "2.0 MB", "1 B"),
        ("masked input", "4.0", "2.0 MB", "1 B"),
    )
    assert secure_sums(view) is None


@pytest.mark.parametrize("kind", ["old", "evaluation"])
def test_other_folders_have_no_such_section(tmp_path, kind):
    if kind == "old":
        root = folder.write_run(tmp_path / "ward", predictions=None).root
    else:
        root = folder.write_evaluation(tmp_path / "ward")
    with folder.no_pictures():
        told = write_report(root)
    assert "privacy" not in told["sections"]
    assert "Privacy and communication" not in told["left_out"]
    assert not set(FIGURES) & {p.rsplit("/", 1)[1][:-4] for p in told["plots"]}


def test_sizes_have_the_unit_that_reads_best():
    numbers = (0, 999, 1000, 99_949, 999_499, 999_500, 4_000_000, 2.5e12, 5e15)
    assert [size(n) for n in numbers] == [
        "0 B",
        "999 B",
        "1.0 kB",
        "99.9 kB",
        "999 kB",
        "1.0 MB",
        "4.0 MB",
        "2.5 TB",
        "5,000 TB",
    ]
    assert size(None) == size(float("nan")) == DASH
    assert byte_unit(0.0) == (1.0, "B")
