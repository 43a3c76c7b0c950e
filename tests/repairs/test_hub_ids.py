# SPDX-License-Identifier: Apache-2.0
"""Hub ids in the place of folders: what is in the cache of the hub is used, links and all, without a network."""

import json

import pytest

import moored.choose
from moored.cli import main
from moored.data.tiny import tiny_rows
from moored.errors import CheckpointError
from moored.repairs.antidote import Antidote
from moored.repairs.baselines import ScaleAdapter
from moored.repairs.engine import repair
from repairs.repair_models import digests

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(trio, tmp_path, monkeypatch):
    """A cache that holds org/adapter, org/aligned and org/base as downloading leaves them."""
    cache = tmp_path / "hub"
    for name in ("adapter", "aligned", "base"):
        repository = cache / f"models--org--{name}"
        snapshot = repository / "snapshots" / COMMIT
        snapshot.mkdir(parents=True)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(COMMIT)
        (repository / "blobs").mkdir()
        for file in getattr(trio, name).iterdir():
            (repository / "blobs" / file.name).write_bytes(file.read_bytes())
            (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return cache


def test_hub_ids_are_taken_like_folders(hub, trio, tmp_path):
    before = digests(hub)
    models = ["--aligned", "org/aligned", "--base", "org/base"]
    assert main(["repair", "org/adapter", *models, "--out", str(tmp_path / "a"), "--set", "k=3"]) == 0
    local = ["--aligned", str(trio.aligned), "--base", str(trio.base)]
    assert main(["repair", str(trio.adapter), *local, "--out", str(tmp_path / "b"), "--set", "k=3"]) == 0
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
        assert not (tmp_path / "a" / name).is_symlink()
    one, two = (json.loads((tmp_path / out / "moored.json").read_text()) for out in "ab")
    assert (one["tuned"], one["aligned"], one["base"]) == ("org/adapter", "org/aligned", "org/base")
    assert sorted(one["inputs"].values()) == sorted(two["inputs"].values())
    assert [row["cosine"] for row in one["modules"]] == [row["cosine"] for row in two["modules"]]
    assert digests(hub) == before


def test_a_model_from_the_hub_can_run_and_be_written(hub, trio, tmp_path):
    rows = tiny_rows(3, "harmful")
    report = repair("org/adapter", Antidote(), aligned="org/aligned", harmful=rows, merge=True, out=tmp_path / "out")
    assert report.changed
    assert {file.name for file in trio.aligned.iterdir()} <= {file.name for file in (tmp_path / "out").iterdir()}


def test_a_search_takes_hub_ids(hub, tmp_path, monkeypatch):
    from moored.data.tiny import tiny_tokenizer
    from moored.hf.loaders import load_model

    snapshots = {f"org/{name}": hub / f"models--org--{name}" / "snapshots" / COMMIT for name in ("aligned", "base")}
    monkeypatch.setattr(
        moored.choose, "load_model", lambda where, **more: load_model(snapshots.get(where, where), **more)
    )
    monkeypatch.setattr(moored.choose, "load_serving", lambda where, adapter=None: None)
    monkeypatch.setattr(moored.choose, "load_tokenizer", lambda where: tiny_tokenizer())
    tasks = [moored.choose.make("tasks", name, n=4, max_new_tokens=4) for name in moored.choose.TASKS]
    found = moored.choose.choose(
        "org/adapter", aligned="org/aligned", candidates=[ScaleAdapter()], tasks=tasks, out=tmp_path / "out"
    )
    assert found.report.tuned == "org/adapter"
    assert len(found.record.arms) == 3
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()


def test_what_is_not_there_is_said(hub, tmp_path):
    with pytest.raises(CheckpointError, match="org/nothing is no local folder, and the hub does not give it"):
        repair("org/nothing", ScaleAdapter(), out=tmp_path / "out")
