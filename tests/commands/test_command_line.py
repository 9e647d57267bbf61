"""Lists on the command line, and who speaks."""

import pytest

from recipe.command_line import exit_with, parse_integers, parse_numbers, say, unique


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("7", [7]), ("0-3", [0, 1, 2, 3]), ("5-5", [5]), ("0-2,50, 1", [0, 1, 2, 50, 1]), ("1_000,1e3", [1000, 1000])],
)
def test_lists_of_integers(text: str, numbers: list[int]):
    assert parse_integers(text) == numbers


BAD = ["", ",", "1,", "-1", "1-", "a", "1.5", "1-2-3", "0:3", "1 2", "007", "0-09", "0x1", "\uff11", "+1"]


@pytest.mark.parametrize("text", BAD)
def test_bad_lists_of_integers(text: str):
    with pytest.raises(ValueError, match="is not a list of whole numbers and ranges such as 0-39,50"):
        parse_integers(text)


def test_integers_too_large_for_a_seed():
    assert parse_integers(str(2**63 - 1)) == [2**63 - 1]
    with pytest.raises(ValueError, match=r"goes beyond 2\^63 - 1"):
        parse_integers(str(2**63))


def test_falling_range_of_integers():
    with pytest.raises(ValueError, match="'5-3' is a range that falls; write 3-5"):
        parse_integers("1,5-3")


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("0.05", [0.05]),
        ("0.05,0.10:0.20:0.05", [0.05, 0.1, 0.15, 0.2]),
        ("0.1:0.3:0.1", [0.1, 0.2, 0.3]),
        ("0.1:0.29:0.1", [0.1, 0.2]),
        ("0.2:0.2:0.1", [0.2]),
        ("0.015:0.25:0.005", [round(0.005 * index, 3) for index in range(3, 51)]),
    ],
)
def test_lists_of_numbers(text: str, numbers: list[float]):
    assert parse_numbers(text) == numbers


@pytest.mark.parametrize("text", ["00.1", "nan", "0,1:0,2:0,1", "0x1"])
def test_numbers_that_are_none(text: str):
    with pytest.raises(ValueError, match="is not a list of numbers and ranges start:end:step"):
        parse_numbers(text)


def test_lists_without_end():
    with pytest.raises(ValueError, match="are more than 10000000 numbers"):
        parse_integers("0-999999999999")
    with pytest.raises(ValueError, match="are more than 10000000 numbers"):
        parse_numbers("0:1:1e-300")


@pytest.mark.parametrize(
    "text", ["", "a", "0.1,", "0.1:0.2", "0.1:0.2:0", "0.1:0.2:-0.1", "0.2:0.1:0.05", "0.1:inf:0.1", "1:2:3:4", "1-2"]
)
def test_bad_lists_of_numbers(text: str):
    with pytest.raises(ValueError, match="is not a list of numbers and ranges start:end:step"):
        parse_numbers(text)


def test_unique_keeps_the_order():
    assert unique([0.2, 0.1, 0.2, 0.3, 0.1]) == [0.2, 0.1, 0.3]


@pytest.mark.parametrize(("rank", "said"), [(None, "hello\n"), ("", "hello\n"), ("0", "hello\n"), ("1", "")])
def test_rank_0_speaks(rank: str | None, said: str, monkeypatch: pytest.MonkeyPatch, capsys):
    if rank is None:
        monkeypatch.delenv("RANK", raising=False)
    else:
        monkeypatch.setenv("RANK", rank)
    say("hello")
    assert capsys.readouterr().out == said


@pytest.mark.parametrize(
    ("rank", "on_every_rank", "said"),
    [("0", True, "train.py: bad\n"), ("1", True, ""), ("1", False, "train.py (rank 1): bad\n")],
)
def test_bad_input_ends_a_command(rank: str, on_every_rank: bool, said: str, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(SystemExit) as caught:
        exit_with("train.py", "bad", on_every_rank)
    assert caught.value.code == 2
    assert capsys.readouterr().err == said
