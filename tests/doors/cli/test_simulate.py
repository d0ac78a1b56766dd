"""The command `simulate`."""

import json
from pathlib import Path

import pytest

from tests.doors.cli.desk import Desk, refused

DOCUMENT = {
    "schema": 1,
    "endpoint": "e",
    "variants": [{"name": "a", "version": 1}, {"name": "b", "version": 2}],
    "strategy": {"kind": "fixed", "weights": {"a": 5_000, "b": 5_000}},
    "guards": [{"name": "errors", "event": "error"}],
}


@pytest.fixture
def document(tmp_path: Path) -> str:
    """A file with an experiment's document."""
    file = tmp_path / "experiment.json"
    file.write_text(json.dumps(DOCUMENT), encoding="utf-8")
    return str(file)


def test_harm_is_rolled_back_in_nearly_every_rollout(desk: Desk, document: str) -> None:
    """The numbers are those of the code that decides; the seed makes them again."""
    words = ("simulate", document, "--rollouts", "20", "--looks", "30", "--scenario", "harm")
    told = json.loads(desk.run(*words, "--json").output)
    again = json.loads(desk.run(*words, "--json").output)
    assert told == again
    assert told["harm"]["rollouts"] == 20
    assert told["harm"]["rolled_back"]["count"] >= 18
    assert set(told) == {"harm"}


def test_people_read_rates_what_they_mean_and_a_plot(desk: Desk, document: str) -> None:
    """Each scenario is said in words, with what its rates are to stay within."""
    done = desk.run("simulate", document, "--rollouts", "4", "--looks", "10")
    assert done.exit_code == 0
    for told in ("nothing differs", "to stay within 5.0%", "a z-test", "five times", "█"):
        assert told in done.output


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--scenario", "worse"), "Scenarios are same, margin, better, harm"),
        (("--rate", "errors"), "not of the form NAME=RATE"),
        (("--value", "errors=1"), "not of the form NAME=MEAN:SD"),
        (("--rate", "other=0.1", "--rollouts", "1"), "no guard 'other'"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    desk: Desk, document: str, words: tuple[str, ...], told: str
) -> None:
    """With a sentence, before anything is counted."""
    refused(desk.run("simulate", document, *words), 1, told)


def test_a_file_that_is_no_experiment_is_refused(desk: Desk, tmp_path: Path) -> None:
    """The decoder's words say where."""
    file = tmp_path / "other.json"
    file.write_text('{"schema": 1}', encoding="utf-8")
    refused(desk.run("simulate", str(file)), 1, "no experiment's document")
