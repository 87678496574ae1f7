from __future__ import annotations

import ctypes
import os
import resource
import socket
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import timm
from client import Client
from hub import Fault, Hub
from huggingface_hub import constants
from safetensors.torch import load_file, save
from small_weights import FILE, NAME, cached_file, card_of, put, tensors, write_card

from uscl_zoo.errors import DigestError
from uscl_zoo.zoo import weights_cache
from uscl_zoo.zoo.hub import ANSWER_WITHIN, HUB_FILE

pytestmark = pytest.mark.usefixtures("own_home")


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with Hub(token="hf_secret") as server:
        yield server


@pytest.fixture(scope="module")
def client(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with started(hub, tmp_path_factory.mktemp("home")) as process:
        yield process


def started(hub: Hub, home: Path, **environment: str) -> Client:
    return Client({**hub.environment(), "HOME": str(home), **environment})


@pytest.fixture(scope="module")
def large() -> bytes:
    """A ResNet-18 in half precision: longer than one piece of the client's download."""
    return save({k: v.half() for k, v in timm.create_model("resnet18").state_dict().items()})


class Published:
    """Weights on the loopback Hub, and an empty cache."""

    def __init__(self, hub: Hub, client: Client, folder: Path, data: bytes) -> None:
        hub.reset()
        self.repo = f"user/{folder.name}"
        self.data, self.hub, self.client, self.folder = data, hub, client, folder
        self.cache = folder / "cache"
        self.commit = hub.add(self.repo, {HUB_FILE: data})
        self.card = card_of(data, self.repo, self.commit)
        self.yaml = write_card(self.card, folder)

    def locate(self, client: Client | None = None, **arguments: Any) -> dict[str, Any]:
        arguments = {"cache_dir": str(self.cache), **arguments}
        answer: dict[str, Any] = (client or self.client).ask("locate", card=self.yaml, **arguments)
        if "message" in answer:
            assert "\n" not in answer["message"]
        return answer

    def assert_right(self, answer: dict[str, Any], source: str = "Hub") -> None:
        assert "error" not in answer, answer["message"]
        assert answer["source"] == source
        assert answer["sha256"] == self.card.weights.sha256

    def assert_cache_is_sound(self) -> None:
        """What the cache holds for the card is right, or there is nothing."""
        (found,) = weights_cache.verify_all([self.card], cache_dir=self.cache)
        assert not isinstance(found.error, DigestError)


@pytest.fixture
def published(hub: Hub, client: Client, tmp_path: Path) -> Iterator[Published]:
    yield Published(hub, client, tmp_path, tensors())
    hub.reset()


def test_publish_pin_fetch_reuse_revise_and_roll_back(
    hub: Hub, client: Client, tmp_path: Path
) -> None:
    repo, commits = "user/life-of-a-model", []
    for seed in (1, 2):
        put(tmp_path / "release" / HUB_FILE, tensors(seed))
        put(tmp_path / "release" / "README.md", b"---\nlicense: mit\n---\nA model.\n")
        put(tmp_path / "release" / "config.json", b"{}")
        commits.append(client.ask("publish", repo=repo, folder=str(tmp_path / "release")))
    assert client.ask("history", repo=repo)[:2] == commits[::-1]
    assert set(client.ask("contents", repo=repo, revision=commits[0])) == {
        ".gitattributes",
        "README.md",
        "config.json",
        HUB_FILE,
    }

    cache = str(tmp_path / "cache")
    cards = [
        write_card(card_of(tensors(seed), repo, commit), tmp_path / str(seed))
        for seed, commit in zip((1, 2), commits, strict=True)
    ]
    with started(hub, tmp_path, HF_HUB_OFFLINE="1") as offline:
        # first, from the first; on to the second; back to the first without the network
        for which, source in ((0, "Hub"), (1, "Hub"), (0, "Hub cache")):
            answer = client.ask("locate", card=cards[which], cache_dir=cache)
            again = offline.ask("locate", card=cards[which], cache_dir=cache)
            assert answer["sha256"] == again["sha256"] == sha256(tensors(which + 1)).hexdigest()
            assert (answer["source"], again["source"]) == (source, "Hub cache")
    assert set(load_file(answer["path"])) == {"layer0", "layer1", "layer2"}
    # plain files of the repository come along too
    readme = client.ask(
        "download", repo=repo, file="README.md", revision=commits[0], cache_dir=cache
    )
    assert Path(readme).read_bytes().startswith(b"---\nlicense: mit")


def test_the_users_settings_of_the_client_hold(published: Published, tmp_path: Path) -> None:
    with started(published.hub, tmp_path, HF_HOME=str(tmp_path / "hf")) as elsewhere:
        answer = published.locate(elsewhere, cache_dir=None)
    published.assert_right(answer)
    assert Path(answer["path"]).is_relative_to(tmp_path / "hf" / "hub")


def test_a_private_repository_needs_the_token_and_keeps_it(
    published: Published, tmp_path: Path
) -> None:
    published.hub.repos[published.repo].private = True
    with started(published.hub, tmp_path, HF_TOKEN="hf_somebody_else") as stranger:
        answer = published.locate(stranger)
    assert answer["error"] == "WeightsNotFoundError"
    assert "HF_TOKEN" in answer["message"]
    published.assert_right(published.locate())
    # the storage is another host and must not see it
    assert [seen.token for seen in published.hub.downloads()] == [None]


ONCE: dict[str, list[Fault]] = {
    "cut": [Fault(cut=20_000, method="GET")],
    "cut at once": [Fault(cut=0, method="GET")],
    "cut four times": [Fault(cut=20_000, method="GET", times=4)],
    "reset": [Fault(cut=20_000, reset=True, method="GET")],
    "server error at first": [Fault(status=500, method="HEAD", times=3)],
    "unavailable at first": [Fault(status=503, method="HEAD", times=3)],
    "too many requests at first": [Fault(status=429, retry_after=0, method="HEAD", times=3)],
    "server error in the download": [Fault(status=500, method="GET")],
    "too many requests in the download": [Fault(status=429, retry_after=0, method="GET", times=2)],
    "short": [Fault(keep=20_000, method="GET")],
    "short and said to be": [Fault(keep=20_000, times=3)],
    "flipped": [Fault(flip=30_000, method="GET")],
    "flipped at the end": [Fault(flip=-1, method="GET")],
    "wrong ETag": [Fault(etag="0" * 64, method="HEAD", times=2)],
}

ALWAYS: dict[str, tuple[Fault, str]] = {
    "server error in the download": (Fault(status=500, method="GET"), "WeightsNotFoundError"),
    "gone from storage": (Fault(status=404, method="GET"), "WeightsNotFoundError"),
    "forbidden": (Fault(status=403), "WeightsNotFoundError"),
    "not authorised": (Fault(status=401), "WeightsNotFoundError"),
    "short": (Fault(keep=20_000, method="GET"), "WeightsNotFoundError"),
    "short and said to be": (Fault(keep=20_000), "DigestError"),
    "flipped": (Fault(flip=30_000, method="GET"), "DigestError"),
    "reset": (Fault(cut=20_000, reset=True, method="GET"), "WeightsNotFoundError"),
}


@pytest.mark.parametrize("name", ONCE)
def test_a_passing_fault_ends_in_the_right_weights(published: Published, name: str) -> None:
    published.hub.inject(*(replace(fault) for fault in ONCE[name]))
    published.assert_right(published.locate())
    published.assert_cache_is_sound()
    published.hub.reset()
    published.assert_right(published.locate(), "Hub cache")


@pytest.mark.parametrize("name", ALWAYS)
def test_a_lasting_fault_ends_in_a_clear_error(published: Published, name: str) -> None:
    fault, error = ALWAYS[name]
    published.hub.inject(replace(fault, times=1000))
    answer = published.locate()
    assert answer["error"] == error
    assert NAME in answer["message"]
    published.assert_cache_is_sound()
    published.hub.reset()
    published.assert_right(published.locate())


def test_a_refusal_is_not_asked_for_twice(published: Published) -> None:
    published.hub.inject(Fault(status=404, method="GET", times=1000))
    assert published.locate()["error"] == "WeightsNotFoundError"
    assert len(published.hub.downloads()) == 1


@pytest.mark.slow
def test_a_hub_that_stays_broken_ends_in_a_clear_error(published: Published) -> None:
    published.hub.inject(Fault(status=500, times=1000))
    answer = published.locate()
    assert answer["error"] == "WeightsNotFoundError"
    assert "500" in answer["message"]
    published.hub.reset()
    published.assert_right(published.locate())


@pytest.mark.parametrize("share", [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])
def test_a_cut_download_is_resumed(
    hub: Hub, client: Client, tmp_path: Path, large: bytes, share: float
) -> None:
    published = Published(hub, client, tmp_path, large)
    hub.inject(Fault(cut=int(share * len(large)), method="GET"))
    published.assert_right(published.locate())
    published.assert_cache_is_sound()
    ranges = [seen.range for seen in hub.downloads()]
    # the client keeps whole pieces, so a cut in the first of them begins anew
    piece = constants.DOWNLOAD_CHUNK_SIZE
    kept = int(share * len(large)) // piece * piece
    assert ranges == [None, f"bytes={kept}-" if kept else None]


@pytest.mark.parametrize("what", ["repository", "revision", "file"])
def test_what_the_hub_does_not_have_is_named(published: Published, what: str) -> None:
    if what == "repository":
        published.hub.vanish(published.repo)
    elif what == "revision":
        write_card(card_of(published.data, published.repo, "0" * 40), published.folder)
    else:
        empty = published.hub.add(f"{published.repo}-empty", {"README.md": b"nothing"})
        card = card_of(published.data, f"{published.repo}-empty", empty)
        write_card(card, published.folder)
    answer = published.locate()
    assert answer["error"] == "WeightsNotFoundError"
    assert published.repo in answer["message"]
    assert "does not exist" in answer["message"]
    published.hub.reset()
    write_card(published.card, published.folder)
    published.assert_right(published.locate())


def test_a_cached_model_outlives_its_repository(published: Published) -> None:
    published.locate()
    published.hub.vanish(published.repo)
    published.assert_right(published.locate(), "Hub cache")


def test_a_damaged_cache_is_mended_when_the_hub_answers(published: Published) -> None:
    blob = Path(published.locate()["path"]).resolve()
    blob.write_bytes(b"x" * len(published.data))
    published.hub.vanish(published.repo)
    refused = published.locate()
    assert refused["error"] == "DigestError"
    assert str(published.cache) in refused["message"]
    published.hub.reset()
    published.assert_right(published.locate())
    assert blob.read_bytes() == published.data


def test_a_damaged_cache_under_another_name_is_mended(published: Published) -> None:
    # as a wrong ETag leaves it: the right blob gets another name, and the link has to move
    cached_file(published.cache, published.repo, published.commit, published.data[::-1])
    published.assert_right(published.locate())
    published.assert_cache_is_sound()


def test_a_card_whose_digest_is_not_the_hubs_is_refused(published: Published) -> None:
    write_card(
        card_of(tensors(seed=9), published.repo, published.commit),
        published.folder,
    )
    assert published.locate()["error"] == "DigestError"
    # what was fetched for it is no leftover to be found by others
    assert not [path for path in published.cache.rglob("*") if path.name == HUB_FILE]


def test_eight_processes_at_once(hub: Hub, tmp_path: Path, large: bytes) -> None:
    with started(hub, tmp_path) as fresh:
        published = Published(hub, fresh, tmp_path, large)
        answers = fresh.ask("race", card=published.yaml, count=8, cache_dir=str(published.cache))
        assert len(answers) == 8
        for answer in answers:
            assert "error" not in answer, answer["message"]
            assert answer["sha256"] == published.card.weights.sha256
        published.assert_cache_is_sound()


def test_eight_processes_mend_one_damaged_cache(hub: Hub, tmp_path: Path, large: bytes) -> None:
    with started(hub, tmp_path) as fresh:
        published = Published(hub, fresh, tmp_path, large)
        damaged = cached_file(published.cache, published.repo, published.commit, large)
        damaged.resolve().write_bytes(large[::-1])
        answers = fresh.ask("race", card=published.yaml, count=8, cache_dir=str(published.cache))
        for answer in answers:
            assert "error" not in answer, answer["message"]
            assert answer["sha256"] == published.card.weights.sha256
        published.assert_cache_is_sound()


def bound_by_modes() -> None:
    """Let file modes count for root too: drop the capability to override them."""
    if os.geteuid() == 0:
        drop, override = 24, 1
        assert ctypes.CDLL(None).prctl(drop, override, 0, 0, 0) == 0


def test_a_cache_that_is_read_only(published: Published, tmp_path: Path) -> None:
    environment = {**published.hub.environment(), "HOME": str(tmp_path)}
    published.cache.mkdir(mode=0o555)
    with Client(environment, before=bound_by_modes) as bound:
        answer = published.locate(bound)
        assert answer["error"] == "WeightsNotFoundError"
        assert f"{published.cache} cannot be written to (Permission denied)" in answer["message"]
        # filled by somebody who may, it serves
        published.cache.chmod(0o755)
        link = Path(published.locate()["path"])
        folders = [published.cache, *(p for p in published.cache.rglob("*") if p.is_dir())]
        for folder in folders:
            folder.chmod(0o555)
        published.assert_right(published.locate(bound), "Hub cache")
        # and damaged, it is refused
        link.resolve().write_bytes(b"x" * len(published.data))
        assert published.locate(bound)["error"] == "DigestError"
        for folder in folders:
            folder.chmod(0o755)
        published.assert_right(published.locate(bound))


def files_end_early() -> None:
    """No file may grow longer than this, as on a disk that fills up."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))


def test_a_disk_that_is_full(published: Published, tmp_path: Path) -> None:
    environment = {**published.hub.environment(), "HOME": str(tmp_path)}
    with Client(environment, before=files_end_early) as poor:
        answer = published.locate(poor)
        put(tmp_path / ".uscl_zoo" / FILE, published.data)
        copied = poor.ask("fetch", card=published.yaml, folder=str(tmp_path / "stick"))
    assert copied["error"] == "WeightsNotFoundError"
    assert "cannot be written (File too large)" in copied["message"]
    assert list((tmp_path / "stick").iterdir()) == []
    assert answer["error"] == "WeightsNotFoundError"
    assert f"{published.cache} cannot be written to (File too large)" in answer["message"]
    published.assert_cache_is_sound()
    published.assert_right(published.locate())


# --------------------------------------------------------------------------- no network


@pytest.fixture
def nobody_listens() -> str:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture
def nobody_answers() -> Iterator[str]:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(64)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.mark.parametrize("network", ["nobody_listens", "nobody_answers", "offline mode", "proxy"])
def test_without_network(
    published: Published, tmp_path: Path, network: str, request: pytest.FixtureRequest
) -> None:
    if network == "offline mode":
        settings = {"HF_HUB_OFFLINE": "1"}
    elif network == "proxy":
        # a name that only the proxy could look up
        proxy = request.getfixturevalue("nobody_listens")
        settings = {"HF_ENDPOINT": "http://hub.invalid", "HTTP_PROXY": proxy, "http_proxy": proxy}
    else:
        settings = {"HF_ENDPOINT": request.getfixturevalue(network)}
    cached = tmp_path / "filled"
    published.assert_right(published.locate(cache_dir=str(cached)))
    with started(published.hub, tmp_path, **settings) as cut_off:
        answer = published.locate(cut_off)
        # the time that was promised to whoever has no network
        assert answer["seconds"] < 5
        assert answer["error"] == "WeightsNotFoundError"
        message = answer["message"]
        for part in (
            str(tmp_path / ".uscl_zoo"),
            str(published.cache),
            settings.get("HF_ENDPOINT", published.hub.endpoint),
            "connect",
            f"uscl fetch {NAME}",
            "USCL_ZOO_WEIGHTS",
            FILE,
        ):
            assert part in message
        # what is cached needs none
        published.assert_right(published.locate(cut_off, cache_dir=str(cached)), "Hub cache")
        # nor does what the user put there
        put(tmp_path / ".uscl_zoo" / FILE, published.data)
        published.assert_right(published.locate(cut_off), "named folder")


def test_patience_can_be_set(published: Published, tmp_path: Path, nobody_answers: str) -> None:
    settings = {"HF_ENDPOINT": nobody_answers, "HF_HUB_ETAG_TIMEOUT": "1"}
    with started(published.hub, tmp_path, **settings) as cut_off:
        answer = published.locate(cut_off)
    assert answer["seconds"] < ANSWER_WITHIN
    assert answer["error"] == "WeightsNotFoundError"
