"""Whatever a list file holds, its reading ends in names of the folder or in one error that names the file."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsvq.data.files import find_images, read_list

from .conftest import examples

NAMES = ["a.png", "b.jpg", "sub/c.png", "sub/d.webp", "other/c.jpg", "é ü.png", "..dots.png", "日本/e.png"]
entries = st.one_of(
    st.sampled_from(NAMES),
    st.sampled_from(NAMES).map(lambda name: name.rsplit(".", 1)[0] + ".npy"),
    st.sampled_from(["c", "", " ", ".", "..", "/", "//", "../a.png", "/etc/passwd", "sub/../a.png", "./a.png", "\0"]),
    st.sampled_from(["x" * 5000 + ".png", "a.png\x85b.jpg", "sub\\c.png", "~/a.png", "$HOME", "#a.png", "a.png b.jpg"]),
    st.text(max_size=8),
)
ends = st.sampled_from(["\n", "\r\n", "\r", "\n\n"])
texts = st.lists(st.tuples(entries, ends), max_size=6).map(lambda lines: "".join(entry + end for entry, end in lines))
encodings = st.sampled_from(
    ["utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-be", "latin-1", "cp1252", "utf-7"]
)
contents = st.one_of(
    st.builds(lambda text, encoding: text.encode(encoding, errors="ignore"), texts, encodings), st.binary(max_size=60)
)


def ends_in_names_or_in_a_refusal(content, folder):
    path = folder / "list.txt"
    path.write_bytes(content)
    refusal = None
    try:
        names = read_list(path, NAMES, folder)
    except (ValueError, FileNotFoundError) as error:
        refusal = error
    if refusal is not None:
        assert type(refusal) in (ValueError, FileNotFoundError)
        assert str(refusal).startswith(f"list file {path} ")
        assert len(str(refusal)) < 1000
        return
    assert names
    assert set(names) <= set(NAMES)
    lines = content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n").split("\n")
    assert len(names) == len([line for line in lines if line.strip()])


@examples(60)
@given(contents)
def test_a_list_of_any_bytes_is_read_or_refused(tmp_path, content):
    ends_in_names_or_in_a_refusal(content, tmp_path)


@pytest.mark.slow
@examples(1000)
@given(contents)
def test_many_lists_of_any_bytes_are_read_or_refused(tmp_path, content):
    ends_in_names_or_in_a_refusal(content, tmp_path)


@examples(40)
@given(st.lists(st.sampled_from(NAMES), min_size=1, max_size=6), ends, st.sampled_from(["utf-8", "utf-8-sig"]))
def test_a_list_of_sound_names_is_read_as_it_stands(tmp_path, names, end, encoding):
    (tmp_path / "list.txt").write_bytes(end.join(names).encode(encoding))
    assert read_list(tmp_path / "list.txt", NAMES, tmp_path) == names


@examples(30)
@given(st.lists(st.binary(min_size=1, max_size=12).filter(lambda name: not set(name) & {0, ord("/")}), max_size=4))
def test_files_of_any_name_are_found_as_they_are_called(tmp_path_factory, names):
    folder = tmp_path_factory.mktemp("names")
    for name in names:
        (folder / (name + b".png").decode(errors="surrogateescape")).touch()
    visible = {name + b".png" for name in names if not name.startswith(b".")}
    if not visible:
        with pytest.raises(FileNotFoundError, match="no image file"):
            find_images(folder)
        return
    assert {name.encode(errors="surrogateescape") for name in find_images(folder)} == visible
