"""The page of an audit from its record alone."""

import pytest

from fedjax_health import records
from fedjax_health.records import RunFolderError
from fedjax_health.report import write_audit

NASTY = '<script>alert("x")</script>\u202e'


def row(group, **more):
    return {
        "group": group,
        "attack": "an attack",
        "threat": "who sees it",
        "defence": "none",
        "figure": "auroc",
        "value": 0.7,
        "interval": [0.6, 0.8],
        "guessing": 0.5,
        "meaning": "what it means",
        **more,
    }


def content(**more):
    membership = {
        "tpr": 0.03,
        "tpr_interval": [0.02, 0.05],
        "balanced_accuracy": 0.6,
        "balanced_interval": [0.55, 0.65],
    }
    return {
        "format": 1,
        "seed": 0,
        "shadows": 16,
        "canaries": 100,
        "round": 5,
        "defences": {"transforms": "none", "mechanism": "none", "secure": "none"},
        "epsilon": None,
        "rows": [
            row("membership", **membership, attack=NASTY),
            row("membership", **membership, control=True),
            row("inversion", figure="correlation", message="sent"),
        ],
        "absent": [{"title": "Canaries", "reason": f"because of {NASTY}"}],
        "notes": ["fewer rounds"],
        **more,
    }


def written(tmp_path, value):
    records.write_json(records.run_folder(tmp_path).audit, value)
    result = write_audit(tmp_path)
    return result, records.run_folder(tmp_path).audit_page.read_text()


def test_the_page_stands_alone_and_escapes_what_is_not_its_own(tmp_path):
    result, text = written(tmp_path, content())
    assert result["sections"] == ["membership", "inversion"]
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert "\u202e" not in text
    assert "Content-Security-Policy" in text
    assert "http://" not in text.replace("http://www.w3.org", "")
    assert "fewer rounds" in text
    assert "who sees it" in text


def test_equal_records_give_equal_pages(tmp_path):
    assert written(tmp_path, content())[1] == written(tmp_path, content())[1]


def test_a_bound_above_the_accountants_stands_first(tmp_path):
    epsilon = {
        "lower": 3.0,
        "upper": 1.0,
        "confidence": 0.95,
        "delta": 1e-5,
        "rounds": 3,
    }
    failed = row(
        "canaries",
        figure="epsilon_lower",
        interval=[3.0, None],
        failed=True,
        meaning="is wrong",
    )
    value = content(epsilon=epsilon)
    text = written(tmp_path, {**value, "rows": [*value["rows"], failed]})[1]
    warning = text.index("is wrong")
    assert warning < text.index('<section id="membership"')
    assert "3.000 or more" in text
    assert 'class="marked"' in text


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"format": 1}, "rows are missing"),
        ({"format": 9, "rows": []}, "another version"),
        ({"format": 1, "rows": [{"group": "membership"}]}, "is damaged"),
    ],
)
def test_a_damaged_record_is_said_to_be_one(tmp_path, value, words):
    with pytest.raises(RunFolderError, match=words):
        written(tmp_path, value)


def test_without_an_audit_the_way_to_one_is_told(tmp_path):
    with pytest.raises(RunFolderError, match="fedjax-health audit"):
        write_audit(tmp_path)
