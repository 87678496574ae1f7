"""Which files are taken for what, what is left out, and what is never opened."""

import base64
import os
import socket
import struct
import subprocess
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from imageio_ffmpeg import get_ffmpeg_exe
from PIL import Image
from test_dicom import make, noise
from test_dicom import write as write_dicom
from test_reading import write_gif, write_video

from uscl_zoo.errors import CardError, MissingDependencyError, UnreadableError
from uscl_zoo.records import read_json, read_yaml
from uscl_zoo.ultrasound.reading import find as find_all
from uscl_zoo.ultrasound.reading import iterate, read


def find(path: Path) -> tuple[list[str], list[str]]:
    told: list[str] = []
    found = find_all(path, on_damage=told.append)
    return [source.relative_to(path).as_posix() for source in found], told


@pytest.fixture
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One file of each kind."""
    folder = tmp_path_factory.mktemp("originals")
    made = {
        "mp4": write_video(folder / "a.mp4", noise(3, 48, 64, 3), codec="mpeg4", pix_fmt="yuv420p"),
        "avi": write_video(folder / "a.avi", noise(3, 48, 64, 3)),
        "mkv": write_video(folder / "a.mkv", noise(3, 48, 64, 3)),
        "wmv": write_video(
            folder / "a.wmv", noise(3, 48, 64, 3), codec="wmv2", pix_fmt="yuv420p", container="asf"
        ),
        "mpg": write_video(
            folder / "a.mpg",
            noise(3, 48, 64, 3),
            rate=25,
            codec="mpeg2video",
            pix_fmt="yuv420p",
            container="mpeg",
        ),
        "ts": write_video(
            folder / "a.ts",
            noise(3, 48, 64, 3),
            codec="mpeg4",
            pix_fmt="yuv420p",
            container="mpegts",
        ),
        "gif": write_gif(folder / "a.gif", [1, 2, 3], duration=100),
        "dcm": write_dicom(folder / "a.dcm", make(noise(1, 8, 6))),
    }
    for kind in ("png", "jpg", "bmp", "tif", "webp"):
        made[kind] = folder / f"still.{kind}"
        Image.fromarray(noise(30, 40, 3)).save(made[kind])
    data = made["dcm"].read_bytes()
    made["acr"] = folder / "a.acr"  # without preamble, name and meta header
    made["acr"].write_bytes(data[data.index(b"\x08\0\x16\0") :])
    return made


KINDS = (
    *("mp4", "avi", "mkv", "wmv", "mpg", "ts", "gif", "dcm", "acr"),
    *("png", "jpg", "bmp", "tif", "webp"),
)


@pytest.mark.parametrize("kind", KINDS)
def test_by_content_whatever_the_name(
    tmp_path: Path, originals: dict[str, Path], kind: str
) -> None:
    expected = [np.asarray(image) for _, image in iterate(originals[kind])]
    names = ("none", "a.xyz", "a.IMG", "1.2.840", "a.mp4", "a.PNG", "a.dcm", "a.bak")
    for name in names:
        path = tmp_path / name
        path.write_bytes(originals[kind].read_bytes())
        shown = [np.asarray(image) for _, image in iterate(path)]
        assert np.array_equal(shown, expected), name
    found, told = find(tmp_path)
    assert sorted(found) == sorted(names)
    assert not told


SUFFIXES = (
    *(".ima", ".img", ".dc3", ".dicm", ".acr", ".dcm", ".dicom"),
    *(".jfif", ".jpe", ".jpeg", ".heic"),
    *(".3gp", ".mov", ".m4v", ".webm"),
)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("upper", [False, True])
def test_suffixes(tmp_path: Path, originals: dict[str, Path], suffix: str, upper: bool) -> None:
    kind = "dcm" if SUFFIXES.index(suffix) < 7 else "jpg" if SUFFIXES.index(suffix) < 11 else "mp4"
    path = tmp_path / ("a" + (suffix.upper() if upper else suffix))
    path.write_bytes(originals[kind].read_bytes())
    assert find(tmp_path) == ([path.name], [])
    assert read(path)


#: 16 x 16 of one grey, as pillow-heif 1.8 writes it.
HEIC = (
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAXxtZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAA"
    "AAAAAAAAAAAAACJpbG9jAAAAAERAAAEAAQAAAAABoAABAAAAAAAAACsAAAAjaWluZgAAAAAAAQAAABVpbmZlAgAA"
    "AAABAABodmMxAAAAAA5waXRtAAAAAAABAAAA/GlwcnAAAADcaXBjbwAAAHVodmNDAQNwAAAAkAAAAAAAHvAA/P34"
    "+AAADwNgAAEAGEABDAH//wNwAAADAJAAAAMAAAMAHroCQGEAAQApQgEBA3AAAAMAkAAAAwAAAwAeoCCBBZbqrprm"
    "4CGgwIAAAAyAAAADAIRiAAEABkQBwXPBiQAAABNjb2xybmNseAABAA0ABoAAAAAUaXNwZQAAAAAAAABAAAAAQAAA"
    "AChjbGFwAAAAEAAAAAEAAAAQAAAAAf///9AAAAAC////0AAAAAIAAAAQcGl4aQAAAAADCAgIAAAAGGlwbWEAAAAA"
    "AAAAAQABBYECAwWEAAAAM21kYXQAAAAnKAGvCchLZYA50NoP/87F1B+ybnvsYm3eV/yQsCv41s0ih5FHsl5g"
)


def test_heic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.heic", "b.HEIF", "c.jpg", "d"):
        path = tmp_path / name
        path.write_bytes(base64.b64decode(HEIC))
        ((_, image),) = iterate(path)
        assert image.size == (16, 16)
        assert np.abs(np.asarray(image).astype(int) - 120).max() <= 3
    assert find(tmp_path)[0] == ["a.heic", "b.HEIF", "c.jpg", "d"]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"a\.heic: .*pip install 'uscl-zoo\[heic\]'"):
        list(iterate(tmp_path / "a.heic"))


def test_what_is_left_out_is_counted_and_named(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "sub/c.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        Image.new("L", (8, 8)).save(path)
    for name in ("table.csv", "notes.txt", "empty", "x.pdf", "y.bin", "z.zip", "sub/w.json"):
        (tmp_path / name).write_bytes(b"text" if name != "empty" else b"")
    os.mkfifo(tmp_path / "pipe")
    for folder in (".git", "@eaDir", "sub/@eaDir", "__MACOSX", "#recycle", ".hidden"):
        (tmp_path / folder).mkdir()
        Image.new("L", (8, 8)).save(tmp_path / folder / "thumb.jpg")
    for name in (".DS_Store", "._a.png", "Thumbs.db", "desktop.ini", "DICOMDIR", "sub/THUMBS.DB"):
        Image.new("L", (8, 8)).save(tmp_path / name, "PNG")
    found, told = find(tmp_path)
    assert found == ["a.png", "b.png", "sub/c.png"]
    (line,) = told
    assert line.startswith(f"{tmp_path}: 8 files are left out, being neither image nor video nor")
    for name in ("table.csv", "notes.txt", "empty", "pipe"):
        assert name in line
    assert line.endswith("and 3 more")
    for name in ("thumb", "Thumbs", "DS_Store", "eaDir"):
        assert name not in line


def playlists(folder: Path, target: str) -> dict[str, bytes]:
    """Texts by which FFmpeg would open another file."""
    texts = {
        "ffconcat": f"ffconcat version 1.0\nfile {target}\n",
        "ffconcat with a mark": f"\ufeffffconcat version 1.0\nfile {target}\n",
        "HLS": f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:1,\n{target}\n#EXT-X-ENDLIST\n",
        "HLS of a file": f"#EXTM3U\n#EXTINF:1,\nfile://{folder / target}\n#EXT-X-ENDLIST\n",
        "HLS of concat": f"#EXTM3U\n#EXTINF:1,\nconcat:{target}|{target}\n#EXT-X-ENDLIST\n",
        "SDP": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
        "m=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
        "RTSP": "rtsp://127.0.0.1/x\n",
        "DASH": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" '
        'profiles="urn:mpeg:dash:profile:isoff-main:2011" type="static" '
        'mediaPresentationDuration="PT1S"><Period><AdaptationSet mimeType="video/mp4">'
        f'<Representation id="1" bandwidth="1"><BaseURL>{target}</BaseURL></Representation>'
        "</AdaptationSet></Period></MPD>",
        "IMF": '<?xml version="1.0"?><CompositionPlaylist xmlns="http://www.smpte-ra.org/schemas/'
        f'2067-3/2016"><Id>urn:uuid:x</Id><Path>{target}</Path></CompositionPlaylist>',
        "Smooth": '<SmoothStreamingMedia MajorVersion="2"></SmoothStreamingMedia>',
        "WebVTT": "WEBVTT\n\n00:00.000 --> 00:01.000\ntext\n",
        "SubRip": "1\n00:00:00,000 --> 00:00:01,000\ntext\n",
        "metadata": ";FFMETADATA1\ntitle=x\n",
        "SVG": f'<svg xmlns="http://www.w3.org/2000/svg"><image href="{target}"/></svg>',
        "ANSI": "\x1b[31mtext\n" * 20,
    }
    return {name: text.encode() for name, text in texts.items()}


@pytest.mark.parametrize("suffix", [".mp4", ".avi", ".mkv", ".mov", ".mpg", ".m3u8", ".ffconcat"])
def test_a_text_opens_no_other_file(
    tmp_path: Path, originals: dict[str, Path], suffix: str
) -> None:
    target = tmp_path / "target.ts"
    target.write_bytes(originals["ts"].read_bytes())
    os.utime(target, (1, 1))
    before = target.stat().st_atime_ns
    for name, text in playlists(tmp_path, target.name).items():
        for head in (b"", b"ID3\x03\0\0\0\0\0\0", b"\n\n"):
            path = tmp_path / f"text{suffix}"
            path.write_bytes(head + text)
            began = time.monotonic()
            with pytest.raises(UnreadableError):
                list(iterate(path))
            assert time.monotonic() - began < 2, name
    assert target.stat().st_atime_ns == before
    # and it is not that such texts are read by nobody
    path = tmp_path / "list"
    path.write_text("ffconcat version 1.0\nfile target.ts\n")
    command = [get_ffmpeg_exe(), "-v", "error", "-i", str(path), "-f", "null", "-"]
    assert subprocess.run(command, capture_output=True).returncode == 0


Put = Callable[[Path], None]


def put_pipe(path: Path) -> None:
    os.mkfifo(path)


def put_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def put_socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # names of sockets are short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path.name)
    os.chdir(here)


def put_terminal(path: Path) -> None:
    path.symlink_to("/dev/null")


@pytest.mark.parametrize("put", [put_pipe, put_device, put_socket, put_terminal])
class TestNoFile:
    @pytest.mark.parametrize(
        "name", ["a", "a.png", "a.gif", "a.mp4", "a.dcm", "a.heic", "a.tif", "a.ima"]
    )
    def test_as_a_source(self, tmp_path: Path, put: Put, name: str) -> None:
        put(tmp_path / name)
        began = time.monotonic()
        for call in (lambda path: list(iterate(path)), read):
            with pytest.raises(UnreadableError, match="neither a file nor a folder"):
                call(tmp_path / name)
        assert time.monotonic() - began < 2

    def test_among_the_frames_of_a_folder(self, tmp_path: Path, put: Put) -> None:
        for i in (0, 1, 3):
            Image.new("L", (8, 8), 50 * i).save(tmp_path / f"f{i}.png")
        put(tmp_path / "f2.png")
        told: list[str] = []
        assert find(tmp_path)[0] == ["."]
        assert len(list(iterate(tmp_path, on_damage=told.append))) == 3
        assert "f2.png" in told[0]

    def test_as_yaml_or_json(self, tmp_path: Path, put: Put) -> None:
        put(tmp_path / "a")
        for call in (read_yaml, read_json):
            with pytest.raises(CardError, match="neither a file nor a folder"):
                call(tmp_path / "a")


N = 1 << 17
ABSURD = {
    "a list": "- a\n" * (N // 4),
    "a list in a list": "[" * N,
    "many keys": "".join(f"k{i}: 1\n" for i in range(N // 9))[:N],
    "a number": "a: " + "1:" * (N // 2 - 9) + "1",
    "a hexadecimal number": "a: 0x" + "f" * (N - 9),
    "braces": "{a: " * (N // 4),
    "dashes": "- " * (N // 2),
    "questions": "? " * (N // 2),
    "indents": "\n".join(" " * i + "a:" for i in range(480)),
    "aliases": "a: &a [1]\nb: *a\n",
    "too long": "a: 1\n" + "#" * (32 * N),
    "many empty items": "a:\n" + "-\n" * (15 * N),
    "a long flow": "a: [" + "1," * (15 * N) + "]",
    "many short items": "- a\n" * (7 * N),
}


@pytest.mark.parametrize("what", ABSURD)
def test_absurd_yaml_is_an_error_at_once(tmp_path: Path, what: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(ABSURD[what])
    began = time.process_time()
    with pytest.raises(CardError, match=r"a\.yaml: "):
        read_yaml(path)
    assert time.process_time() - began < 2


@pytest.mark.parametrize(
    "text", ["[" * (1 << 20), '{"a":' * (1 << 18), "[" + "1," * (1 << 23), "1" * 10_000, "{", "\0"]
)
def test_absurd_json_is_an_error_at_once(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    began = time.process_time()
    with pytest.raises(CardError, match=r"a\.json: "):
        read_json(path)
    assert time.process_time() - began < 2


MATRICES = [
    (a, b, c, d)
    for a, b, c, d in product((-1, 0, 1), repeat=4)
    if abs(a * d - b * c) == 1 and abs(a) + abs(b) == 1 and abs(c) + abs(d) == 1
]


@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
def test_matrices_as_ffmpeg_shows_them(
    tmp_path: Path, suffix: str, matrix: tuple[int, int, int, int]
) -> None:
    """Turned by each right angle, and mirrored before that or not: eight of them."""
    frames = np.zeros((2, 48, 64, 3), np.uint8)
    frames[:, :20, :10] = 255
    frames[:, :10, :30] = 128
    path = write_video(tmp_path / f"a{suffix}", frames, codec="mjpeg", pix_fmt="yuvj444p")
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 44
    a, b, c, d = (value * 65536 for value in matrix)
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    ours = np.asarray(next(iterate(path)).image)
    command = [get_ffmpeg_exe(), "-v", "error", "-i", str(path), "-frames:v", "1", "-f", "rawvideo"]
    command += ["-pix_fmt", "rgb24", "-"]
    shown = subprocess.run(command, check=True, capture_output=True).stdout
    theirs = np.frombuffer(shown, np.uint8).reshape(ours.shape)
    assert np.abs(ours.astype(int) - theirs).max() <= 3
    assert ours.std() > 10
    assert ours.shape[:2] == ((48, 64) if matrix[0] else (64, 48))


def as_ffmpeg_shows(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """All frames, uint8 (N, H, W, 3)."""
    command = [get_ffmpeg_exe(), "-v", "error", "-i", str(path), "-f", "rawvideo"]
    command += ["-pix_fmt", "rgb24", "-fps_mode", "passthrough", "-"]
    shown = subprocess.run(command, check=True, capture_output=True).stdout
    return np.frombuffer(shown, np.uint8).reshape(-1, *shape)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".avi", ".mov"])
def test_orientations_in_the_pictures_of_a_video(
    tmp_path: Path, suffix: str, orientation: int
) -> None:
    """FFmpeg tells of the EXIF of each picture, of which PyAV knows nothing."""
    picture = np.zeros((48, 64, 3), np.uint8)
    picture[:20, :10], picture[:10, :30], picture[30:, 40:, 1] = 255, 128, 255
    exif = Image.Exif()
    exif[0x112] = orientation
    still = tmp_path / "still.jpg"
    Image.fromarray(picture).save(still, exif=exif, quality=95, subsampling=0)
    path = tmp_path / f"a{suffix}"
    command = [get_ffmpeg_exe(), "-v", "error", "-noautorotate", "-f", "image2", "-i", str(still)]
    subprocess.run([*command, "-c", "copy", str(path)], check=True)
    ours = np.asarray(next(iterate(path)).image)
    assert ours.shape[:2] == ((48, 64) if orientation < 5 else (64, 48))
    upright = np.asarray(next(iterate(still)).image)
    for other in (upright, as_ffmpeg_shows(path, ours.shape)[0]):
        assert np.abs(ours.astype(int) - other).max() <= 6


def test_a_slant_is_said(tmp_path: Path) -> None:
    straight = write_video(
        tmp_path / "a.mp4", noise(3, 48, 64, 3), codec="mpeg4", pix_fmt="yuv420p"
    )
    path = tmp_path / "b.mp4"
    command = [get_ffmpeg_exe(), "-v", "error", "-display_rotation", "30", "-i", str(straight)]
    subprocess.run([*command, "-c", "copy", str(path)], check=True)
    told: list[str] = []
    assert len(list(iterate(path, on_damage=told.append))) == 3
    assert told == [f"{path}: asks to be turned by no right angle; shown by the nearest one"]


@pytest.mark.parametrize("codec", ["h264", "hevc"])
def test_what_a_stream_cuts_off_on_the_left(tmp_path: Path, codec: str) -> None:
    encoder = {"h264": "libx264", "hevc": "libx265"}[codec]
    frames = noise(3, 64, 96, 3)
    whole = write_video(tmp_path / "a.mp4", frames, codec=encoder, pix_fmt="yuv420p")
    path = tmp_path / "b.mp4"
    command = [get_ffmpeg_exe(), "-v", "error", "-i", str(whole), "-c", "copy", "-bsf:v"]
    subprocess.run([*command, f"{codec}_metadata=crop_left=16:crop_top=8", str(path)], check=True)
    ours = np.stack([np.asarray(image) for _, image in iterate(path)])
    assert ours.shape[1:] == (56, 80, 3)
    assert np.abs(ours.astype(int) - as_ffmpeg_shows(path, ours.shape[1:])).max() <= 6


def gif(path: Path, pictures: list[tuple[int, int, np.ndarray, int]]) -> None:
    """Pictures of grey on 48 x 32 pixels, each with its place and what is to become of it."""
    data = b"GIF89a" + struct.pack("<HHBBB", 48, 32, 0xF7, 0, 0)
    data += bytes(level for level in range(256) for _ in range(3))
    for x, y, levels, disposal in pictures:
        height, width = levels.shape
        data += b"!\xf9\x04" + bytes([disposal << 2]) + b"\x0a\0\0\0"
        data += b"," + struct.pack("<HHHHB", x, y, width, height, 0) + b"\x08"
        # no code is longer than nine bits: the table is cleared before
        codes: list[int] = []
        for i, level in enumerate(levels.reshape(-1).tolist()):
            codes += [256, level] if i % 250 == 0 else [level]
        bits = sum(code << 9 * i for i, code in enumerate([*codes, 257]))
        packed = bits.to_bytes((9 * len(codes) + 16) // 8, "little")
        for start in range(0, len(packed), 255):
            block = packed[start : start + 255]
            data += bytes([len(block)]) + block
        data += b"\0"
    path.write_bytes(data + b";")


@pytest.mark.parametrize("disposals", list(product((0, 1, 2), range(4), range(4))))
def test_what_becomes_of_the_pictures_of_a_gif(tmp_path: Path, disposals: tuple[int, ...]) -> None:
    path = tmp_path / "a.gif"
    boxes = [np.full((8, 8), level, np.uint8) for level in (100, 150, 200)]
    places = ((0, 0), (4, 4), (20, 4), (12, 12))
    levels = [np.full((32, 48), 50, np.uint8), *boxes]
    gif(
        path,
        [
            (*place, level, disposal)
            for place, level, disposal in zip(places, levels, (*disposals, 1), strict=True)
        ],
    )
    ours = np.stack([np.asarray(image) for _, image in iterate(path)])
    assert np.array_equal(ours, as_ffmpeg_shows(path, (32, 48, 3)))
