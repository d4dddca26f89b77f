"""Finding and downloading pretrained weights. The files are a few bytes, the downloads are of file:// addresses."""

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nsvq.distributed import rank
from nsvq.pretrained import PRETRAINED, fetch, find, obtain
from nsvq.pretrained.weights import is_sound, locate, places

CONTENT = b"weights"
PREFIX = hashlib.sha256(CONTENT).hexdigest()[:8]
NAME = PRETRAINED["alex"].name


def publish(monkeypatch, url):
    """Let the table's alex be CONTENT, published at an address."""
    monkeypatch.setitem(PRETRAINED, "alex", replace(PRETRAINED["alex"], url=url, sha256_prefix=PREFIX))


@pytest.fixture
def hub(fake_hub, monkeypatch, tmp_path):
    """The empty hub cache; alex can be fetched."""
    source = tmp_path / "published.pth"
    source.write_bytes(CONTENT)
    publish(monkeypatch, source.as_uri())
    return fake_hub()


@pytest.mark.parametrize("key", PRETRAINED)
def test_the_published_names_carry_their_hash_and_end_the_address(key):
    file = PRETRAINED[key]
    assert file.name == Path(file.url).name
    assert file.name.endswith(f"-{file.sha256_prefix}.pth")
    assert file.url.startswith("https://")
    assert file.purpose


def test_looks_at_the_own_folder_before_the_hub_cache(hub, monkeypatch, tmp_path):
    assert places("alex") == [hub / NAME]
    (hub / NAME).write_bytes(CONTENT)
    assert find("alex") == hub / NAME
    monkeypatch.setenv("NSVQ_WEIGHTS_DIR", str(tmp_path / "own"))
    assert places("alex") == [tmp_path / "own" / NAME, hub / NAME]
    assert find("alex") == hub / NAME
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / NAME).write_bytes(CONTENT)
    assert find("alex") == locate("alex") == tmp_path / "own" / NAME


def test_an_empty_folder_variable_is_none(hub, monkeypatch):
    monkeypatch.setenv("NSVQ_WEIGHTS_DIR", "")
    assert places("alex") == [hub / NAME]


def test_a_hub_folder_that_is_set_in_the_program_counts(hub, tmp_path):
    torch.hub.set_dir(tmp_path / "set")
    assert places("alex") == [tmp_path / "set" / "checkpoints" / NAME]


def test_an_explicit_path_may_have_any_name_and_is_the_only_one(hub, tmp_path):
    (hub / NAME).write_bytes(CONTENT)
    (tmp_path / "mine.pth").write_bytes(CONTENT)
    assert find("alex", tmp_path / "mine.pth") == tmp_path / "mine.pth"
    assert find("alex", str(tmp_path / "mine.pth")) == tmp_path / "mine.pth"
    with pytest.raises(FileNotFoundError, match=r"none\.pth") as refusal:
        find("alex", tmp_path / "none.pth")
    assert str(hub) not in str(refusal.value)
    with pytest.raises(FileNotFoundError):
        find("alex", tmp_path)


def test_a_home_folder_is_expanded(hub, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find("alex", "~/published.pth") == tmp_path / "published.pth"


def test_missing_weights_are_named_with_places_and_remedies(hub, monkeypatch, tmp_path):
    monkeypatch.setenv("NSVQ_WEIGHTS_DIR", str(tmp_path / "own"))
    with pytest.raises(FileNotFoundError) as refusal:
        find("alex", option="model.weights", switch_off="set model.weight to 0")
    message = str(refusal.value)
    for part in (
        NAME,
        "AlexNet, the trunk of LPIPS alex",
        PREFIX,
        str(tmp_path / "own" / NAME),
        str(hub / NAME),
        "nsvq weights fetch alex",
        "copy the file there",
        "give its path as model.weights",
        "set model.weight to 0",
        "set allow_download to true",
    ):
        assert part in message
    assert "\n" not in message
    assert "; or ;" not in message
    with pytest.raises(FileNotFoundError) as refusal:
        find("alex")
    assert "; or ;" not in str(refusal.value)
    assert "give its path" not in str(refusal.value)


def test_a_damaged_file_is_refused_with_both_hashes(hub):
    (hub / NAME).write_bytes(CONTENT[:-1])
    found = hashlib.sha256(CONTENT[:-1]).hexdigest()
    with pytest.raises(ValueError, match=f"{NAME} is damaged or another file.*{PREFIX}.*{found[:8]}"):
        find("alex")
    with pytest.raises(ValueError, match="damaged or another file"):
        obtain("alex", allow_download=True)
    assert not is_sound("alex", hub / NAME)


@pytest.mark.parametrize("function", [find, fetch, obtain, places])
def test_an_unknown_key_is_refused(function):
    with pytest.raises(ValueError, match="unknown weights 'resnet'; known: vgg, alex, inception"):
        function("resnet")


def test_fetches_into_the_own_folder_or_the_hub_cache_or_where_told(hub, monkeypatch, tmp_path):
    hub.rmdir()
    assert fetch("alex") == hub / NAME
    assert (hub / NAME).read_bytes() == CONTENT
    assert fetch("alex", tmp_path / "told") == tmp_path / "told" / NAME
    (hub / NAME).unlink()
    monkeypatch.setenv("NSVQ_WEIGHTS_DIR", str(tmp_path / "own"))
    assert fetch("alex") == tmp_path / "own" / NAME
    assert find("alex") == tmp_path / "own" / NAME


def test_fetches_nothing_that_is_there_and_replaces_what_is_damaged(hub, monkeypatch, tmp_path):
    (hub / NAME).write_bytes(b"damaged")
    assert fetch("alex") == hub / NAME
    assert (hub / NAME).read_bytes() == CONTENT
    (tmp_path / "published.pth").unlink()
    assert fetch("alex") == hub / NAME
    monkeypatch.setenv("NSVQ_WEIGHTS_DIR", str(tmp_path / "own"))
    assert fetch("alex") == hub / NAME


def test_a_damaged_download_is_refused_and_not_kept(hub, tmp_path):
    (tmp_path / "published.pth").write_bytes(CONTENT[:-1])
    with pytest.raises(ValueError, match=r"published\.pth gave a damaged or another file"):
        fetch("alex")
    assert list(hub.iterdir()) == []
    (hub / NAME).write_bytes(b"damaged before")
    with pytest.raises(ValueError, match=r"published\.pth gave a damaged or another file"):
        fetch("alex")
    assert (hub / NAME).read_bytes() == b"damaged before"


def test_a_failed_download_names_address_target_and_remedy(hub, tmp_path):
    (tmp_path / "published.pth").unlink()
    with pytest.raises(OSError, match=r"cannot download file.*published\.pth") as refusal:
        fetch("alex")
    assert str(hub / NAME) in str(refusal.value)
    assert "nsvq weights fetch alex --folder DIR" in str(refusal.value)
    assert list(hub.iterdir()) == []
    with pytest.raises(FileNotFoundError, match=r"cannot download.*AlexNet.*Remedies"):
        obtain("alex", allow_download=True)


def test_obtain_downloads_only_what_may_and_must_be(hub, tmp_path):
    with pytest.raises(FileNotFoundError, match="allow_download"):
        obtain("alex")
    with pytest.raises(FileNotFoundError, match=r"none\.pth"):
        obtain("alex", tmp_path / "none.pth", allow_download=True)
    assert list(hub.iterdir()) == []
    assert obtain("alex", allow_download=True) == hub / NAME
    (tmp_path / "published.pth").unlink()
    assert obtain("alex", allow_download=True) == obtain("alex") == hub / NAME


def test_only_the_first_process_of_a_node_downloads(hub, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(FileNotFoundError):
        obtain("alex", allow_download=True)
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert obtain("alex", allow_download=True) == hub / NAME


def outcome():
    """Obtain alex; return the path or the error."""
    try:
        return str(obtain("alex", allow_download=True))
    except (OSError, ValueError) as error:
        return f"{type(error).__name__}: {error}"


def obtain_on_this_rank(folder, url):
    """Obtain alex twice from an address; a log keeps each download."""
    download = torch.hub.download_url_to_file

    def logged(*arguments, **options):
        with (folder / "downloads").open("a") as log:
            log.write(f"rank {rank()}\n")
        download(*arguments, **options)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("NSVQ_WEIGHTS_DIR", str(folder))
        monkeypatch.setenv("TORCH_HOME", str(folder / "empty"))
        monkeypatch.delenv("LOCAL_RANK", raising=False)
        monkeypatch.setattr(torch.hub, "download_url_to_file", logged)
        publish(monkeypatch, url)
        return [outcome(), outcome()]


def test_two_ranks_download_once(rank_pool, tmp_path):
    (tmp_path / "published").write_bytes(CONTENT)
    (tmp_path / "cache").mkdir()
    results = rank_pool.run(obtain_on_this_rank, tmp_path / "cache", (tmp_path / "published").as_uri())
    assert results == [[str(tmp_path / "cache" / NAME)] * 2] * 2
    assert (tmp_path / "cache" / "downloads").read_text() == "rank 0\n"


@pytest.mark.parametrize("content", [None, b"damaged"])
def test_two_ranks_fail_alike(rank_pool, tmp_path, content):
    if content:
        (tmp_path / "published").write_bytes(content)
    (tmp_path / "cache").mkdir()
    results = rank_pool.run(obtain_on_this_rank, tmp_path / "cache", (tmp_path / "published").as_uri())
    for messages in results:
        for message in messages:
            assert message.startswith("FileNotFoundError: ")
            assert NAME in message
    reason = "damaged or another file" if content else "cannot download"
    assert all(reason in message for message in results[0])
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["downloads"]
