# SPDX-License-Identifier: Apache-2.0
"""Reading safetensors folders: right values, lazily, and a clear refusal of everything broken."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from moored.errors import CheckpointError, NotYetSupported
from moored.hf.checkpoint import (
    Checkpoint,
    copy_with,
    finite,
    local_folder,
    metadata_of,
    read_json,
    rows_of,
    weights_of,
)


@pytest.fixture
def tensors():
    generator = torch.Generator().manual_seed(0)
    return {
        "model.layers.0.q_proj.weight": torch.randn(4, 6, generator=generator),
        "model.layers.1.q_proj.weight": torch.randn(4, 6, generator=generator).bfloat16(),
        "model.norm.weight": torch.randn(6, generator=generator).half(),
        "model.mask": torch.ones(3, dtype=torch.uint8),
    }


@pytest.fixture
def single(tmp_path, tensors):
    folder = tmp_path / "single"
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture
def sharded(tmp_path, tensors):
    folder = tmp_path / "sharded"
    folder.mkdir()
    weight_map = {key: f"model-{n % 2}.safetensors" for n, key in enumerate(tensors)}
    for name in set(weight_map.values()):
        save_file({key: tensors[key] for key in tensors if weight_map[key] == name}, folder / name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


@pytest.mark.parametrize("layout", ["single", "sharded"])
def test_reads_what_was_saved(layout, tensors, request):
    checkpoint = Checkpoint.open(request.getfixturevalue(layout))
    assert checkpoint.weights.keys() == tensors.keys()
    for key, weight in checkpoint.weights.items():
        assert weight.shape == tuple(tensors[key].shape)
        if tensors[key].is_floating_point():
            assert weight.torch_dtype == tensors[key].dtype
            assert torch.equal(weight.read(), tensors[key])
            assert weight.nbytes == tensors[key].nbytes
    assert all(file.exists() for file in checkpoint.files)


def test_a_weight_is_mapped_and_not_copied(tmp_path):
    save_file({"w": torch.ones(2000, 2000)}, tmp_path / "model.safetensors")
    weight = Checkpoint.open(tmp_path).weights["w"]
    tensor = weight.read()
    save_file({"w": torch.full((2000, 2000), 2.0)}, tmp_path / "other.safetensors")
    with (tmp_path / "other.safetensors").open("rb") as new, (tmp_path / "model.safetensors").open("r+b") as old:
        old.write(new.read())
    assert tensor[0, 0] == 2.0, "pages that were not touched come from the file"


def test_integers_and_quantised_tensors_are_refused(single):
    weight = Checkpoint.open(single).weights["model.mask"]
    assert not weight.floating
    with pytest.raises(NotYetSupported, match="model.mask .*U8; give the checkpoint before quantisation"):
        weight.read()


def test_transposed_storage(single, tensors):
    weight = Checkpoint.open(single).weights["model.layers.0.q_proj.weight"]
    turned = replace(weight, transposed=True)
    assert turned.oriented == (6, 4)
    assert torch.equal(turned.read(), tensors[weight.key].T)


@pytest.mark.parametrize(
    "key",
    [
        "model.layers.0.q_proj.weight",
        "layers.0.q_proj.weight",
        "base_model.model.model.layers.0.q_proj.weight",
        "model.language_model.layers.0.q_proj.weight",
        "language_model.model.layers.0.q_proj.weight",
    ],
)
def test_finds_by_name_whatever_the_prefix(single, key):
    assert Checkpoint.open(single).find(key).key == "model.layers.0.q_proj.weight"


@pytest.mark.parametrize("key", ["model.layers.2.q_proj.weight", "q_proj.weight", "model.layers.0.q_proj"])
def test_finds_nothing_by_accident(single, key):
    assert Checkpoint.open(single).find(key) is None


def test_ambiguity_is_an_error(tmp_path):
    save_file({"model.a.weight": torch.ones(2), "transformer.a.weight": torch.ones(2)}, tmp_path / "model.safetensors")
    checkpoint = Checkpoint.open(tmp_path)
    assert checkpoint.find("model.a.weight").key == "model.a.weight"
    with pytest.raises(CheckpointError, match="ambiguous"):
        checkpoint.find("a.weight")


def test_truncated(single):
    file = single / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is truncated or corrupt"):
        Checkpoint.open(single)


@pytest.mark.parametrize("content", [b"", b"not a tensor file at all", b"\xff" * 64])
def test_corrupt(single, content):
    (single / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="truncated or corrupt"):
        Checkpoint.open(single)


def test_missing_shard(sharded):
    (sharded / "model-1.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-1\.safetensors does not exist"):
        Checkpoint.open(sharded)


def test_key_missing_from_its_shard(sharded):
    index = sharded / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["model.ghost.weight"] = "model-0.safetensors"
    index.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"model-0\.safetensors lacks model\.ghost\.weight"):
        Checkpoint.open(sharded)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": [1]}'])
def test_broken_index(sharded, content):
    (sharded / "model.safetensors.index.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"index\.json"):
        Checkpoint.open(sharded)


def test_folders_without_safetensors(tmp_path):
    with pytest.raises(CheckpointError, match="holds neither"):
        Checkpoint.open(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"pickled \.bin weights; convert them with"):
        Checkpoint.open(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="holds a PEFT adapter, not a model"):
        Checkpoint.open(tmp_path)


def test_where(tmp_path, monkeypatch):
    assert local_folder(str(tmp_path)) == tmp_path
    with pytest.raises(CheckpointError, match="give a local folder or a hub id"):
        local_folder(tmp_path / "none")
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="is a file"):
        local_folder(tmp_path / "file")
    asked = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **_: asked.append(name) or str(tmp_path))
    assert local_folder("owner/name") == tmp_path
    assert asked == ["owner/name"]


def test_the_hub_says_no(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="nobody/nothing is no local folder, and the hub does not give it"):
        local_folder("nobody/nothing")


def test_copy_changes_only_what_is_asked(single, tmp_path, tensors):
    new = {"model.layers.1.q_proj.weight": torch.full((4, 6), 0.1)}
    source = single / "model.safetensors"
    before = source.read_bytes()
    copy_with(source, tmp_path / "copy.safetensors", [(key, (), value) for key, value in new.items()])
    assert source.read_bytes() == before
    assert metadata_of(tmp_path / "copy.safetensors") == {"format": "pt"}
    copied = load_file(tmp_path / "copy.safetensors")
    for key, value in tensors.items():
        assert copied[key].dtype == value.dtype
        assert torch.equal(copied[key], new[key].bfloat16() if key in new else value)
    with safe_open(source, "pt") as a, safe_open(tmp_path / "copy.safetensors", "pt") as b:
        assert a.offset_keys() == b.offset_keys()
    copy_with(source, tmp_path / "same.safetensors", [])
    assert (tmp_path / "same.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.ones(6, 4), r"must have shape \(4, 6\); got \(6, 4\)"),
        (torch.full((4, 6), float("nan")), "NaN or infinite"),
        (torch.full((4, 6), 1e39, dtype=torch.float64), "NaN or infinite values in F32"),
    ],
)
def test_copy_refuses_nonsense(single, tmp_path, value, message):
    with pytest.raises(CheckpointError, match=message):
        copy_with(single / "model.safetensors", tmp_path / "c", [("model.layers.0.q_proj.weight", (), value)])


def test_copy_takes_a_transposed_view(single, tmp_path):
    value = torch.arange(24.0).reshape(6, 4)
    copy_with(single / "model.safetensors", tmp_path / "c", [("model.layers.0.q_proj.weight", (), value.T)])
    assert torch.equal(load_file(tmp_path / "c")["model.layers.0.q_proj.weight"], value.T)


CUTS = [
    ((1,), False),
    ((2,), True),
    ((1, slice(2, 4)), False),
    ((0, slice(None), slice(1, 3)), True),
    ((slice(None), slice(1, None, 2)), False),
]


@pytest.mark.parametrize(("cut", "transposed"), CUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parts_are_read_and_written_alone(cut, transposed, dtype, tmp_path):
    whole = torch.arange(3 * 4 * 5.0).reshape(3, 4, 5).to(dtype)
    save_file({"before": torch.ones(3), "w": whole, "z": torch.ones(2)}, tmp_path / "model.safetensors")
    weight = replace(weights_of(tmp_path / "model.safetensors")["w"], cut=cut, transposed=transposed)
    part = whole[cut].T if transposed else whole[cut]
    assert torch.equal(weight.read(), part)
    assert weight.oriented == tuple(part.shape)
    assert weight.nbytes == part.numel() * dtype.itemsize
    copy_with(tmp_path / "model.safetensors", tmp_path / "c", [("w", cut, -whole[cut])])
    expected = whole.clone()
    expected[cut] = -whole[cut]
    found = load_file(tmp_path / "c")
    assert torch.equal(found["w"], expected)
    assert torch.equal(found["before"], torch.ones(3))
    assert torch.equal(found["z"], torch.ones(2))


def test_rows_of_parts():
    assert rows_of((), False, 2, 4) == (slice(2, 4), slice(None))
    assert rows_of((), True, 2, 4) == (slice(None), slice(2, 4))
    assert rows_of((3,), True, 2, 4) == (3, slice(None), slice(2, 4))
    assert rows_of((slice(None), slice(1, None, 8)), False, 2, 4) == (slice(2, 4), slice(1, None, 8))


def test_finite(tmp_path):
    save_file({"good": torch.ones(2), "bad": torch.tensor([1.0, float("inf")])}, tmp_path / "w.safetensors")
    weights = weights_of(tmp_path / "w.safetensors")
    assert torch.equal(finite(weights["good"]), torch.ones(2))
    with pytest.raises(CheckpointError, match="bad in .* has NaN or infinite values"):
        finite(weights["bad"])


def test_json_must_be_an_object(tmp_path):
    (tmp_path / "a.json").write_text("[1]")
    with pytest.raises(CheckpointError, match="must hold a JSON object; got list"):
        read_json(tmp_path / "a.json")
    with pytest.raises(CheckpointError, match="cannot read"):
        read_json(tmp_path / "b.json")
