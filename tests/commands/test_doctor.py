"""What `mxa doctor` finds, what it says where something is wrong, and what names and versions may import."""

from __future__ import annotations

import http.server
import sys
import threading
from pathlib import Path

import pytest

from mxa import cli
from mxa.commands import doctor as module
from mxa.commands.doctor import DoctorConfig, doctor


def found(checks, what):
    return next(check for check in checks if check.what == what)


@pytest.fixture(scope="module")
def checks():
    return doctor(DoctorConfig(offline=True))


def test_this_machine_runs_the_tests_and_has_no_fault(checks):
    assert [check.what for check in checks if check.state == "fault"] == []
    assert all(check.remedy for check in checks if check.state != "ok")
    assert "they match" in found(checks, "PyTorch").found and "train" in found(checks, "extras").found


def test_torchvision_of_another_build(monkeypatch):
    def broken(*args):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr("torchvision.ops.nms", broken)
    checks = doctor(DoctorConfig(offline=True))
    assert found(checks, "PyTorch").state == "fault" and "torchvision::nms" in found(checks, "PyTorch").found
    assert "pip install" in found(checks, "PyTorch").remedy


def test_without_pytorch_the_rest_is_looked_at(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    checks = doctor(DoctorConfig(offline=True))
    assert found(checks, "PyTorch").state == found(checks, "device").state == "fault"
    assert found(checks, "this folder").state == "ok" and all(check.remedy for check in checks if check.state != "ok")


def test_a_package_that_is_missing_or_too_old(monkeypatch):
    version = module._version
    held = {"timm": "1.0.20", "safetensors": None, "pydicom": "2.4.4"}
    monkeypatch.setattr(module, "_version", lambda name: held.get(name, version(name)))
    checks = doctor(DoctorConfig(offline=True))
    assert found(checks, "packages").state == "fault" and found(checks, "packages").remedy == "pip install mxa"
    assert "timm>=1.0.31 (it has 1.0.20)" in found(checks, "packages").found
    assert "safetensors" in found(checks, "packages").found
    assert "pydicom>=3 (it has 2.4.4)" in found(checks, "extra dicom").found


def test_weights_that_are_not_as_released(monkeypatch, tmp_path):
    from mxa.models import hub

    for content in (None, b"version https://git-lfs.github.com/spec/v1"):
        path = tmp_path / "weights.safetensors"
        if content:
            path.write_bytes(content)
        monkeypatch.setattr(hub, "packaged", lambda entry, path=path: path)
        check = found(doctor(DoctorConfig(offline=True)), "weights")
        assert check.state == "fault" and hub.SHIPPED in check.found and "pip install" in check.remedy


def test_an_extra_that_is_missing(monkeypatch):
    version = module._version
    monkeypatch.setattr(module, "_version", lambda name: None if name == "pyarrow" else version(name))
    checks = doctor(DoctorConfig(offline=True))
    assert found(checks, "extra train").remedy == 'pip install "mxa[train]"'
    assert "pyarrow" in found(checks, "extra train").found


def test_the_processor(monkeypatch):
    monkeypatch.setattr("mxa.utils.processor.flags", lambda: {"avx2"})
    checks = doctor(DoctorConfig(offline=True))
    assert found(checks, "8 bits").state == found(checks, "bf16").state == "note"
    monkeypatch.setattr("mxa.utils.processor.flags", lambda: {"avx512_vnni", "avx512_bf16"})
    checks = doctor(DoctorConfig(offline=True))
    assert not {"8 bits", "bf16"} & {check.what for check in checks}


def test_a_variable_of_the_allocator(monkeypatch):
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    check = found(doctor(DoctorConfig(offline=True)), "allocator")
    assert check.state == "note" and "MALLOC_ARENA_MAX" in check.found


def test_a_folder_that_cannot_be_written(monkeypatch):
    def refuse(dir):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    check = found(doctor(DoctorConfig(offline=True)), "the Hub's cache")
    assert check.state == "fault" and "Read-only" in check.found and "HF_HOME" in check.remedy


def test_the_hub(monkeypatch):
    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"[]")

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    try:
        assert found(doctor(DoctorConfig()), "Hub").state == "ok"
    finally:
        server.shutdown()
        server.server_close()
    check = found(doctor(DoctorConfig()), "Hub")
    assert check.state == "note" and "HF_ENDPOINT" in check.remedy


def test_a_fault_is_the_exit_status(monkeypatch, capsys):
    cli.main(["doctor", "--offline"])
    shown = capsys.readouterr().out
    assert "ok    PyTorch: torch" in shown and "note  Hub: not asked: --offline" in shown
    monkeypatch.setattr(module, "doctor", lambda config: [module.Check("fault", "x", "y", "z")])
    with pytest.raises(SystemExit) as error:
        cli.main(["doctor"])
    assert error.value.code == 1 and "fault x: y\n      -> z" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (["predit"], "perhaps mxa predict"),
        (["data", "sumary"], "perhaps mxa data summary"),
        (["bench", "model"], "perhaps mxa bench models"),
        (["xyz"], "no command xyz"),
    ],
)
def test_a_command_that_was_meant(given, meant, capsys):
    with pytest.raises(SystemExit) as error:
        cli.main(given)
    first = capsys.readouterr().err.splitlines()[0]
    assert error.value.code == 2 and first.startswith(f"mxa: no command {given[0]}") and first.endswith(meant)


def test_the_version_names_what_matters(capsys):
    cli.main(["--version"])
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("mxa 0.", "Python 3.", "torch 2.", "timm 1."))
    assert Path("/proc/driver/nvidia/version").exists() == ("NVIDIA" in shown)
