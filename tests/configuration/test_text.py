"""Text that is not what it looks like: what YAML would guess, and what the keys of the schema take instead."""

import codecs
import os
import random
from pathlib import Path

import pytest

from recipe.configuration.problems import ConfigError, Problem
from recipe.configuration.reader import read_config, to_yaml
from recipe.configuration.schema import Config

LEAST = "run_name: x\ndata:\n  local: d\n"


def value(config: Config, key: str) -> object:
    found: object = config
    for part in key.split("."):
        found = getattr(found, part)
    return found


def both_ways(tmp_path: Path, key: str, text: str) -> list[list[str]]:
    """The arguments that give a key in a YAML file, and those that give it on the command line."""
    least, (section, _, leaf) = tmp_path / "least.yaml", key.rpartition(".")
    least.write_text(LEAST)
    given = tmp_path / "given.yaml"
    given.write_text(f"{section}:\n  {leaf}: {text}\n" if section else f"{key}: {text}\n", encoding="utf-8")
    return [[str(least), str(given)], [str(least), f"{key}={text}"]]


def refused(*arguments: str) -> list[Problem]:
    with pytest.raises(ConfigError) as caught:
        read_config(arguments)
    return caught.value.problems


CLEAR = {
    "a job's number is a name": ("run_name", "20261126", "20261126"),
    "a name with a leading 0": ("run_name", "0123", "0123"),
    "a name like a number": ("run_name", "1e5", "1e5"),
    "a name like a time": ("run_name", "2026-11-26", "2026-11-26"),
    "Norway": ("run_name", "NO", "NO"),
    "a name like hexadecimals": ("run_name", "0x1f", "0x1f"),
    "a folder like a number": ("data.local", "2024", "2024"),
    "a folder like a truth value": ("data.local", "on", "on"),
    "a folder with spaces": ("data.local", "my photos/first set", "my photos/first set"),
    "a folder with letters of anywhere": ("data.local", "Fotos/Äpfel/写真", "Fotos/Äpfel/写真"),
    "a tilde that is no home folder": ("data.local", "photos~/a", "photos~/a"),
    "thousands": ("global_batch_size", "2_048", 2048),
    "an exponent for a whole number": ("samples.count", "1e2", 100),
    "an exponent for a number": ("optimizer.ref_batches", "7e4", 70000.0),
    "a sign": ("seed", "+3", 3),
    "no digit before the point": ("model.dropout", ".5", 0.5),
    "yes": ("data.shuffle", "yes", True),
    "off": ("data.x_flip", "off", False),
    "TRUE": ("data.x_flip", "TRUE", True),
    "null": ("scratch_folder", "null", None),
    "numbers of a list": ("ema.sigma_rels", "[.05, 1e-1]", [0.05, 0.1]),
    "a key that takes a word, too": ("device_train_microbatch_size", "128e0", 128),
    "zero": ("seed", "0", 0),
}


@pytest.mark.parametrize(("key", "text", "expected"), CLEAR.values(), ids=CLEAR)
def test_what_is_clear(tmp_path: Path, key: str, text: str, expected: object):
    for arguments in both_ways(tmp_path, key, text):
        config = read_config(arguments)
        assert (value(config, key), type(value(config, key))) == (expected, type(expected))
        again = tmp_path / "again.yaml"
        again.write_text(to_yaml(config), encoding="utf-8")
        assert read_config([str(again)]) == config


OCTAL = "must not begin with a 0, which could mean an octal number"
UNCLEAR = {
    "octal": ("seed", "010", OCTAL, "write 10"),
    "octal amount": ("duration", "051200", OCTAL, "write 51200"),
    "octal amount with a unit": ("duration", "0512ki", OCTAL, "write 512ki"),
    "octal zero": ("seed", "00", OCTAL, "write 0"),
    "octal sign": ("loss.P_mean", "-01.2", OCTAL, "write -1.2"),
    "octal in a list": ("model.channel_mult", "[01, 2]", OCTAL, "write 1"),
    "octal that is none": ("samples.count", "089", OCTAL, "write 89"),
    "octal beside a word": ("device_train_microbatch_size", "064", OCTAL, "write 64"),
    "hexadecimal": ("seed", "0x10", "must be decimal", "write 16"),
    "binary": ("seed", "0b11", "must be decimal", "write 3"),
    "modern octal": ("seed", "0o17", "must be decimal", "write 15"),
    "base 60": ("seed", "1:30", "must be decimal, without colons", "write one number"),
    "underscores anywhere": ("seed", "1_0", "has underscores that do not group thousands", "write 10"),
    "full-width digits": ("seed", "\uff15", "must be in the digits 0 to 9", "write 5"),
    "Arabic digits": ("global_batch_size", "\u0666\u0664", "must be in the digits 0 to 9", "write 64"),
    "decimal comma": ("model.dropout", "0,1", "must have a point before decimals", "write 0.1"),
    "part of a whole number": ("seed", "15e-1", "must be a valid integer", "for example 0"),
    "yes for a number": ("seed", "yes", "must be a valid integer", "for example 0"),
    "1 for a truth value": ("data.x_flip", "1", "must be a valid boolean", "for example False"),
    "y for a truth value": ("data.x_flip", "y", "must be a valid boolean", "for example False"),
    "infinite": ("optimizer.ref_batches", "1e999", "must be a finite number", "70000.0"),
    "endless digits": ("seed", "9" * 5000, "must be a valid integer", "for example 0"),
    "home or null": ("data.local", "~", "could mean null, as in YAML, or your home folder", "write null, or ~/"),
    "nobody's home": ("scratch_folder", "~nobody-of-that-name/a", "whose home folder is not known", "./~nobody-of"),
    "a shell's variable": ("data.local", "$HOME/data", "names the variable HOME", "write ${oc.env:HOME}"),
    "a placeholder of nobody": ("save_folder", "runs/{name}", "holds {name}, but only {run_name}", "{run_name}"),
    "a placeholder elsewhere": ("scratch_folder", "/tmp/{run_name}", "in save_folder only", "${run_name}"),
    "an address for a folder": ("data.local", "s3://bucket/a", "must be a folder of this machine", "belongs in remote"),
}


@pytest.mark.parametrize(("key", "text", "rule", "fix"), UNCLEAR.values(), ids=UNCLEAR)
def test_what_nobody_may_guess(tmp_path: Path, key: str, text: str, rule: str, fix: str):
    for index, arguments in enumerate(both_ways(tmp_path, key, text)):
        if text.startswith("{") and index == 0:
            continue
        problems = refused(*arguments)
        assert [problem.key for problem in problems] == [key]
        assert rule in problems[0].rule and fix in problems[0].fix + problems[0].rule, problems


PATHS = ["data.local", "data.remote", "save_folder", "scratch_folder", "init.path", "samples.vae"]


@pytest.mark.parametrize("key", PATHS)
def test_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str):
    monkeypatch.setenv("HOME", "/home/of somebody")
    for arguments in both_ways(tmp_path, key, "~/a b"):
        config = read_config([*arguments, *(["data.local=x"] if key == "data.remote" else [])])
        assert value(config, key) == "/home/of somebody/a b"


def test_home_folder_of_streams_and_of_the_file_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    streams = "[{local: ~/a, proportion: 1}, {local: '~/b', proportion: 0.5}]"
    (tmp_path / "own.yaml").write_text(f"run_name: x\ndata: {{streams: {streams}}}\n")
    found = read_config(["~/own.yaml"]).data.streams
    assert found is not None and [stream.local for stream in found] == [f"{tmp_path}/a", f"{tmp_path}/b"]


LITERAL = ["#1", "a: b", "[2024] photos", "it's", "*", "a #b", "@x", "a, b", "%x", "`a`", "!x", "&x", "- a", "C&A", "?"]


@pytest.mark.parametrize("text", LITERAL)
def test_a_shell_has_dealt_with_quotes_and_comments(tmp_path: Path, text: str):
    least = tmp_path / "least.yaml"
    least.write_text(LEAST)
    assert read_config([str(least), f"data.local={text}"]).data.local == text


@pytest.mark.parametrize("text", ["a ", " a", "a\u00a0", "a\u200b", "\ufeffa", "a\tb", "a\nb"])
def test_what_nobody_sees(tmp_path: Path, text: str):
    least = tmp_path / "least.yaml"
    least.write_text(LEAST)
    (problem,) = refused(str(least), f'data.local="{text}"'.replace("\n", "\\n"))
    assert "must not begin or end with a space" in problem.rule


@pytest.mark.parametrize(
    "content",
    [
        codecs.BOM_UTF8 + LEAST.encode(),
        LEAST.replace("\n", "\r\n").encode(),
        LEAST.encode("utf-16"),
        codecs.BOM_UTF16_BE + LEAST.encode("utf-16-be"),
        LEAST.replace(": ", ":\t").encode(),
        LEAST.replace("local: d", "local: d   ").encode(),
        b"%YAML 1.2\n---\n" + LEAST.encode() + b"...\n",
        b"base: &b {x: 1}\n".replace(b"base: &b {x: 1}\n", b"") + LEAST.encode(),
    ],
)
def test_files_of_other_editors(tmp_path: Path, content: bytes):
    path = tmp_path / "a file.yaml"
    path.write_bytes(content)
    config = read_config([str(path)])
    assert (config.run_name, config.data.local) == ("x", "d")


BAD_FILES = {
    "Latin-1": (LEAST.replace("local: d", "local: \xc4pfel").encode("latin-1"), "is not text in UTF-8"),
    "two documents": (f"{LEAST}---\n{LEAST}".encode(), "but found another document"),
    "tag": (LEAST.encode() + b"seed: !!int 3\n", "the tag tag:yaml.org,2002:int has no meaning here"),
    "circle": (LEAST.encode() + b"model: &m\n  a: *m\n", "circle"),
    "billion laughs": (
        b"a0: &a0 [x, x]\n" + b"".join(b"a%d: &a%d [*a%d, *a%d]\n" % (i, i, i - 1, i - 1) for i in range(1, 40)),
        "values",
    ),
    "tab": (b"data:\n\tlocal: d\n", "is not valid YAML: found character that cannot start any token"),
}


@pytest.mark.parametrize(("content", "said"), BAD_FILES.values(), ids=BAD_FILES)
def test_files_that_cannot_be_read(tmp_path: Path, content: bytes, said: str):
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    (problem,) = refused(str(path))
    assert said in problem.rule and str(path) in problem.key
    assert ("indent with spaces, not with tabs" in problem.fix) == (b"\t" in content)


def test_merged_keys_of_yaml(tmp_path: Path):
    path = tmp_path / "merged.yaml"
    path.write_text(LEAST + "samples: &s {count: 8}\ncheckpoints: {keep: 3}\nlogging: {wandb: {project: 007}}\n")
    config = read_config([str(path)])
    assert config.logging.wandb is not None and config.logging.wandb.project == "007"
    path.write_text(LEAST + "optimizer: {<<: {eps: 1e-9, ref_lr: 3}, ref_lr: 0.02}\n")
    assert (read_config([str(path)]).optimizer.eps, read_config([str(path)]).optimizer.ref_lr) == (1e-9, 0.02)


def test_references_are_read_as_what_their_key_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("EDM2_TEST_JOB", "0123")
    monkeypatch.setenv("EDM2_TEST_SEED", "7")
    path = tmp_path / "a.yaml"
    path.write_text("run_name: ${oc.env:EDM2_TEST_JOB}\nseed: ${oc.env:EDM2_TEST_SEED}\ndata: {local: '${seed}'}\n")
    config = read_config([str(path)])
    assert (config.run_name, config.seed, config.data.local) == ("0123", 7, "7")
    (problem,) = refused(str(path), "seed=${oc.env:EDM2_TEST_JOB}")
    assert problem.rule == OCTAL


def _check_random_text(tmp_path: Path, generator: random.Random) -> None:
    """A whole number is read as Python reads it or refused with one problem; nothing else comes out of any text."""
    letters = "0123456789_+-.eExobaifn: ,#~'\"[]{}&*|>%@`\t\u0665\uff11"
    text = "".join(generator.choice(letters) for _ in range(generator.randint(1, 6)))
    least = tmp_path / "least.yaml"
    least.write_text(LEAST)
    problems: list[Problem] = []
    try:
        config = read_config([str(least), f"seed={text}"])
    except ConfigError as error:
        problems = error.problems
    else:
        clean = text.split("#")[0].strip()
        assert config.seed == float(clean.replace("_", "")), text
        assert not clean.lstrip("+-").startswith("0") or config.seed == 0, text
    assert len(problems) <= 1, text


def test_random_text(tmp_path: Path):
    for seed in range(200):
        _check_random_text(tmp_path, random.Random(seed))


@pytest.mark.soak
def test_much_random_text(tmp_path: Path):
    for seed in range(200, 5000):
        _check_random_text(tmp_path, random.Random(seed))


def test_variables_of_nobody_are_names(tmp_path: Path):
    assert "EDM2_NOBODY" not in os.environ
    least = tmp_path / "least.yaml"
    least.write_text(LEAST)
    assert read_config([str(least), "data.local=$EDM2_NOBODY/a"]).data.local == "$EDM2_NOBODY/a"
