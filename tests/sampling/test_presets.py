"""Published combinations: the figures of the papers, the files that are looked for, and what contradicts a preset."""

import shlex
from pathlib import Path

import pytest
import torch

from helpers.documented import after_script, matching, sized
from helpers.published_pickles import write_published
from helpers.small_snapshots import NETWORK, refused_in_process, small_network, stored
from recipe import convert, sample
from recipe.edm2.samplers.generate import SamplerSettings
from recipe.edm2.samplers.guidance import EVERYWHERE, Interval
from recipe.sampling.presets import PRESETS
from recipe.weights.official import time_and_length
from recipe.weights.snapshots import SnapshotInfo, save_snapshot

PUBLISHED = """
edm2-img512-xs-fid         3.53   img512-xs-2147483-0.135
edm2-img512-xs-dino        103.39 img512-xs-2147483-0.200
edm2-img512-s-fid          2.56   img512-s-2147483-0.130
edm2-img512-s-dino         68.64  img512-s-2147483-0.190
edm2-img512-m-fid          2.25   img512-m-2147483-0.100
edm2-img512-m-dino         58.44  img512-m-2147483-0.155
edm2-img512-l-fid          2.06   img512-l-1879048-0.085
edm2-img512-l-dino         52.25  img512-l-1879048-0.155
edm2-img512-xl-fid         1.96   img512-xl-1342177-0.085
edm2-img512-xl-dino        45.96  img512-xl-1342177-0.155
edm2-img512-xxl-fid        1.91   img512-xxl-0939524-0.070
edm2-img512-xxl-dino       42.84  img512-xxl-0939524-0.150
edm2-img64-s-fid           1.58   img64-s-1073741-0.075
edm2-img64-m-fid           1.43   img64-m-2147483-0.060
edm2-img64-l-fid           1.33   img64-l-1073741-0.040
edm2-img64-xl-fid          1.33   img64-xl-0671088-0.040
edm2-img512-xs-guid-fid    2.91   img512-xs-2147483-0.045  1.4 img512-xs-uncond-2147483-0.045
edm2-img512-xs-guid-dino   79.94  img512-xs-2147483-0.150  1.7 img512-xs-uncond-2147483-0.150
edm2-img512-s-guid-fid     2.23   img512-s-2147483-0.025   1.4 img512-xs-uncond-2147483-0.025
edm2-img512-s-guid-dino    52.32  img512-s-2147483-0.085   1.9 img512-xs-uncond-2147483-0.085
edm2-img512-m-guid-fid     2.01   img512-m-2147483-0.030   1.2 img512-xs-uncond-2147483-0.030
edm2-img512-m-guid-dino    41.98  img512-m-2147483-0.015   2.0 img512-xs-uncond-2147483-0.015
edm2-img512-l-guid-fid     1.88   img512-l-1879048-0.015   1.2 img512-xs-uncond-2147483-0.015
edm2-img512-l-guid-dino    38.20  img512-l-1879048-0.035   1.7 img512-xs-uncond-2147483-0.035
edm2-img512-xl-guid-fid    1.85   img512-xl-1342177-0.020  1.2 img512-xs-uncond-2147483-0.020
edm2-img512-xl-guid-dino   35.67  img512-xl-1342177-0.030  1.7 img512-xs-uncond-2147483-0.030
edm2-img512-xxl-guid-fid   1.81   img512-xxl-0939524-0.015 1.2 img512-xs-uncond-2147483-0.015
edm2-img512-xxl-guid-dino  33.09  img512-xxl-0939524-0.015 1.7 img512-xs-uncond-2147483-0.015
edm2-img512-s-autog-fid    1.34   img512-s-2147483-0.070   2.10 img512-xs-0134217-0.125
edm2-img512-s-autog-dino   36.67  img512-s-2147483-0.120   2.45 img512-xs-0134217-0.165
edm2-img512-xxl-autog-fid  1.25   img512-xxl-0939524-0.075 2.05 img512-m-0268435-0.155
edm2-img512-xxl-autog-dino 24.18  img512-xxl-0939524-0.130 2.30 img512-m-0268435-0.205
edm2-img512-s-uncond-autog-fid  3.86  img512-s-uncond-2147483-0.070 2.85 img512-xs-uncond-0134217-0.110
edm2-img512-s-uncond-autog-dino 90.39 img512-s-uncond-2147483-0.090 2.90 img512-xs-uncond-0134217-0.125
edm2-img64-s-autog-fid     1.01   img64-s-1073741-0.045    1.70 img64-xs-0134217-0.110
edm2-img64-s-autog-dino    31.85  img64-s-1073741-0.105    2.20 img64-xs-0134217-0.175
edm2-img512-s-autog-same-fid  1.53  img512-s-2147483-0.050 1.95 img512-xs-0134217-0.050
edm2-img512-s-autog-same-dino 40.81 img512-s-2147483-0.115 2.25 img512-xs-0134217-0.115
edm2-img512-s-autog-size-fid  2.13  img512-s-2147483-0.120 1.80 img512-xs-2147483-0.160
edm2-img512-s-autog-size-dino 59.89 img512-s-2147483-0.140 1.90 img512-xs-2147483-0.085
edm2-img512-s-guid-interval-fid    1.68  img512-s-2147483-0.025   2.1 img512-xs-uncond-2147483-0.025 0.28 2.9
edm2-img512-s-guid-interval-dino   46.25 img512-s-2147483-0.085   3.2 img512-xs-uncond-2147483-0.085 0.6 5
edm2-img512-xxl-guid-interval-fid  1.40  img512-xxl-0939524-0.015 2.0 img512-xs-uncond-2147483-0.015 0.19 1.61
edm2-img512-xxl-guid-interval-dino 29.16 img512-xxl-0939524-0.015 2.9 img512-xs-uncond-2147483-0.015 0.6 5
"""
"""Typed from Tables 6 (2312.02696), 1 (2406.02507) and 1 (2404.07724): name, result, network, then of guided ones
guidance, guide, and the interval."""
ROWS = [line.split() for line in PUBLISHED.strip().splitlines()]


def test_nothing_more_or_less():
    assert sorted(row[0] for row in ROWS) == sorted(PRESETS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_the_papers_figures(row: list[str]):
    preset = PRESETS[row[0]]
    assert (preset.published, preset.metric) == (float(row[1]), "FID" if row[0].endswith("fid") else "FD_DINOv2")
    assert preset.weights.name == f"edm2-{row[2]}"
    guide = None if preset.guide is None else preset.guide.name
    assert (guide, preset.guidance) == ((f"edm2-{row[4]}", float(row[3])) if len(row) > 3 else (None, 1.0))
    interval = Interval(float(row[5]), float(row[6])) if len(row) > 5 else EVERYWHERE
    assert preset.settings() == SamplerSettings(32, 0.002, 80, 7, guidance=preset.guidance, interval=interval)
    preset.settings().check()
    for weights in filter(None, (preset.weights, preset.guide)):
        assert time_and_length(f"{weights.name}.pkl") == (weights.mebi * 2**20, weights.sigma_rel)


GUIDED = "edm2-img512-s-guid-interval-fid"
NET, GUIDE = "edm2-img512-s-2147483-0.025", "edm2-img512-xs-uncond-2147483-0.025"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A folder with small networks in the places of the published ones."""
    for seed, (name, changes) in enumerate({NET: {}, GUIDE: {"label_dim": 0}}.items()):
        info = SnapshotInfo({**NETWORK, **changes}, 2**31, 0.025)
        net = small_network(seed, **changes)
        save_snapshot(tmp_path / "weights" / f"{name}.safetensors", stored(net, torch.float32), info)
    return tmp_path / "weights"


def drawn(monkeypatch: pytest.MonkeyPatch, out: Path, *arguments: object) -> bytes:
    options = ["--seeds", "5", "--device", "cpu", "--out", out]
    monkeypatch.setattr("sys.argv", ["sample.py", *map(str, [*arguments, *options])])
    sample.main()
    return (out / "000005.png").read_bytes()


def test_it_draws_as_the_options_that_it_stands_for(weights: Path, tmp_path: Path, monkeypatch, capsys):
    by_name = drawn(monkeypatch, tmp_path / "a", "--preset", GUIDED, "--weights", weights)
    assert "not what was published" not in capsys.readouterr().err
    networks = weights / f"{NET}.safetensors", "--guide", weights / f"{GUIDE}.safetensors"
    guidance = "--guidance", "2.1", "--guidance-interval", "0.28:2.9"
    assert drawn(monkeypatch, tmp_path / "b", *networks, *guidance) == by_name
    assert drawn(monkeypatch, tmp_path / "c", *networks, *guidance[:2]) != by_name


def test_other_options_stay_and_are_said(weights: Path, tmp_path: Path, monkeypatch, capsys):
    options = "--steps", "8", "--guidance", "1.5"
    by_name = drawn(monkeypatch, tmp_path / "a", "--preset", GUIDED, "--weights", weights, *options)
    said = capsys.readouterr().err
    assert "with num_steps 8 in place of 32, guidance 1.5 in place of 2.1: not what was published" in said
    networks = weights / f"{NET}.safetensors", "--guide", weights / f"{GUIDE}.safetensors"
    assert drawn(monkeypatch, tmp_path / "b", *networks, *options, "--guidance-interval", "0.28:2.9") == by_name


def test_documented_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Those of docs/sampling.md on small networks: the first prints the list, the others draw."""
    first, *others = matching(r"python recipe/sample\.py --preset .*")
    monkeypatch.setattr("sys.argv", shlex.split(first)[1:])
    with pytest.raises(SystemExit):
        sample.main()
    assert "edm2-img64-xl-fid" in capsys.readouterr().out
    for name in ("edm2-img64-s-1073741-0.045", "edm2-img64-xs-0134217-0.110"):
        info = SnapshotInfo(NETWORK, 2**30, 0.045)
        save_snapshot(
            tmp_path / "published" / f"{name}.safetensors", stored(small_network(len(name)), torch.float32), info
        )
    monkeypatch.chdir(tmp_path)
    for command in others:
        script, words = after_script(command)
        monkeypatch.setattr("sys.argv", [script, *sized(words, {"--seeds": "5", "--device": "cpu"})])
        sample.main()
    assert (tmp_path / "out" / "autog.npz").exists()


def test_the_list(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr("sys.argv", ["sample.py", "--preset", "list"])
    with pytest.raises(SystemExit) as caught:
        sample.main()
    head, *lines = capsys.readouterr().out.splitlines()
    assert (caught.value.code, len(lines)) == (0, len(PRESETS))
    assert head.split() == ["preset", "network", "guide", "guidance", "interval", "published", "source"]
    (line,) = [line for line in lines if line.split()[0] == GUIDED]
    assert line.split() == [GUIDED, NET, GUIDE, "2.1", "0.28:2.9", "FID", "1.68", "arXiv", "2404.07724"]


P = ["--preset", GUIDED]
W = ["--weights", "WEIGHTS"]
CONVERT = "python recipe/convert.py WEIGHTS/{0}.pkl --out WEIGHTS/{0}.safetensors"
REFUSED = {
    "no such": (["--preset", "edm2-img512-s-guide-fid", *W], "no such preset; did you mean edm2-img512-s-guid-fid?"),
    "nothing like it": (["--preset", "x", *W], "--preset x: no such preset; --preset list prints them"),
    "neither": ([], "SNAPSHOT: is missing; name one, or --preset NAME with --weights PLACE"),
    "weights alone": (["s.safetensors", *W], "--weights WEIGHTS: is of --preset, and there is none"),
    "no weights": (P, f"needs --weights, the folder or s3:// address of {NET}.safetensors and {GUIDE}.safetensors"),
    "and a snapshot": (["s.safetensors", *P, *W], f"SNAPSHOT s.safetensors: --preset {GUIDED} names the network"),
    "and a guide": ([*P, *W, "--guide", "g.safetensors"], f"--guide g.safetensors: --preset {GUIDED} says what guides"),
    "unguided": ([*P, *W, "--guidance", "1"], f"--guidance 1: --preset {GUIDED} is guided; choose one without a guide"),
    "guided": (["--preset", "edm2-img512-s-fid", *W, "--guidance", "2"], "edm2-img512-s-fid has no guide; choose one"),
    "no folder": ([*P, "--weights", "WORK/none"], "--weights WORK/none: no such folder; name the folder of"),
    "file": ([*P, "--weights", f"WEIGHTS/{NET}.safetensors"], "is a file; name the folder of"),
    "other store": ([*P, "--weights", "https://host/edm2"], "https://host/edm2: is not a folder that can be used"),
    "both missing": (
        ["--preset", "edm2-img64-s-autog-fid", *W],
        "needs edm2-img64-s-1073741-0.045.safetensors and edm2-img64-xs-0134217-0.110.safetensors; not there: "
        "edm2-img64-s-1073741-0.045.safetensors and edm2-img64-xs-0134217-0.110.safetensors; fetch "
        "edm2-img64-s-1073741-0.045.pkl into it (docs/weights.md) and run "
        + CONVERT.format("edm2-img64-s-1073741-0.045"),
    ),
    "guide missing": (
        ["--preset", "edm2-img512-s-autog-fid", "--weights", "WEIGHTS"],
        "; not there: edm2-img512-xs-0134217-0.125.safetensors; run " + CONVERT.format("edm2-img512-xs-0134217-0.125"),
    ),
    "network missing": (
        ["--preset", "edm2-img512-m-fid", *W],
        "-0.100.safetensors; fetch edm2-img512-m-2147483-0.100.pkl",
    ),
}


@pytest.mark.parametrize(("options", "said"), REFUSED.values(), ids=REFUSED)
def test_refused(options: list[str], said: str, weights: Path, tmp_path: Path, monkeypatch, capsys):
    """Before any network is loaded."""
    (weights / "edm2-img512-s-2147483-0.070.safetensors").touch()
    (weights / "edm2-img512-xs-0134217-0.125.pkl").touch()
    options = [word.replace("WEIGHTS", str(weights)).replace("WORK", str(tmp_path)) for word in options]
    arguments = [*options, "--device", "cpu", "--out", tmp_path / "out"]
    found = refused_in_process(sample, list(arguments), monkeypatch, capsys)
    assert said in found.replace(str(weights), "WEIGHTS").replace(str(tmp_path), "WORK")
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]


def test_converted_files_are_found(tmp_path: Path, monkeypatch, capsys):
    """The command that the refusal names is one that works."""
    name = "edm2-img64-s-1073741-0.075"
    write_published(tmp_path / f"{name}.pkl", small_network(3), NETWORK)
    arguments = ["--preset", "edm2-img64-s-fid", "--weights", tmp_path, "--out", tmp_path / "out"]
    said = refused_in_process(sample, list(arguments), monkeypatch, capsys)
    script, *words = shlex.split(said.partition("; run python ")[2])
    assert script == "recipe/convert.py"
    monkeypatch.setattr("sys.argv", [script, *words])
    convert.main()
    drawn(monkeypatch, tmp_path / "out", *arguments[:4], "--steps", "2")
