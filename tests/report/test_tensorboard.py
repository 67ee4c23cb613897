"""Event files that TensorBoard itself reads, and a clear word where it is absent."""

import sys

import pytest

from fedjax_health.report import write_report
from fedjax_health.report.tensorboard import FILE, MissingExtraError
from tests.report import folder


def test_without_the_package_the_extra_is_named_before_anything_is_written(
    tmp_path, monkeypatch
):
    paths = folder.write_run(tmp_path / "ward", predictions=None)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(MissingExtraError, match=r"fedjax-health\[tensorboard\]"):
        write_report(paths.root, tensorboard=tmp_path / "tb")
    assert not paths.report.exists()
    assert not (tmp_path / "tb").exists()


def read_back(root):
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="the tensorboard extra is not installed",
    )
    events = accumulator.EventAccumulator(
        str(root), size_guidance={"scalars": 0, "images": 0}
    )
    return events.Reload()


def test_events_come_back_as_they_were_written(tmp_path):
    pytest.importorskip("tensorboard", reason="the tensorboard extra is not installed")
    paths = folder.write_run(tmp_path / "ward", predictions=None)
    result = write_report(paths.root, tensorboard=tmp_path / "tb")
    assert result["tensorboard"] == str(tmp_path / "tb" / FILE)
    events = read_back(tmp_path / "tb")
    loss = [(e.step, e.value) for e in events.Scalars("training/loss")]
    assert loss == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3)), (4, 0.25)]
    validation = events.Scalars("validation/auroc")
    assert [(e.step, e.value) for e in validation] == [
        (2, pytest.approx(0.8)),
        (4, pytest.approx(0.9)),
    ]
    (auroc,) = events.Scalars("test/auroc")
    assert (auroc.step, auroc.value) == (4, pytest.approx(0.912))
    assert events.Scalars("timings/clients_per_s")[0].value == 12.0
    started = paths.config.stat().st_mtime
    assert auroc.wall_time == pytest.approx(started + 2.0)
    (picture,) = events.Images("figures/pr")
    assert picture.encoded_image_string == (paths.plots / "pr.png").read_bytes()
    assert picture.width > picture.height / 2 > 100


def test_a_second_report_replaces_the_first(tmp_path):
    pytest.importorskip("tensorboard", reason="the tensorboard extra is not installed")
    paths = folder.write_run(tmp_path / "ward", predictions=None)
    with folder.no_pictures():
        for _ in range(2):
            write_report(paths.root, tensorboard=paths.root / "tensorboard")
    assert [p.name for p in (paths.root / "tensorboard").iterdir()] == [FILE]
    events = read_back(paths.root / "tensorboard")
    assert len(events.Scalars("training/loss")) == 4
