"""The page: whole, closed, and nothing of a user's in it but text."""

import re
from html.parser import HTMLParser

import pytest

from fedjax_health.report import write_report
from fedjax_health.report.records import read_folder
from tests.report import folder
from tests.report.folder import no_pictures

VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """Tags, attributes, ids and text of a page, and whether its tags are closed."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.open = [], [], []
        self.text, self.cells = [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, key, value or "") for key, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, key, value or "") for key, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)
        if self.open and self.open[-1] in ("th", "td"):
            self.cells.append(data)

    def values(self, key):
        return [value for _, name, value in self.attributes if name == key]


@pytest.fixture(scope="module", autouse=True)
def fast():
    with no_pictures():
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory, fast):
    root = tmp_path_factory.mktemp("html") / f"ward {folder.SCRIPT[:8]}"
    paths = folder.write_run(root)
    result = write_report(paths.root)
    return paths, result, paths.report.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(run):
    return Page(run[2])


def test_it_is_closed_and_runs_nothing(page):
    assert page.open == []
    assert not {"script", "img", "iframe", "object", "link", "form"} & set(page.tags)
    assert not [key for _, key, _ in page.attributes if key.startswith("on")]


def test_the_policy_forbids_all_but_inline_style(page):
    policies = [v for v in page.values("content") if "default-src" in v]
    assert len(policies) == 1
    assert policies[0].startswith(
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    )
    assert page.values("http-equiv") == ["Content-Security-Policy"]


def test_nothing_is_loaded_from_elsewhere(run, page):
    assert all(value.startswith("#") for value in page.values("href"))
    assert page.values("src") == []
    style = run[2].split("<style>")[1].split("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style
    assert "http" not in style


def test_hostile_names_come_out_as_text(run, page):
    text = "".join(page.text)
    for name in (folder.SCRIPT, folder.IMAGE, "$x^{2}$ & $", "_hidden"):
        assert name in page.cells, name
    assert folder.SCRIPT not in run[2]
    assert "onerror=" in text
    assert '<img src=x onerror="' not in run[2]
    # The names of clients, attacks, columns and modalities, tables and figures alike.
    assert run[2].count("&lt;script&gt;") > 8
    assert "\u202e" not in run[2]
    assert "\x00" not in run[2]


def test_ids_are_unique_and_every_reference_leads_somewhere(run, page):
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    used = {value[1:] for value in page.values("href")}
    used |= set(re.findall(r"url\(#([^)]+)\)", run[2]))
    assert used <= set(ids)


def test_all_sections_stand_in_it_and_in_the_contents(run, page):
    expected = [
        "meaning",
        "metrics",
        "training",
        "ranking",
        "calibration",
        "clients",
        "attacks",
        "patterns",
        "delay",
        "alarms",
        "modalities",
        "leakcheck",
        "configuration",
        "versions",
    ]
    assert run[1]["sections"] == expected
    assert run[1]["left_out"] == {}
    anchors = [
        value for tag, key, value in page.attributes if (tag, key) == ("a", "href")
    ]
    assert anchors == ["#headline", *(f"#{name}" for name in expected)]
    assert page.tags.count("svg") == 10


def test_figures_say_what_they_show(page):
    labels = [v for t, k, v in page.attributes if (t, k) == ("svg", "aria-label")]
    assert len(labels) == 10
    assert all(len(label) > 20 for label in labels)


def test_headline_and_plain_words(page):
    text = " ".join("".join(page.text).split())
    assert "A gated fusion of modalities trained by FedAvg over 6 clients" in text
    assert "higher score 91.2 times in 100" in text
    assert "95 % interval 0.880 to 0.940" in text
    assert "1.1 % of normal rows give a false alarm: 15.1 steps" in text
    assert "1 of 5 episodes are missed" in text
    assert "reaches an AUROC of 0.970: the detector is 0.058 below it" in text
    assert "Random scores at the same rate: 9.7 steps" in text


def test_cautions_name_what_is_wrong(page):
    text = " ".join("".join(page.text).split())
    assert "The leak check warns. column <script>" in text
    assert "Updates left out." in text
    assert "1 in 1 of 4 rounds" in text
    assert "Resumed elsewhere." in text
    assert "Few attacks" not in text


def test_the_metric_table_has_interval_control_and_oracle(page):
    start = page.cells.index("AUROC")
    assert page.cells[start - 6 : start] == [
        "metric",
        "value",
        "95 % interval",
        "random scores",
        "oracle",
        "meaning",
    ]
    assert page.cells[start + 1 : start + 5] == [
        "0.912",
        "0.880 to 0.940",
        "0.490",
        "0.970",
    ]


def test_rows_by_modality_stand_in_a_table(page, tmp_path):
    start = page.cells.index("network only")
    assert page.cells[start - 5 : start] == ["700", "40", "0.910", "0.620", "0.500"]
    assert page.cells[start + 1 : start + 4] == ["20", "0", "one class only"]
    content = folder.figures()
    del content["patterns"][1]
    paths = folder.write_run(tmp_path / "a", figures=content)
    assert "patterns" not in write_report(paths.root)["sections"]


def text_of(paths):
    return " ".join("".join(Page(paths.report.read_text()).text).split())


def test_records_without_streams_have_no_delays(tmp_path):
    content = folder.figures()
    content["delay_threshold"] = None
    content["curves"]["delay"] = None
    content["oracle"] = None
    content["false_alarms"]["per_entity_day"] = None
    for name in ("mean_delay", "median_delay", "missed_episodes", "achieved_far"):
        del content["metrics"][name]
    for attack in content["attacks"]:
        attack.update(episodes=None, missed_episodes=None, mean_delay=None)
    paths = folder.write_run(
        tmp_path / "a", streams=False, figures=content, leakcheck=None
    )
    result = write_report(paths.root)
    assert set(result["left_out"]) == {
        "Delay of alarms",
        "Alarms over time",
        "Leak check",
    }
    text = text_of(paths)
    assert read_folder(paths.root).predictions.alarm is None
    assert "Leak check: it was not run, or switched off." in text
    assert "Delay of alarms: rows do not follow each other in time" in text
    assert "10.5 in 1,000 normal rows" in text
    assert "oracle" not in text


def test_a_folder_of_an_earlier_version_still_has_a_report(tmp_path):
    paths = folder.write_run(tmp_path / "a", figures=None, leakcheck=None)
    result = write_report(paths.root)
    assert "metrics" in result["sections"]
    assert "figures.json is not in the folder" in result["left_out"]["Calibration"]
    assert "0.912" in text_of(paths)


def test_a_result_alone_is_enough(tmp_path):
    (tmp_path / "result.json").write_text('{"metrics": {"auroc": 0.75}}')
    result = write_report(tmp_path)
    assert result["sections"] == ["meaning", "metrics", "versions"]
    assert result["plots"] == []
    assert "whose configuration was not kept" in (tmp_path / "report.html").read_text()


def test_no_row_and_odd_settings_still_make_a_page(tmp_path):
    paths = folder.write_run(
        tmp_path / "a", figures=None, predictions=folder.predictions().iloc[:0]
    )
    paths.config.write_text("window = 3\ndata = []\nmodel = 1\n[partition]\n")
    paths.environment.write_text('{"packages": [], "context": 3, "resumed": 7}')
    result = write_report(paths.root)
    assert "training" in result["sections"]
    assert "alarms" not in result["sections"]


def test_an_evaluation_without_labels_shows_alarms(tmp_path):
    root = folder.write_evaluation(tmp_path / "new", labels=False)
    result = write_report(root)
    assert result["sections"] == [
        "ranking",
        "clients",
        "alarms",
        "modalities",
        "versions",
    ]
    assert result["left_out"]["Metrics"] == "the rows have no labels."
    page = Page((root / "report.html").read_text())
    text = " ".join("".join(page.text).split())
    assert "240 rows of 6 clients, scored by the detector of a finished run" in text
    assert "1 of the clients was not in training" in text
    start = page.cells.index("vitals.pulse")
    assert page.cells[start : start + 4] == ["vitals.pulse", "39", "100 %", "+1.50"]
    assert f"network.{folder.SCRIPT}" in page.cells


def test_an_evaluation_with_labels_has_its_metrics(tmp_path):
    paths = folder.write_run(tmp_path / "ward")
    root = folder.write_evaluation(paths.evaluations / "new")
    result = write_report(root)
    assert result["left_out"].keys() == {"Training", "Leak check"}
    text = " ".join("".join(Page((root / "report.html").read_text()).text).split())
    assert "The detector is a gated fusion of modalities trained by FedAvg" in text
    assert "Thresholds are those of the training run." in text
