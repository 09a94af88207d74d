"""Shards that somebody else made: no command is run, and no file grows beyond what is allowed."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import resource
import shutil
import subprocess
import sys
import tarfile
import zlib
from pathlib import Path

import pytest
import yaml

from mxa.commands.prepare import PrepareConfig, prepare
from mxa.commands.publish import PublishConfig, publish
from mxa.data import DataConfig, create_dataset
from mxa.training.loop import TrainConfig, train
from mxa.utils.errors import InputError


@pytest.fixture
def shards(made_chexpert, tmp_path) -> Path:
    output = tmp_path / "shards"
    root = str(made_chexpert())
    prepare(PrepareConfig(output, data="chexpert", root=root, views="all", format="png", shard_size=4, workers=1))
    return output


def say(shards: Path, name: str, data: bytes) -> None:
    """Puts a file there that the manifest agrees with."""
    manifest = json.loads((shards / "manifest.json").read_text())
    (shards / name).write_bytes(data)
    if name == "rows.csv.gz":
        manifest["rows_sha256"] = hashlib.sha256(data).hexdigest()
    else:
        manifest["shards"][name]["sha256"] = hashlib.sha256(data).hexdigest()
    (shards / "manifest.json").write_text(json.dumps(manifest))


# Commands

URLS = [
    "Pipe://; touch PWNED",
    "PIPE://x; touch PWNED",
    "http://x/'; touch PWNED; '",
    'http://x/"; touch PWNED; "',
    "http://x/`touch PWNED`",
    "http://x/\ntouch PWNED",
    "http://x/[1-9999]",
    "gs://bucket/'; touch PWNED #",
    "HTTP://x",
]


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    assert not list(tmp_path.rglob("PWNED")), "a command was run"


def test_a_pipe_must_be_allowed(shards, elsewhere):
    root = f"pipe:touch PWNED; cat {shards}"
    with pytest.raises(InputError, match=r"runs a command: add --allow-pipe \(allow_pipe=True in Python\)"):
        create_dataset("shards", root)
    with pytest.raises(InputError, match="runs a command: add --allow-pipe"):
        DataConfig(data="shards", root=root).resolved().open("train")
    with pytest.raises(InputError, match="runs a command: add --allow-pipe"):
        prepare(PrepareConfig(Path("again"), data="shards", root=root))
    allowed = DataConfig(data="shards", root=f"pipe:cat {shards}", allow_pipe=True).resolved().open("train")
    assert len(allowed) == len(create_dataset("shards", shards, "train"))


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize("allow", [False, True])
def test_a_url_is_no_command(url, allow, elsewhere):
    with pytest.raises(InputError, match="is not a URL that is opened"):
        create_dataset("shards", url, allow_pipe=allow)


@pytest.mark.parametrize("more", ["", "allow_pipe: true\n"])
def test_no_file_names_a_command(shards, run, tmp_path, elsewhere, more, capsys):
    from mxa.cli import main

    command = f"data: shards\nroot: 'pipe:touch PWNED; cat {shards}'\n{more}"
    Path("c.yaml").write_text(command)
    with pytest.raises(SystemExit, match=r"c\.yaml: root names a command to run .pipe:."):
        main(["train", "--config", "c.yaml", "--output", "out", "--allow-pipe"])
    received = tmp_path / "received"
    received.mkdir()
    for name in ("config.json", "model.safetensors"):
        (received / name).write_bytes((run / name).read_bytes())
    for name in ("config.yaml", "local.yaml"):
        (received / name).write_text("data: shards\n" if name == "config.yaml" else "")
        (received / name).write_text(command)
        repo = "lab/efficientvit_ml_m0_mxa.tag"
        said = {"terms": "x", "license": "y", "dry_run": True}
        with pytest.raises(InputError, match="root names a command to run"):
            publish(PublishConfig(run=str(received), repo=repo, **said))
        with pytest.raises(InputError, match="root names a command to run"):
            publish(PublishConfig(run=str(received), repo=repo, data="phantom", **said))
        for command_line in (["evaluate", received, "--output", "out"], ["calibrate", received]):
            with pytest.raises(SystemExit, match="root names a command to run"):
                main([*map(str, command_line), "--allow-pipe"])
        (received / name).write_text("data: shards\n")


def test_the_option_is_no_setting_of_a_file(elsewhere):
    from mxa.cli import main

    Path("c.yaml").write_text("allow_pipe: true\n")
    with pytest.raises(SystemExit, match=r"c\.yaml: allow_pipe is for the command line alone"):
        main(["train", "--config", "c.yaml", "--data", "shards", "--root", "pipe:touch PWNED #", "--output", "out"])


def test_a_run_from_a_pipe_does_not_write_its_command(shards, tmp_path, elsewhere):
    small = {"model": "resnet10t", "img_size": 32, "epochs": 1, "batch_size": 4, "workers": 0, "views": "all"}
    options = {"data": "shards", "root": f"pipe:cat {shards}", "allow_pipe": True, **small}
    train(TrainConfig(Path("out"), **options))
    settings = yaml.safe_load(Path("out/config.yaml").read_text())
    assert settings["data"] == "shards" and settings["root"] is None and "allow_pipe" not in settings
    assert not Path("out/local.yaml").exists() and b"pipe:" not in Path("out/checkpoint.pt").read_bytes()
    with pytest.raises(InputError, match="needs --root"):
        DataConfig().resolved("out").open("val")
    assert len(DataConfig(root=options["root"], allow_pipe=True).resolved("out").open("val"))


# Bombs


def member(name: str, data: bytes, **fields) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in fields.items():
        setattr(info, key, value)
    return info.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % 512)


def sparse(size: int) -> bytes:
    info = tarfile.TarInfo("000000000.png")
    info.type = tarfile.GNUTYPE_SPARSE
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[483:495] = b"%011o\0" % size  # the size that it claims to have
    block[148:156] = b"        "
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def pax(size: int) -> bytes:
    info = tarfile.TarInfo("000000000.png")
    info.pax_headers = {"comment": "x" * size}
    return info.tobuf(tarfile.PAX_FORMAT)


def compressed(data: bytes, kind: str) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=f"w:{kind}") as tar:
        info = tarfile.TarInfo("000000000.png")
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
    return stream.getvalue()


SHARDS = {
    "gzip": lambda: compressed(bytes(1 << 22), "gz"),
    "bzip2": lambda: compressed(bytes(1 << 22), "bz2"),
    "xz": lambda: compressed(bytes(1 << 22), "xz"),
    "sparse": lambda: sparse(3 << 30) + bytes(1024),
    "pax": lambda: pax(1 << 20) + bytes(1024),
    "many pax": lambda: pax(10) * 5000 + bytes(1024),
    "a long name": lambda: tarfile.TarInfo("x" * 5000).tobuf(tarfile.GNU_FORMAT) + bytes(1024),
    "a link": lambda: member("000000000.png", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
    "a folder": lambda: member("x/", b"", type=tarfile.DIRTYPE),
    "a device": lambda: member("x", b"", type=tarfile.CHRTYPE),
    "a size that lies": lambda: member("000000000.png", b"abc", size=1 << 32),
    "a size below zero": lambda: member("000000000.png", b"abc", size=-1),
    "many members": lambda: member("0.png", b"") * 200_001,
    "half a block": lambda: member("0.png", b"abc") + b"x" * 100,
}


@pytest.mark.parametrize("kind", SHARDS)
def test_a_shard_of_another_kind_is_one_error(shards, kind):
    try:
        data = SHARDS[kind]()
    except (ValueError, tarfile.TarError):
        data = b"\x80" * 1024
    say(shards, "train-000000.tar", data)
    dataset = create_dataset("shards", shards, "train", views="all")
    with pytest.raises(InputError, match=r"train-000000\.tar is not a tar file of `mxa prepare`"):
        dataset.records.load("train-000000.tar")


@pytest.mark.parametrize("name", ["train-000000.tar", "rows.csv.gz"])
def test_the_largest_file_is_settable(shards, name, monkeypatch):
    monkeypatch.setenv("MXA_MAX_SHARD_BYTES", "500")
    with pytest.raises(InputError, match=r"is larger than 500 bytes: prepare it .*or raise MXA_MAX_SHARD_BYTES"):
        create_dataset("shards", shards, "train").records.load(name)
    monkeypatch.setenv("MXA_MAX_SHARD_BYTES", "lots")
    with pytest.raises(InputError, match="MXA_MAX_SHARD_BYTES must be a number of bytes, got 'lots'"):
        create_dataset("shards", shards, "train").records.load(name)


def test_a_shard_that_would_not_be_read_is_not_written(made_nih, tmp_path, monkeypatch):
    monkeypatch.setenv("MXA_MAX_SHARD_BYTES", "5000")
    config = PrepareConfig(tmp_path / "out", data="nih", root=str(made_nih()), workers=1)
    with pytest.raises(InputError, match="a shard would be larger than 5,000 bytes: give a smaller --shard-size"):
        prepare(config)


LOAD = """
import resource, sys
from mxa.data import create_dataset
from mxa.utils.errors import InputError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for folder in sys.argv[1:]:
    try:
        create_dataset("shards", folder, "train", views="all").records.load("train-000000.tar")
    except InputError as error:
        print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def bomb(size: int) -> bytes:
    """Zeros, a thousand times as many as bytes."""
    pack = zlib.compressobj(9, zlib.DEFLATED, 31)
    first, next_one = (pack.compress(bytes(1 << 20)) + pack.flush(zlib.Z_FULL_FLUSH) for _ in range(2))
    return first + next_one * ((size >> 20) - 1) + pack.flush()  # the checksum is wrong; nobody should come so far


@pytest.mark.skipif(not hasattr(resource, "RUSAGE_SELF"), reason="no such measure")
def test_a_bomb_takes_little_memory(shards, tmp_path):
    rows = gzip.decompress((shards / "rows.csv.gz").read_bytes()) + b"\n" * (1 << 24)
    bombs = {
        "a shard": ("train-000000.tar", bomb(1 << 30)),
        "a table": ("rows.csv.gz", bomb(1 << 30)),
        "a sparse file": ("train-000000.tar", b""),
        "many rows": ("rows.csv.gz", gzip.compress(rows, 1)),
    }
    for kind, (name, content) in bombs.items():
        say(shutil.copytree(shards, tmp_path / kind), name, content)
    with (tmp_path / "a sparse file" / "train-000000.tar").open("r+b") as file:
        file.truncate(5 << 30)
    folders = [str(tmp_path / kind) for kind in bombs]
    shown = subprocess.run([sys.executable, "-c", LOAD, *folders], capture_output=True, text=True, check=True)
    *messages, used = shown.stdout.splitlines()
    assert len(messages) == len(bombs)
    for message in messages:
        told = ("larger than 268,435,456 bytes", "is not a tar file", "cells, more than")
        assert any(text in message for text in told), message
    assert int(used) < 900  # MiB


@pytest.mark.parametrize(
    "data", [b"\x1f\x8b" + bytes(20), b"", gzip.compress(b"a,b\n1,2\n", mtime=0)[:-9], b"shard,key\n"]
)
def test_a_damaged_table_is_one_error(shards, data):
    say(shards, "rows.csv.gz", data)
    with pytest.raises(InputError, match=r"rows\.csv"):
        create_dataset("shards", shards)


@pytest.mark.parametrize("text", ["[" * 100_000, "{" * 10, "\xff", '{"labels": ' * 5000, "1" * 5000])
def test_a_manifest_of_another_kind_is_one_error(shards, text):
    (shards / "manifest.json").write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match="is not a manifest of `mxa prepare`"):
        create_dataset("shards", shards)


def test_a_huge_manifest_is_not_read(shards):
    with (shards / "manifest.json").open("r+b") as file:
        file.truncate(5 << 30)
    with pytest.raises(InputError, match=r"manifest\.json is larger than 16,777,216 bytes"):
        create_dataset("shards", shards)
