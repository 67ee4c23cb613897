"""Progress: plain lines, a live bar, and the time that is left."""

import io

import pytest

from fedjax_health.cli.progress import build_progress, duration, live, plain


class Terminal(io.StringIO):
    def isatty(self):
        return True


def ticking(step):
    """A clock that advances by a step with every look at it."""
    now = [-step]

    def clock():
        now[0] += step
        return now[0]

    return clock


def test_plain_lines_come_with_evaluations_and_with_time():
    stream = io.StringIO()
    progress = plain(stream, clock=ticking(1.0))
    progress.on_start(total_rounds=20)
    for round in range(1, 21):
        validation = 0.8 if round == 3 else None
        progress.on_round(round=round, loss=0.25, validation=validation)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "training 20 rounds"
    # Second 3 is evaluated; from then on a line every five seconds, and the last.
    assert [line.split()[1] for line in lines[1:]] == [
        "3/20",
        "8/20",
        "13/20",
        "18/20",
        "20/20",
    ]
    assert lines[1] == "round 3/20  loss 0.2500  validation AUROC 0.8000  0:17 left"


@pytest.mark.parametrize(
    ("sent", "told"), [(7232, "0.0072 MB up"), (1_234_567_890, "1,234.6 MB up")]
)
def test_what_was_spent_so_far_is_told_where_there_is_something(sent, told):
    stream = io.StringIO()
    progress = plain(stream, clock=ticking(1.0))
    progress.on_start(total_rounds=2)
    progress.on_round(round=2, loss=0.25, epsilon=3.2149, uplink_bytes=sent)
    assert stream.getvalue().splitlines()[1] == (
        f"round 2/2  loss 0.2500  epsilon 3.21  {told}"
    )


def after(*seconds):
    """A clock that shows these times, one with every look."""
    return iter(seconds).__next__


def test_the_first_segment_compiles_and_says_nothing_of_the_others():
    stream = io.StringIO()
    # 60 s go into compiling, 1 s into a round.
    progress = plain(stream, clock=after(0.0, 60.0, 65.0, 70.0))
    progress.on_start(total_rounds=100)
    for round, rate in ((5, 0.4), (10, 8571.2), (15, 0.4)):
        progress.on_round(round=round, loss=1.0, clients_per_s=rate, validation=0.5)
    told = "loss 1.0000  validation AUROC 0.5000"
    assert stream.getvalue().splitlines()[1:] == [
        f"round 5/100  {told}",
        f"round 10/100  {told}  8,571 clients/s  1:30 left",
        f"round 15/100  {told}  0.4 clients/s  1:25 left",
    ]


def test_time_left_after_a_resume_counts_the_rounds_done_here():
    stream = io.StringIO()
    progress = plain(stream, clock=ticking(10.0))
    progress.on_start(total_rounds=100, first_round=90)
    progress.on_round(round=91, loss=1.0, clients_per_s=9.0)
    progress.on_round(round=92, loss=1.0, clients_per_s=1234.5)
    assert stream.getvalue().splitlines() == [
        "training 100 rounds, from round 91",
        "round 91/100  loss 1.0000",
        "round 92/100  loss 1.0000  1,234 clients/s  1:20 left",
    ]


def test_a_reader_that_goes_away_does_not_end_the_run():
    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

        def flush(self):
            raise BrokenPipeError

    progress = plain(Closed())
    progress.on_start(total_rounds=2)
    progress.on_round(round=2, loss=0.5, validation=0.9)
    progress.on_message("masked")
    progress.on_end()


def test_messages_and_the_end_are_plain_text():
    stream = io.StringIO()
    progress = plain(stream)
    progress.on_message("checkpoint 20 is damaged [using 10]")
    progress.on_end()
    progress.on_end()
    assert stream.getvalue() == "checkpoint 20 is damaged [using 10]\n"


def test_the_live_bar_shows_the_last_evaluation_and_survives_any_order():
    stream = Terminal()
    progress = live(stream, clock=ticking(1.0))
    progress.on_round(round=1, loss=0.5)
    progress.on_start(total_rounds=4)
    progress.on_round(round=1, loss=0.5, clients_per_s=7.0, validation=0.7)
    progress.on_message("a note [red]")
    assert "clients/s" not in stream.getvalue()
    progress.on_round(round=3, loss=0.125, clients_per_s=50.0)
    progress.on_round(round=4, loss=0.125, clients_per_s=50.0)
    progress.on_end()
    progress.on_end()
    text = stream.getvalue()
    assert "50 clients/s" in text
    assert "4/4" in text
    assert "loss 0.1250" in text
    assert "validation AUROC 0.7000" in text
    assert "a note [red]" in text


def test_the_stream_decides():
    assert build_progress(Terminal()).on_round.__qualname__.startswith("live")
    assert build_progress(io.StringIO()).on_round.__qualname__.startswith("plain")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (59.6, "1:00"), (61, "1:01"), (3723, "1:02:03"), (-4, "0:00")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text
