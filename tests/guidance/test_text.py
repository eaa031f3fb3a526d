"""Guidance as text: what is read is what Python says, what is printed is read back the same."""

import re
from dataclasses import replace
from types import NoneType
from typing import get_args

import pytest
import torch

import fastguide as fg
from fastguide.guidance.vocabulary import (
    amount_of,
    changes,
    methods,
    options_of,
    schedules,
    terms,
)

LEVELS = [fg.Flow().level(t) for t in (0.9, 0.6, 0.3)]
MODEL = replace(fg.load("fashion"), source='a "new", folder')


class Judge:
    """What a classifier or a pair of encoders that was loaded is."""

    source, class_names, logit_scale = "judges/one+two", ("a", "b"), 10.0

    def __call__(self, x, t): ...
    def image(self, x, t): ...
    def text(self, texts): ...


def load(kind, name):
    assert name in (MODEL.source, Judge.source)
    return MODEL if kind == "model" else JUDGE


JUDGE = Judge()


def numbers(guidance):
    """All that a plan is made from: every term's branch and weights."""
    three = torch.ones(3, 1, dtype=torch.float64)
    inside = [(one.term, one.tau, one.alpha, one.layers) for one in guidance.inside()]
    branches, groups = [], []
    for term in guidance.terms():
        for one in term.branch.rescales:  # which count as one where they are one object
            groups += [] if any(one is known for known in groups) else [one]
        group = [(groups.index(one), one.share, one.space) for one in term.branch.rescales]
        plain = replace(term.branch, rescales=())
        branches.append((plain, group, (term.weights(LEVELS) * three).tolist()))
    return branches, [(t.branch, t.weights(LEVELS).tolist(), *rest) for t, *rest in inside]


def same(guidance, text):
    read = fg.parse(text, load)
    assert numbers(read) == numbers(guidance), text
    assert str(fg.parse(str(read), load)) == str(read) == str(guidance)


@pytest.mark.parametrize(
    ("text", "guidance"),
    [
        ("cfg:5 + pag:2@mid", fg.CFG(5) + fg.PAG(2)),
        ("CFG=3,every=2", fg.CFG(3, every=2)),
        ("pag=1, layers=2/blocks.5", fg.PAG(1, [2, "blocks.5"])),
        (
            'PAG(2, layers="mid", schedule=interval(0.3, 2.9))',
            fg.PAG(2, schedule=fg.interval(0.3, 2.9)),
        ),
        (
            "fg.CFG(3).rescale(0.5) + STG(1, mode='Attention')",
            fg.CFG(3).rescale(0.5) + fg.STG(1, mode="attention"),
        ),
        ("2 * CFG(3) | CFG-Zero*:1", fg.CFGZeroStar(2 * fg.CFG(3), 1)),
        (
            "2*(cfg:3 + slg:1@7) | apg:radius=2.5,momentum=-.5",
            fg.APG(2 * (fg.CFG(3) + fg.SLG(1, 7)), radius=2.5, momentum=-0.5),
        ),
        ("2*(cfg:3 | reg:chain)", 2 * fg.REG(fg.CFG(3), "chain")),
        (
            "cfg:3 | reg,within=interval:1:2:over=t",
            fg.REG(fg.CFG(3), within=fg.interval(1, 2, "t")),
        ),
        ("cfg:linear:1:3:over=step", fg.CFG(fg.linear(1, 3, over="step"))),
        ("cfg:linear(1, 3, span=(9, 0))", fg.CFG(fg.linear(1, 3, span=(9.0, 0.0)))),
        ("cfg:1/2/3,channels=0/2", fg.CFG([1, 2, 3], channels=(0, 2))),
        ("CFG(scale=[1, 2, 3], schedule=[1, 0, 1])", fg.CFG([1, 2, 3], [1, 0, 1])),
        ("cfg:samples:1:2.5:1e+1", fg.CFG(torch.tensor([1, 2.5, 10]))),
        ('slg:2@"7"/last', fg.SLG(2, ["7", "last"])),
        ("seg:1e-3,sigma=inf", fg.SEG(0.001)),
        ("nag", fg.NAG()),
        ("cfg:4 + slg@10,on=negative", fg.CFG(4) + fg.SLG(layers=10, on="negative")),
        ("fdg:5,high=cosine:2", fg.FDG(5, fg.cosine(2))),
        ('autoguidance:2,weak="a \\"new\\", folder"', fg.AutoGuidance(MODEL, 2)),
        (
            'classifier:1,classifier="judges/one+two",labels=1/0/1',
            fg.ClassifierGuidance(JUDGE, 1, torch.tensor([1, 0, 1])),
        ),
        (
            "clip:3,text_embedding=none,image_encoder='judges/one+two'",
            fg.CLIPGuidance(JUDGE, None, 3),
        ),
    ],
)
def test_a_text_is_what_python_says(text, guidance):
    if "labels" in text:  # which are told apart by the tensor's identity
        assert str(fg.parse(text, load)) == str(guidance)
        assert fg.parse(text, load).labels.tolist() == [1, 0, 1]
    else:
        same(guidance, text)


def other_value(option):
    """Another value than the default one, by the option's type."""
    if option.loads is not None:
        return load(option.loads, Judge.source)
    members = [m for m in get_args(option.hint) or (option.hint,) if m is not NoneType]
    words = [m for m in members if isinstance(m, str) and m != option.default]
    by_name = {"layers": ["first", 3], "channels": [0, 2], "labels": torch.tensor([1, 0])}
    if option.name in by_name:
        return by_name[option.name]
    if option.is_amount:
        return fg.linear(2.0, 3.0, span=(5.0, 1.5))
    if words or str in members:
        return words[0] if words else "none, of 'these'"
    if bool in members:
        return not option.default
    if int in members or float in members:
        return 3 if int in members else 2.25 if option.name == "tau" else 0.125
    return fg.interval(0.25, 0.5, "t")


def test_every_option_of_every_guidance_is_read_back():
    checked = 0
    for cls in methods().values():
        options = options_of(cls)
        within = {"guidance": fg.CFG(3.0)} if changes(cls) else {}
        needed = {key: other_value(one) for key, one in options.items() if one.required}
        for key, one in options.items():
            extra = {"mode": "difference"} if key == "step" else {}
            if cls is fg.SLG and key != "on":
                extra = {"weight": 2.0}
            value = other_value(one)
            unsaid = _unsaid(options, needed, key)
            made = cls(**{**within, **needed, **unsaid, **extra, key: value})
            read = getattr(fg.parse(str(made), load), key)
            if isinstance(value, torch.Tensor):
                assert torch.equal(read, value)
            else:
                assert list(read) == value if isinstance(value, list) else read == value, str(made)
            checked += 1
    assert checked > 80
    assert {"cfg", "nag", "clipguidance"} <= {*terms()}
    assert set(methods()) == {
        name.lower()
        for name in fg.guidance.__all__
        if isinstance(getattr(fg, name), type) and issubclass(getattr(fg, name), fg.Guidance)
    } - {"guidance", "energyguidance"}  # the class itself, and what is a function of Python
    assert amount_of(fg.FDG) == "low"
    assert "interval" in schedules()


def _unsaid(options, needed, key):
    """What Python must be told, but text need not."""
    return {n: None for n, o in options.items() if o.default is None and n not in (*needed, key)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dgo:1", r"guidance has 'dgo:1', but a method is one of .*did you mean 'fdg'\?"),
        ("cfg3", r"did you mean 'cfg'\?"),
        ("cfg 3", "guidance has 'cfg 3', but it should read like cfg:3"),
        ("apg:2", r"write it after one, as in cfg:3 \| apg"),
        (
            "cfg:3 | pag:2",
            r"'\| pag:2', but .* comes one of rescale.*joined by \+, as in cfg:3 \+ pag",
        ),
        ("cfg:3 | mambo:x", r"'\| mambo:x', where alpha is 'x', but it should be a number"),
        ("pag", "guidance has 'pag', but pag needs a weight: pag:3"),
        ("pag:x", "guidance has 'pag:x', where weight is 'x', but it should be a number"),
        ("pag@mid:2", "as in pag:2@mid"),
        ("cfg:3@mid", "CFG has no option 'layers'; its options: scale, schedule, every, channels"),
        ("pag:1,layer=2", r"PAG has no option 'layer'; .*; did you mean 'layers'\?"),
        ("pag:1,2", "where '2' should be an option, as in name=value"),
        ("pag:1,every=0", "guidance has 'pag:1,every=0': every is 0"),
        ("pag:1,weight=2", "weight is given twice"),
        ("cfg:3,every=1.5", "every is '1.5', but it should be a whole number"),
        ("cfg:3 | reg:checkpoint=yes", "checkpoint is 'yes', but it should be true or false"),
        (
            "cfg:3,schedule=intervall:1:2",
            r"LOW:HIGH or linear:START:END; did you mean 'interval'\?",
        ),
        ("cfg:interval:1", "scale is 'interval:1', but it should be .*: high is missing"),
        ("cfg:interval:2:1", "but low should not exceed high"),
        ("cfg:3,schedule=cosine:1:2:3:4", "'4' is one more than cosine takes"),
        ("sims:1", "needs another network: auxiliary=NAME"),
        ("sims:1,auxiliary=x", "auxiliary is 'x', another network, but none can be loaded here"),
        ("energy:2", "guidance has 'energy:2', but a method is one of"),
        ("CGF(3)", r"did you mean 'cfg'\?"),
        ("APG()", "needs a guidance"),
        ("CFG(3, cosine, 2, [1], 4)", "'4' is one more than CFG takes"),
        ("CFG(3).scaled(2)", r"'.scaled\(2\)' is neither .rescale"),
        ("cfg:3 +", r"something is missing beside '\+'"),
        ("(cfg:3", r"where '\(' is not closed"),
        ("cfg:3]", "where ']' closes nothing"),
        ("", "guidance is '', but it should be none"),
        ("(" * 30 + "cfg:3" + ")" * 30, "more than 20 brackets"),
        ("cfg:3" * 5000, "should have at most 10000"),
    ],
)
def test_a_text_that_cannot_be_read(text, message):
    with pytest.raises(ValueError, match=message):
        fg.parse(text)


def test_texts_that_python_alone_has_are_refused():
    for guidance in (
        fg.CFG(lambda level: 1.0),
        fg.CFG(3.0, lambda level: 1.0),
        fg.AutoGuidance(replace(MODEL, source=""), 2.0),
        fg.EnergyGuidance(lambda x, t: x, 1.0),
    ):
        assert {"<function>", "<Model>", "<EnergyGuidance>"} & {*re.findall("<.*>", str(guidance))}
        with pytest.raises(ValueError, match="guidance has"):
            fg.parse(str(guidance), load)
    with pytest.raises(TypeError, match="guidance is 3, but it should be a text"):
        fg.parse(3)
    assert fg.parse(" None ") is None


def test_defaults_stand_where_neither_text_nor_class_has_a_value():
    defaults = {"scale": 2.0, "schedule": fg.interval(1, 2)}
    read = fg.parse("cfg + pag:1,schedule=cosine + nag + cfg:4", defaults=defaults)
    wanted = "cfg:2,schedule=interval:1:2 + pag:1,schedule=cosine + nag:5,schedule=interval:1:2"
    assert str(read) == f"{wanted} + cfg:4,schedule=interval:1:2"


def test_a_guidance_times_a_number_has_that_many_times_the_weight():
    assert numbers(2 * fg.CFG(2.0)) == numbers(fg.CFG(3.0))
    assert numbers(fg.PAG(1.5) * 2) == numbers(fg.PAG(3.0))
    assert numbers(2 * fg.NAG(3.0)) == numbers(fg.NAG(5.0))
    doubled = 2 * (fg.CFG(2.0) + fg.REG(fg.PAG(1.0))).rescale()
    assert numbers(doubled) == numbers((fg.CFG(3.0) + fg.REG(fg.PAG(2.0))).rescale())
    assert numbers(0 * fg.CFG(2.0)) == numbers(fg.CFG(1.0))
    assert numbers(sum([fg.CFG(2.0), fg.PAG(1.0)])) == numbers(fg.CFG(2.0) + fg.PAG(1.0))
    with pytest.raises(TypeError, match="times is 'x'"):
        fg.CFG(2.0) * "x"
    with pytest.raises(TypeError, match="has two guidances"):
        fg.CFG(2.0) * fg.CFG(2.0)


def test_scales_as_people_have_them():
    numpy = pytest.importorskip("numpy")
    for three in (
        numpy.float32(3),
        numpy.int64(3),
        numpy.array(3.0),
        torch.tensor(3),
        torch.tensor(3.0),
    ):
        assert numbers(fg.CFG(three)) == numbers(fg.CFG(3.0))
        assert str(fg.CFG(three)) == "cfg:3"
    assert numbers(numpy.float64(2) * fg.CFG(2.0)) == numbers(torch.tensor(2) * fg.CFG(2.0))
    each = numpy.array([1.0, 2.0, 4.0])
    assert numbers(fg.CFG(each)) == numbers(fg.CFG(torch.tensor([1.0, 2.0, 4.0])))
