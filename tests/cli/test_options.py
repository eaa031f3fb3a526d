"""Options that are the fields of settings: names, defaults and help from one place."""

from dataclasses import dataclass, fields

import pytest
import typer
from typer.testing import CliRunner

from fastguide.cli import judges, nets
from fastguide.cli.options import documented, settings_as_options
from fastguide.training import JudgeConfig, TrainConfig


@dataclass(frozen=True)
class Base:
    """Settings.

    Args:
        steps: how many, which is a text
            of two lines.
        sizes, rates: numbers.
    """

    steps: int = 3
    sizes: tuple[int, ...] = (1, 2)
    rates: tuple[float, ...] = ()
    hidden: int = 9

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}")


@dataclass(frozen=True)
class Longer(Base):
    """Others.

    Args:
        width: of it.
    """

    steps: int = 5
    width: int | None = None
    fast: bool = True


def called(*arguments):
    """The settings that a command is given, and what typer says."""
    seen = []

    @settings_as_options(without=["hidden"])
    def command(name: str, *, other: float = 0.5, longer: Longer) -> None:
        seen.append((name, other, longer))

    app = typer.Typer()
    app.command()(command)
    result = CliRunner().invoke(app, [str(one) for one in arguments])
    return (seen or [None])[0], result


def test_defaults_are_those_of_the_settings():
    assert called("a")[0] == ("a", 0.5, Longer())


def test_options_are_their_fields():
    options = ["--steps", 7, "--sizes", "4, 5", "--rates", "0.1,2", "--width", 8, "--no-fast"]
    want = Longer(steps=7, sizes=(4, 5), rates=(0.1, 2.0), width=8, fast=False)
    assert called("a", *options, "--other", 2)[0] == ("a", 2.0, want)
    assert called("a", "--sizes", "")[0][2].sizes == ()


def test_wrong_values():
    for options, message in (
        (["--steps", 0], "steps is 0"),
        (["--sizes", "1,b"], "sizes is '1,b', but it should be whole numbers"),
        (["--rates", "x"], "rates is 'x', but it should read like 0.05,0.1"),
    ):
        seen, result = called("a", *options)
        assert seen is None
        assert message in str(result.exception)
    assert called("a", "--hidden", 1)[1].exit_code == 2


def test_the_help_is_the_documentation():
    assert documented(Longer) == {
        "steps": "how many, which is a text of two lines",
        "sizes": "numbers",
        "rates": "numbers",
        "width": "of it",
    }
    text = " ".join(called("--help")[1].output.replace("│", " ").split())
    assert "how many, which is a text of two lines" in text


@pytest.mark.parametrize(
    "settings",
    [TrainConfig, JudgeConfig, nets.NetOptions, judges.NoiseOptions, judges.Tower],
)
def test_every_option_of_the_commands_is_documented(settings):
    no_option = {"recipe"}
    assert {one.name for one in fields(settings)} - no_option <= set(documented(settings))
