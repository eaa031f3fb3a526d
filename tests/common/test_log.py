"""The log: nothing by default, and where it is asked for what a run was."""

import io
import json
import logging

import pytest
from recorder import captured
from test_perturbation import dit, model_of

import fastguide as fg


@pytest.fixture
def records():
    """What the library's logger is told, with the level that a user has set."""
    found, logger = [], logging.getLogger("fastguide")
    handler = logging.Handler()
    handler.emit = found.append
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield found
    logger.removeHandler(handler)
    logger.setLevel(logging.NOTSET)


def test_a_record_for_each_run_and_capture(records):
    sampler = captured(model_of(dit()), fg.CFG(3.0, fg.interval(0.3, 2.0)), steps=4)
    sampler.warmup([4])
    records.clear()
    sampler([0, 1, 2], [0, 1, 2])
    sampler([0, 1, 2, 3, 4], range(5))
    assert [record.event for record in records] == ["run", "capture", "run"]
    first, capture, last = records
    assert (first.batch, first.padded, first.evaluations, first.way) == (3, 1, 4, "whole")
    assert first.rows == 3 * sampler.plan.net_rows
    assert [record.captures for record in records] == [0, 1, 1]
    assert capture.batch == 5
    assert last.seconds > 0.0
    sampler([0], [0], callback=lambda progress: None)
    assert records[-1].way == "eager"
    assert "run batch=1 padded=0 evaluations=4" in records[-1].getMessage()


def test_warmup_says_what_it_chose(records):
    sampler = fg.Sampler(model_of(dit()), fg.CFG(3.0), steps=4)
    chosen = sampler.warmup([1, 2])
    assert [(r.event, r.batch, r.mode) for r in records] == [
        ("warmup", batch, chosen[batch]) for batch in (1, 2)
    ]
    assert records[0].milliseconds.keys() == {"batched", "sequential"}


def test_nothing_is_shown_by_default(capfd):
    fg.sample(model_of(dit()), [0], fg.CFG(3.0), steps=2)
    assert capfd.readouterr() == ("", "")
    assert all(isinstance(h, logging.NullHandler) for h in logging.getLogger("fastguide").handlers)


def test_json_lines_as_documented(records):
    out = io.StringIO()

    # what docs/serving.md says
    class Lines(logging.Handler):
        def emit(self, record):
            names = record.__dict__.keys() - logging.makeLogRecord({}).__dict__.keys()
            line = {"time": record.created, **{n: record.__dict__[n] for n in names}}
            print(json.dumps(line), file=out)

    handler = Lines()
    logging.getLogger("fastguide").addHandler(handler)
    fg.sample(model_of(dit()), [0, 1], fg.CFG(3.0), steps=2, seeds=[0, 1])
    logging.getLogger("fastguide").removeHandler(handler)
    line = json.loads(out.getvalue())
    assert (line["event"], line["batch"], line["evaluations"], line["rows"]) == ("run", 2, 2, 8)
