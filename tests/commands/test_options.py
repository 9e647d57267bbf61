"""What the options of the commands refuse before any work, in one line; sample.py's are in tests/sampling/."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from helpers.small_snapshots import refused_in_process
from recipe import bench, fetch, prepare, reconstruct
from recipe.command_options import Options, real_number, whole_number

PREPARE = ["digits", "--out", "WORK/out", "--resolution", "16"]
FETCH = ["s3://bucket/run", "--out", "WORK/out"]
RECONSTRUCT = ["WORK/run", "--sigma-rel", "0.1"]
REFUSED: dict[str, tuple[ModuleType, list[str], str]] = {
    "prepare: octal": (prepare, [*PREPARE[:3], "--resolution", "064"], "--resolution 064: must not begin with a 0"),
    "prepare: octal workers": (prepare, [*PREPARE, "--workers", "02"], "--workers 02: must not begin with a 0"),
    "prepare: no workers": (prepare, [*PREPARE, "--workers", "0"], "--workers 0: must be at least 1"),
    "prepare: octal shards": (prepare, [*PREPARE, "--shard-size", "064mb"], "--shard-size 064mb: must be from 1kb"),
    "prepare: sheet": (prepare, [*PREPARE, "--sheet", "a.png"], "is drawn by --inspect PLACE alone; leave it out"),
    "prepare: inspect and more": (prepare, ["--inspect", "WORK", "--crop", "none"], "--crop none: does nothing with"),
    "prepare: inspect and switch": (prepare, ["--inspect", "WORK", "--skip-errors"], "--skip-errors: does"),
    "prepare: sheet without a kind": (prepare, ["--inspect", "WORK", "--sheet", "a"], "--sheet a: must end with the"),
    "prepare: no labels": (prepare, [*PREPARE, "--labels", "WORK/a.csv"], "a.csv: there is no such file"),
    "prepare: labels in S3": (prepare, [*PREPARE, "--labels", "s3://b/a.csv"], "must be on this machine"),
    "prepare: into the source": (prepare, ["WORK", "--out", "WORK/out"], "lies in SOURCE, which would then hold"),
    "prepare: below a file": (prepare, ["digits", "--out", "WORK/file/out"], "is a file, not a folder"),
    "prepare: blank": (prepare, ["digits", "--out", ""], "--out '': must not be blank"),
    "prepare: home of nobody": (prepare, ["~nobody-of-that-name", "--out", "WORK/o"], "home folder is not known"),
    "prepare: misspelt": (prepare, [*PREPARE, "--resize", "3"], "unrecognized arguments: --resize 3"),
    "fetch: list and more": (fetch, ["WORK", "--list", "--nimg", "8Mi"], "--nimg 8Mi: does nothing with --list"),
    "fetch: time of a checkpoint": (fetch, [*FETCH, "--what", "checkpoint", "--nimg", "all"], "chooses snapshots"),
    "fetch: octal time": (fetch, [*FETCH, "--nimg", "010"], "--nimg 010: must be a number of images"),
    "fetch: misspelt time": (fetch, [*FETCH, "--nimg", "lastest"], "or latest, or all"),
    "fetch: lengths": (fetch, [*FETCH, "--sigma-rel", "00.05"], "--sigma-rel: '00.05' is not a list of numbers"),
    "fetch: part": (fetch, [*FETCH, "--what", "snapshot"], "--what snapshot: must be one of all, snapshots"),
    "fetch: jobs": (fetch, [*FETCH, "--jobs", "0"], "--jobs 0: must be at least 1"),
    "fetch: into itself": (fetch, ["WORK", "--out", "WORK"], "is the run's own folder; name another one"),
    "fetch: into S3": (fetch, ["WORK", "--out", "s3://bucket/a"], "--out s3://bucket/a: must be on this machine"),
    "fetch: into a file": (fetch, ["s3://b/run", "--out", "WORK/file"], "is a file, not a folder"),
    "reconstruct: octal": (reconstruct, [*RECONSTRUCT, "--nimg", "08"], "--nimg 08: must be a number of images"),
    "reconstruct: batches": (reconstruct, [*RECONSTRUCT, "--nimg", "8ba"], "--nimg 8ba: must be in images"),
    "reconstruct: lengths": (reconstruct, ["WORK", "--sigma-rel", "0.1:0.2"], "--sigma-rel: '0.1:0.2' is not a list"),
    "reconstruct: without end": (reconstruct, ["WORK", "--sigma-rel", "0:0.2:1e-12"], "are more than 10000000 numbers"),
    "reconstruct: out": (reconstruct, [*RECONSTRUCT, "--out", "WORK/file"], "is a file, not a folder"),
    "reconstruct: precision": (reconstruct, [*RECONSTRUCT, "--dtype", "float46"], "did you mean float16?"),
    "bench: rate of data": (bench, ["data", "--rate", "3"], "--rate 3.0: does nothing for data"),
    "bench: size of photographs": (bench, ["prepare", "--resolution", "64"], "--resolution 64: does nothing for"),
    "bench: images of a source": (bench, ["prepare", "WORK", "--images", "300"], "is of synthetic data, but SOURCE"),
    "bench: two sources": (bench, ["prepare", "a", "b"], "b: only one SOURCE can be measured"),
    "bench: few": (bench, ["data", "--images", "255"], "--images 255: must be at least 256"),
    "bench: no rate": (bench, ["snapshots", "a.yaml", "--rate", "0"], "--rate 0: must be above 0"),
    "bench: misspelt": (bench, ["dada"], "WHAT dada: must be one of snapshots, data, prepare; did you mean data?"),
}


@pytest.mark.parametrize(("command", "given", "said"), REFUSED.values(), ids=REFUSED)
def test_refused(command: ModuleType, given: list[str], said: str, tmp_path: Path, monkeypatch, capsys):
    """Nothing is written, and no server is asked."""
    monkeypatch.setenv("S3_ENDPOINT_URL", "http://127.0.0.1:1")
    (tmp_path / "file").touch()
    arguments = [word.replace("WORK", str(tmp_path)) for word in given]
    assert said in refused_in_process(command, arguments, monkeypatch, capsys)  # pyright: ignore[reportArgumentType]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("command", [prepare, fetch], ids=["prepare", "fetch"])
def test_home_folder(command: ModuleType, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/home/of somebody")
    arguments = command.arguments_parser().parse_args(["~/a b/Äpfel", "--out", "~/c"])
    given = arguments.source if command is prepare else arguments.run
    assert (given, str(arguments.out)) == ("/home/of somebody/a b/Äpfel", "/home/of somebody/c")


@pytest.mark.parametrize(
    ("read", "text", "value"),
    [
        (whole_number("--n"), "1_000", 1000),
        (whole_number("--n"), "1e3", 1000),
        (whole_number("--n"), " 7 ", 7),
        (real_number("--n"), "1e-3", 0.001),
        (real_number("--n"), "-.5", -0.5),
        (real_number("--n", least=0), "0", 0.0),
    ],
)
def test_numbers(read: Callable[[str], float], text: str, value: float):
    assert read(text) == value


def test_options_are_written_out(capsys: pytest.CaptureFixture[str]):
    parser = Options("a.py", "Does a.")
    parser.add_argument("--resolution")
    for given, said in (
        (["--res", "3"], "a.py: unrecognized arguments: --res 3; see --help\n"),
        (["--resolutoin", "3"], "a.py: unrecognized arguments: --resolutoin 3; did you mean --resolution?\n"),
        (["--resolution"], "a.py: argument --resolution: expected one argument; see --help\n"),
        (["--resolution=3", "--resolution", "4"], "a.py: --resolution: is given 2 times; keep one of them\n"),
    ):
        with pytest.raises(SystemExit) as caught:
            parser.parse_args(given)
        assert (caught.value.code, capsys.readouterr().err) == (2, said)


def test_a_contact_sheet_replaces_its_own_kind_alone(digits: Path, tmp_path: Path, monkeypatch, capsys):
    sheet = tmp_path / "sheet.png"
    sheet.write_bytes(b"notes")
    arguments = ["--inspect", str(digits), "--sheet", str(sheet)]
    said = refused_in_process(prepare, list(arguments), monkeypatch, capsys)
    assert f"{sheet}: is there, and not from this command; name another place, or add --overwrite" in said
    assert sheet.read_bytes() == b"notes"
    for more in (["--overwrite"], []):
        monkeypatch.setattr("sys.argv", ["prepare.py", *arguments, *more])
        prepare.main()
    assert sheet.read_bytes().startswith(b"\x89PNG")
