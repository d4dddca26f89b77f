import pytest

from nsvq.data.files import find_images, read_list


def test_every_extension_counts_in_either_case_and_nothing_else(tmp_path):
    images = ["a.jpg", "b.JPEG", "c.Png", "d.bmp", "e.webp", "f.tif", "g.TIFF", "sub/h.jpg", "sub/deeper/i.png"]
    others = ["notes.txt", "list.npy", "jpg", "a.jpg.part", "._a.jpg", ".thumbnails/a.jpg"]
    for name in images + others:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert find_images(tmp_path) == sorted(images)


def test_names_are_sorted_whatever_the_order_of_creation(tmp_path):
    names = ["b/1.png", "a.png", "b.png", "a/2.png", "10.png", "9.png"]
    for root, order in ((tmp_path / "x", names), (tmp_path / "y", names[::-1])):
        for name in order:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).touch()
    assert find_images(tmp_path / "x") == find_images(tmp_path / "y") == sorted(names)


def test_linked_folders_are_followed(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.png").touch()
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path / "elsewhere")
    assert find_images(tmp_path / "root") == ["link/a.png"]


def test_a_missing_or_empty_root_is_explained(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere doesn't exist"):
        find_images(tmp_path / "nowhere")
    (tmp_path / "file.png").touch()
    with pytest.raises(ValueError, match=r"file.png is not a folder"):
        find_images(tmp_path / "file.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no image file in .*empty .*jpg, jpeg, png, bmp, webp, tif, tiff"):
        find_images(tmp_path / "empty")


def listed(tmp_path, content: str | bytes, names: list[str]) -> list[str]:
    path = tmp_path / "list.txt"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_list(path, names, tmp_path)


def test_a_list_keeps_its_order_and_survives_windows(tmp_path):
    names = ["a.png", "b/c.png", "ü.png"]
    content = b"\xef\xbb\xbf" + "b/c.png\r\n\r\n  \r\n./a.png\r\nü.png".encode()
    assert listed(tmp_path, content, names) == ["b/c.png", "a.png", "ü.png"]


def test_entries_of_another_extension_are_found_by_stem(tmp_path):
    names = ["imgHQ00000.png", "imgHQ00001.png", "00000/00002.png", "x/7.png", "y/7.png"]
    assert listed(tmp_path, "imgHQ00001.npy\nimgHQ00000.npy\n", names) == ["imgHQ00001.png", "imgHQ00000.png"]
    assert listed(tmp_path, "00002.jpg\ny/7.jpg", names) == ["00000/00002.png", "y/7.png"]


def test_the_exact_path_goes_before_the_stem(tmp_path):
    assert listed(tmp_path, "a.jpg\na.png", ["a.jpg", "a.png", "sub/a.jpg"]) == ["a.jpg", "a.png"]


def test_an_ambiguous_stem_is_not_guessed(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"names 1 files .* more than once: 7.npy$"):
        listed(tmp_path, "7.npy", ["x/7.png", "y/7.png"])


def test_absent_files_are_counted_and_three_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"list.txt names 4 files .*: p.png, q.png, r.png, …$"):
        listed(tmp_path, "p.png\na.png\nq.png\nr.png\ns.png", ["a.png"])


def test_a_name_may_hold_what_unicode_takes_for_the_end_of_a_line(tmp_path):
    names = ["a\x85b.png", "c\u2028d.png", "e\x0bf.png"]
    assert listed(tmp_path, "\n".join(names), names) == names


def test_an_absent_name_is_not_repeated_at_any_length(tmp_path):
    with pytest.raises(FileNotFoundError, match=r": x{100}…$"):
        listed(tmp_path, "x" * 5000, ["a.png"])


@pytest.mark.parametrize("content", [b"\xe9.png\n", "a.png\n".encode("utf-16")])
def test_a_list_of_another_encoding_is_refused_by_name(tmp_path, content):
    with pytest.raises(ValueError, match=r"^list file .*list.txt is not UTF-8 text$"):
        listed(tmp_path, content, ["a.png"])


@pytest.mark.parametrize("content", ["", "\r\n \n"])
def test_an_empty_list_is_refused(tmp_path, content):
    with pytest.raises(ValueError, match=r"list file .*list.txt is empty"):
        listed(tmp_path, content, ["a.png"])


def test_a_missing_list_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"list file .*gone.txt doesn't exist"):
        read_list(tmp_path / "gone.txt", ["a.png"], tmp_path)
