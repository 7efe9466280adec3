"""Data sets of somebody else read no other files: paths, templates, links and videos that lead out are refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from par_agent.data import lerobot
from par_agent.data.episodes import RenderedDataset
from par_agent.data.lerobot_export import export_lerobot
from par_agent.data.lerobot_features import LeRobotRequest
from par_agent.data.lerobot_folder import LeRobotFolder
from par_agent.data.lerobot_import import import_lerobot
from par_agent.data.lerobot_plan import plan_import
from par_agent.data.media import decode_image, video_frames
from par_agent.data.render_spec import RenderSpec
from par_agent.errors import UserError
from par_agent.utils.files import inside
from rendered import write_dataset

parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow: pip install 'par-agent[lerobot]'")

VIDEO_KEY = "observation.images.render_camera"
DATA, VIDEO = lerobot.numbered(lerobot.DATA, 0), lerobot.numbered(lerobot.VIDEO, 0, video_key=VIDEO_KEY)


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an export as `videos` and one as `images`."""
    folder = tmp_path_factory.mktemp("exports")
    write_dataset(folder / "rendered", episodes=1, size=(16, 24))
    for kind in ("videos", "images"):
        export_lerobot(RenderedDataset(folder / "rendered"), folder / kind, images=kind == "images")
    return folder


@pytest.fixture
def dataset(exports: Path, tmp_path: Path) -> Path:
    """A copy of the videos' export, beside a folder `other` with the same files."""
    for name in ("dataset", "other"):
        shutil.copytree(exports / "videos", tmp_path / name)
    return tmp_path / "dataset"


def load(folder: Path) -> None:
    import_lerobot(plan_import(LeRobotFolder(folder), LeRobotRequest()), folder.parent / "out")


def change_info(folder: Path, **changes: str) -> None:
    path = folder / lerobot.INFO
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("field", ["data_path", "video_path"])
@pytest.mark.parametrize("how", ["parent", "absolute", "attribute", "unknown", "width"])
def test_a_path_template_that_leads_elsewhere_is_refused(dataset: Path, field: str, how: str) -> None:
    own = lerobot.DATA if field == "data_path" else lerobot.VIDEO
    template, message = {
        "parent": (f"../other/{own}", "lies outside of it"),
        "absolute": (f"{dataset.parent / 'other'}/{own}", "lies outside of it"),
        "attribute": ("{chunk_index.__class__}", "is no template"),
        "unknown": ("{folder}/file", "has the field 'folder'; known: .*chunk_index, file_index"),
        "width": ("{chunk_index:>99999999d}", "is no template"),
    }[how]
    change_info(dataset, **{field: template})
    with pytest.raises(UserError, match=message):
        load(dataset)


def test_templates_of_the_format_are_filled() -> None:
    assert lerobot.fill(lerobot.DATA, chunk_index=1, file_index=1234) == "data/chunk-001/file-1234.parquet"
    assert lerobot.fill("{video_key}/{chunk_index}", video_key="a.b", chunk_index=7) == "a.b/7"


@pytest.mark.parametrize(
    "name", [lerobot.INFO, lerobot.EXPORT_RECORD, lerobot.TASKS, lerobot.numbered(lerobot.EPISODES, 0), DATA, VIDEO]
)
def test_a_link_that_leads_out_of_the_folder_is_refused(dataset: Path, name: str) -> None:
    path = dataset / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    path.symlink_to(dataset.parent / "other" / name)
    with pytest.raises(UserError, match="lies outside of it; only files inside are read"):
        load(dataset)


def test_links_inside_and_to_the_folder_and_into_its_own_hub_cache_are_followed(dataset: Path) -> None:
    (dataset / DATA).rename(dataset / "rows.parquet")
    (dataset / DATA).symlink_to(dataset / "rows.parquet")
    (dataset.parent / "link").symlink_to(dataset)
    load(dataset.parent / "link")
    shutil.rmtree(dataset.parent / "out")
    repository = dataset.parent / "hub" / "datasets--a--b"
    (repository / "snapshots").mkdir(parents=True)
    (repository / "blobs").mkdir()
    shutil.copytree(dataset.parent / "other", repository / "snapshots" / "0123")
    (repository / "snapshots" / "0123" / DATA).rename(repository / "blobs" / "89ab")
    (repository / "snapshots" / "0123" / DATA).symlink_to("../../../../blobs/89ab")
    load(repository / "snapshots" / "0123")


@pytest.mark.parametrize("name", ["", "..", "a/../../b", "/etc/passwd", "a\0b", "loop/a", "."])
def test_names_that_are_no_files_inside_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "loop").symlink_to("/")
    with pytest.raises(UserError, match="lies outside of it"):
        inside(tmp_path, name)


def with_image_at(folder: Path, name: str) -> None:
    """Replaces the first image of the data file by the name of a file."""
    import pyarrow as arrow

    table = parquet.read_table(folder / DATA, partitioning=None)
    place = table.column_names.index(VIDEO_KEY)
    pictures = table[VIDEO_KEY].to_pylist()
    pictures[0] = {"bytes": None, "path": name}
    column = arrow.array(pictures, table.schema.field(VIDEO_KEY).type)
    parquet.write_table(table.set_column(place, table.schema.field(VIDEO_KEY), column), folder / DATA)


def test_an_image_file_is_read_only_inside_of_the_folder(exports: Path, tmp_path: Path) -> None:
    folder = tmp_path / "dataset"
    shutil.copytree(exports / "images", folder)
    picture = parquet.read_table(folder / DATA, partitioning=None)[VIDEO_KEY][0].as_py()["bytes"]
    for path in (folder / "images" / "first.png", tmp_path / "secret.png"):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(picture)
    with_image_at(folder, "images/first.png")
    load(folder)
    with_image_at(folder, "../secret.png")
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(UserError, match=r"'\.\./secret\.png', which lies outside of it"):
        load(folder)


PLAYLISTS: dict[str, Callable[[Path], str]] = {
    "m3u8": lambda secret: f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{secret}\n#EXT-X-ENDLIST\n",
    "concat": lambda secret: f"ffconcat version 1.0\nfile {secret.name}\n",
    "address": lambda _: "#EXTM3U\n#EXTINF:10,\nhttp://127.0.0.1:9/a.ts\n",
}


@pytest.mark.parametrize("kind", PLAYLISTS)
def test_a_playlist_is_no_video(dataset: Path, kind: str) -> None:
    secret = dataset / VIDEO
    secret = secret.rename(secret.with_name("secret.mp4"))
    (dataset / VIDEO).write_text(PLAYLISTS[kind](secret))
    assert len(list(video_frames(secret))) == 11
    with pytest.raises(UserError, match=r"is no video: it begins with .*; expected MP4 or Matroska"):
        load(dataset)


def test_only_images_are_decoded() -> None:
    for content in (b"", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"\x89PNG\r\n\x1a\n", b"BM" + bytes(100)):
        with pytest.raises(UserError, match=r"the image is damaged .*; expected PNG, JPEG, WEBP"):
            decode_image(content, "the image")


@pytest.mark.parametrize("name", ["", "..", "../../a", "a/b"])
def test_names_of_cameras_are_no_paths(name: str) -> None:
    with pytest.raises(UserError, match=r"is no name of a camera|cameras is empty"):
        RenderSpec("PickCube-v1", "demos.h5", 1, "Push.", cameras=(name,))
