"""Where a picture may be written, and what lies there: one rule for local places and object storage."""

from pathlib import Path

import pytest
from PIL import Image

from recipe.storage.addresses import is_taken, open_place
from recipe.storage.own_pictures import check_free, save_picture
from recipe.storage.places import StorageError


@pytest.fixture
def picture() -> Image.Image:
    return Image.new("L", (4, 3), 7)


def test_own_pictures_and_nothing_are_free(picture: Image.Image, tmp_path: Path):
    for name in ("new.png", "more/new.png"):
        check_free(tmp_path / name, overwrite=False)
        save_picture(picture, tmp_path / name)
        check_free(tmp_path / name, overwrite=False)
        with Image.open(tmp_path / name) as image:
            assert image.size == (4, 3)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["more", "new.png", "new.png"]


@pytest.mark.parametrize("content", [b"notes", None], ids=["notes", "picture of others"])
def test_files_of_others_are_not(content: bytes | None, picture: Image.Image, tmp_path: Path):
    path = tmp_path / "a.png"
    if content is None:
        picture.save(path)
    else:
        path.write_bytes(content)
    with pytest.raises(StorageError, match="is there, and not from this command; name another place, or add --overwr"):
        check_free(path, overwrite=False)
    check_free(path, overwrite=True)


@pytest.mark.parametrize("overwrite", [True, False])
def test_what_is_no_file(overwrite: bool, tmp_path: Path):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "link.png").symlink_to(tmp_path / "nowhere")
    for name in ("folder.png", "link.png"):
        assert is_taken(tmp_path / name)
        with pytest.raises(StorageError, match="is no file, and a picture is to go there"):
            check_free(tmp_path / name, overwrite)
    assert not is_taken(tmp_path / "nowhere")


def test_in_object_storage(picture: Image.Image, bucket_folder: str):
    check_free(f"{bucket_folder}/a.png", overwrite=False)
    save_picture(picture, f"{bucket_folder}/a.png")
    check_free(f"{bucket_folder}/a.png", overwrite=False)
    open_place(bucket_folder).write("b.png", b"notes")
    with pytest.raises(StorageError, match="is there, and not from this command"):
        check_free(f"{bucket_folder}/b.png", overwrite=False)
    assert is_taken(f"{bucket_folder}/b.png") and not is_taken(f"{bucket_folder}/c.png")
