"""What the command line says, and where."""

import json

import pytest

from trainability.cli import terminal


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"])
def test_only_the_first_process_speaks(name, monkeypatch, capsys):
    import click

    assert terminal.is_first()
    monkeypatch.setenv(name, "0")
    assert terminal.is_first()
    monkeypatch.setenv(name, "1")
    assert not terminal.is_first()
    terminal.Terminal().print("nothing of this")
    with pytest.raises(click.exceptions.Exit) as caught:
        terminal.fail("nothing of this")
    assert caught.value.exit_code == 2
    assert capsys.readouterr() == ("", "")


def test_what_acts_on_a_terminal_is_written_out_in_one_line_of_bounded_length():
    shown = terminal.printable("a\x1b[31m\nb\u202ec\ud800" + "x" * 10**5)
    assert shown.isprintable()
    assert len(shown) <= 601
    shown.encode()


def test_a_sentence_goes_to_standard_error_and_an_object_to_standard_output(capsys):
    import click

    with pytest.raises(click.exceptions.Exit):
        terminal.fail("it cannot be")
    terminal.print_json({"a": [1, None]})
    said = capsys.readouterr()
    assert said.err == "trainability: it cannot be\n"
    assert json.loads(said.out) == {"a": [1, None]}


@pytest.mark.parametrize(("seconds", "shown"), [(None, "…"), (0, "0:00"), (61.9, "1:01"), (3600, "60:00")])
def test_durations_are_minutes_and_seconds(seconds, shown):
    assert terminal.duration(seconds) == shown
