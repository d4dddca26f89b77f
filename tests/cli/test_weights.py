"""`nsvq weights`: the list, the download, and the one line that bad input gets."""

import hashlib
import subprocess
import sys
from dataclasses import replace

import pytest

from nsvq.cli import main
from nsvq.pretrained import PRETRAINED, find


@pytest.fixture
def published(fake_hub, monkeypatch, tmp_path):
    """All files can be fetched from this machine, and none is there yet; returns the hub cache."""
    for key, file in PRETRAINED.items():
        source = tmp_path / f"published_{key}"
        source.write_text(key)
        digest = hashlib.sha256(key.encode()).hexdigest()
        monkeypatch.setitem(PRETRAINED, key, replace(file, url=source.as_uri(), sha256_prefix=digest[:8]))
    return fake_hub()


def rows(capsys):
    return {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}


@pytest.mark.parametrize("words", [["weights"], ["weights", "list"]])
def test_lists_what_is_there_missing_and_damaged(published, capsys, words):
    (published / PRETRAINED["vgg"].name).write_text("vgg")
    (published / PRETRAINED["alex"].name).write_text("damaged")
    assert main(words) == 0
    lines = rows(capsys)
    assert list(lines) == ["key", "vgg", "alex", "inception", "looked"]
    assert lines["looked"] == f"looked in {published}"
    assert lines["vgg"].endswith(f"  {published / PRETRAINED['vgg'].name}")
    assert lines["alex"].endswith(f"  damaged: {published / PRETRAINED['alex'].name}")
    assert lines["inception"].endswith("  not found")
    for key, file in PRETRAINED.items():
        assert file.name in lines[key]
        assert file.purpose in lines[key]


def test_fetches_all(published, capsys):
    assert main(["weights", "fetch"]) == 0
    assert list(rows(capsys)) == ["vgg:", "alex:", "inception:"]
    for key in PRETRAINED:
        assert find(key) == published / PRETRAINED[key].name


def test_fetches_what_is_named_into_a_folder(published, capsys):
    assert main(["weights", "fetch", "alex", "vgg", "--folder", "usb"]) == 0
    assert rows(capsys)["alex:"] == f"alex: usb/{PRETRAINED['alex'].name}"
    assert list(published.iterdir()) == []
    assert find("vgg", f"usb/{PRETRAINED['vgg'].name}").read_text() == "vgg"


def test_an_unknown_key_or_action_lists_the_choices(published, refusal):
    line = refusal("weights", "fetch", "vgg", "resnet")
    assert line == "unknown weights 'resnet'; known: vgg, alex, inception"
    assert list(published.iterdir()) == []
    line = refusal("weights", "get")
    assert "get" in line
    assert "list" in line
    assert "fetch" in line
    assert "--where" in refusal("weights", "fetch", "--where", "usb")


def test_a_failed_or_damaged_download_gets_one_line(published, refusal, tmp_path):
    (tmp_path / "published_vgg").write_text("something else")
    assert "damaged or another file" in refusal("weights", "fetch", "vgg")
    (tmp_path / "published_vgg").unlink()
    assert "cannot download" in refusal("weights", "fetch", "vgg")
    (tmp_path / "file").touch()
    assert "cannot download" in refusal("weights", "fetch", "alex", "--folder", "file")
    assert list(published.iterdir()) == []


def test_starts_without_lightning():
    code = "import sys, nsvq.cli.weights; print({'lightning', 'torchmetrics', 'lpips'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
