# SPDX-License-Identifier: Apache-2.0
"""`registry`: nothing gets from a name to weights unless the database and the bytes both say so."""

import os
import shutil
import stat
from types import SimpleNamespace

import pytest

from moored.errors import CheckpointError
from moored.service.database import Model
from moored.service.fingerprints import Fingerprints, digest
from moored.service.problems import ApiProblem
from moored.service.registry import publish
from moored.service.starts import SEED, start_of, start_recipe
from moored.serving import Serving
from moored.study.recipe import Recipe
from moored.study.stages import AlignStage
from moored.study.store import Store
from service.tuned import Home, job_of, policy, write_adapter

UNKNOWN = "does not exist or you do not have access to it"


@pytest.fixture
def home(tmp_path):
    made = Home(tmp_path)
    yield made
    made.database.close()


def refusal(call):
    with pytest.raises(ApiProblem) as caught:
        call()
    return caught.value


def assert_unknown(home, name, project="one"):
    caller = home.caller(project)
    never = refusal(lambda: home.registry.open("ft:never:was", caller))
    for call in (home.registry.open, home.registry.find, home.registry.delete):
        problem = refusal(lambda call=call: call(name, caller))
        assert problem.status == 404
        assert problem.body() == {
            "error": {**never.body()["error"], "message": never.message.replace("ft:never:was", name)}
        }
        assert UNKNOWN in problem.message
    assert name not in [listed.name for listed in home.registry.names(caller)]


def test_what_passed_is_served_from_its_own_copy_and_its_start(home):
    source = write_adapter(home.folder / "made", home.start)
    model = home.tuned(7, source=source, suffix="my model", texts={"README.md": "card", "moored.json": "{}"})
    served = home.registry.open(model.id, home.caller())
    assert model.id == "ft:small:one:my-model:7"
    assert served.adapter == home.settings.model("ftjob-7")
    assert (served.weights, served.start) == (str(home.start), str(home.start))
    assert served.sha256 == model.sha256 == digest(served.adapter, str(home.start))
    assert {path.name for path in served.adapter.iterdir()} == {path.name for path in source.iterdir()} | {
        "moored.json"
    }
    assert (served.adapter / "README.md").read_text() == "card"
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in served.adapter.iterdir())
    assert [listed.name for listed in home.registry.names(home.caller())] == ["small", model.id]
    assert home.registry.find(model.id, home.caller()).owner == "one"
    served.confirm()


@pytest.mark.parametrize(
    ("options", "state"), [({"passed": False}, "refused"), ({"approval": True}, "waiting"), ({"passed": 1}, "refused")]
)
def test_what_has_not_passed_is_as_if_it_never_was(home, options, state):
    model = home.tuned(**options)
    assert model.state == state
    assert_unknown(home, model.id)


def test_a_job_without_a_word_on_approval_waits_for_a_person(home):
    job = job_of(1)
    with home.database.writing() as session:
        session.add(job)
    source = write_adapter(home.folder / "made", home.start)
    made = publish(home.database, home.settings, job, source, str(home.start), SimpleNamespace(passed=True))
    assert made.state == "waiting"


def test_somebody_elses_model_is_as_if_it_never_was(home):
    model = home.tuned(project="two")
    assert_unknown(home, model.id)
    assert home.registry.open(model.id, home.caller("two")).name == model.id


def test_a_deleted_model_is_gone_with_its_files(home):
    model = home.tuned()
    home.registry.delete(model.id, home.caller())
    assert_unknown(home, model.id)
    assert home.unloaded == [model.id]
    assert not (home.settings.home / model.folder).exists()
    with home.database.reading() as session:
        assert session.get(Model, model.id).state == "deleted"


def test_models_of_the_policy_cannot_be_deleted(home):
    assert refusal(lambda: home.registry.delete("small", home.caller())).status == 403
    assert home.start.is_dir()


def flip(path, at=-1):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "tamper",
    [
        lambda home, folder: flip(folder / "adapter_model.safetensors"),
        lambda home, folder: flip(folder / "adapter_config.json", 5),
        lambda home, folder: (folder / "moored_serving.json").write_text('{"system": "Obey."}'),
        lambda home, folder: (folder / "more.bin").write_bytes(b""),
        lambda home, folder: (folder / "inner").mkdir() or (folder / "inner" / "x").write_text("x"),
        lambda home, folder: (folder / "README.md").rename(folder / "README2.md"),
        lambda home, folder: (folder / "link").symlink_to("/etc/passwd"),
        lambda home, folder: (folder / "adapter_model.safetensors").unlink(),
        lambda home, folder: shutil.rmtree(folder),
        lambda home, folder: flip(home.start / "model.safetensors"),
        lambda home, folder: flip(home.start / "tokenizer.json", 5),
        lambda home, folder: (
            (home.start / "additional_chat_templates").mkdir()
            or (home.start / "additional_chat_templates" / "default.jinja").write_text("x")
        ),
        lambda home, folder: shutil.rmtree(home.start),
    ],
)
def test_changed_bytes_are_refused_told_once_and_unloaded(home, tamper):
    model = home.tuned()
    served = home.registry.open(model.id, home.caller())
    tamper(home, home.settings.home / model.folder)
    problem = refusal(lambda: home.registry.open(model.id, home.caller()))
    assert (problem.status, problem.code, problem.headers["x-should-retry"]) == (503, "model_unavailable", "false")
    assert str(home.folder) not in problem.message
    assert refusal(served.confirm).status == 503
    assert model.id not in [listed.name for listed in home.registry.names(home.caller())]
    assert refusal(lambda: home.registry.find(model.id, home.caller())).status == 404
    assert model.id in home.unloaded
    (told,) = home.refusals
    assert (told.model, told.project_id, told.expected) == (model.id, "one", model.sha256)
    assert told.found != model.sha256


def test_a_change_that_keeps_size_and_modification_time_is_seen(home):
    model = home.tuned()
    file = home.settings.home / model.folder / "adapter_model.safetensors"
    home.registry.open(model.id, home.caller())
    before = file.stat()
    flip(file)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_mtime_ns == before.st_mtime_ns
    assert refusal(lambda: home.registry.open(model.id, home.caller())).status == 503


def test_a_file_is_read_again_only_if_it_may_have_changed(tmp_path, monkeypatch):
    from moored.service import fingerprints

    file, reads = tmp_path / "x.json", []
    file.write_text("{}")
    monkeypatch.setattr(fingerprints, "sha256_of", lambda path: reads.append(path) or path.read_text())
    known = Fingerprints()
    assert known.sha256(file) == known.sha256(file) == "{}"
    assert len(reads) == 2  # so new that the next change may carry the same time
    monkeypatch.setattr(fingerprints, "_SETTLED_NS", -1_000_000_000)
    assert known.sha256(file) == known.sha256(file)
    assert len(reads) == 3
    file.write_text("[]")
    assert known.sha256(file) == "[]"


def test_publishing_twice_is_once_and_what_was_published_is_not_replaced(home):
    first = home.tuned()
    other = write_adapter(home.folder / "other", home.start, seed=9)
    job = job_of(1, approval=False)
    again = publish(home.database, home.settings, job, other, str(home.start), SimpleNamespace(passed=False))
    assert (again.id, again.sha256, again.state) == (first.id, first.sha256, "passed")
    home.registry.open(first.id, home.caller())
    flip(home.settings.home / first.folder / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="not what they were"):
        publish(home.database, home.settings, job, other, str(home.start), SimpleNamespace(passed=True))


def test_what_a_dead_attempt_left_is_replaced(home):
    left = home.settings.model("ftjob-1")
    left.mkdir(parents=True)
    (left / "evil.json").write_text("{}")
    model = home.tuned()
    assert not (left / "evil.json").exists()
    assert home.registry.open(model.id, home.caller())


@pytest.mark.parametrize("name", ["adapter_model.bin", "training_args.pt", "code.py", "noending"])
def test_only_data_is_published(home, name):
    source = write_adapter(home.folder / "made", home.start)
    (source / name).write_bytes(b"x")
    with pytest.raises(CheckpointError, match="cannot be served"):
        home.tuned(source=source)
    assert not home.settings.model("ftjob-1").exists()
    assert not list(home.settings.model("ftjob-1").parent.glob(".*"))


def test_folders_links_and_nothing_at_all_are_not_published(home):
    source = write_adapter(home.folder / "made", home.start)
    (source / "checkpoint.json").mkdir()
    with pytest.raises(CheckpointError, match="no plain file"):
        home.tuned(1, source=source)
    (source / "checkpoint.json").rmdir()
    (source / "x.json").symlink_to(source / "adapter_config.json")
    with pytest.raises(CheckpointError, match="no plain file"):
        home.tuned(2, source=source)
    empty = home.folder / "empty"
    empty.mkdir()
    with pytest.raises(CheckpointError, match="no safetensors"):
        home.tuned(3, source=empty)
    source = write_adapter(home.folder / "outside", home.start)
    with pytest.raises(CheckpointError, match="cannot be served"):
        home.tuned(4, source=source, texts={"../x.json": ""})


def test_a_start_in_the_home_is_kept_as_a_relative_path(home, tmp_path):
    inside = home.settings.home / "store" / "artifacts" / "align-1" / "model"
    shutil.copytree(home.start, inside)
    model = home.tuned(start=inside)
    assert model.start == "store/artifacts/align-1/model"
    assert home.registry.open(model.id, home.caller()).start == str(inside)
    shutil.rmtree(inside)
    assert refusal(lambda: home.registry.open(model.id, home.caller())).status == 503


def test_what_a_model_must_be_served_with_comes_along(home):
    source = write_adapter(home.folder / "made", home.start)
    Serving(system="Be kind.").save(source)
    served = home.registry.open(home.tuned(source=source).id, home.caller())
    assert served.serving == Serving(system="Be kind.")
    assert home.registry.open("small", home.caller()).serving is None


def test_a_broken_serving_file_is_refused(home):
    source = write_adapter(home.folder / "made", home.start)
    (source / "moored_serving.json").write_text("{")
    assert refusal(lambda: home.registry.open(home.tuned(source=source).id, home.caller())).status == 503


ALIGN = {"data": [{"data": "synthetic:alignment", "limit": 8}], "training": {"steps": 1}}


def aligned_stage(rules, store):
    from moored.study.plan import plan

    stages = plan(Recipe.parse(start_recipe(rules, "safe")), store.sha256).stages
    return next(stage for stage in stages if isinstance(stage, AlignStage))


def test_an_aligned_start_is_ready_once_it_is_made(home):
    home.rules = policy(home.start, models={"safe": {"source": str(home.start), "align": ALIGN}})
    store = Store(home.settings.store)
    assert start_of(home.rules, "safe", store) is None
    assert [listed.name for listed in home.registry.names(home.caller())] == ["small"]
    problem = refusal(lambda: home.registry.open("safe", home.caller()))
    assert (problem.status, problem.code) == (503, "model_not_ready")
    assert refusal(lambda: home.registry.find("safe", home.caller())).status == 404

    stage = aligned_stage(home.rules, store)
    with store.claim(stage) as work:
        store.started(stage)
        shutil.copytree(home.start, work / "model")
        done = store.finished(stage, 1.0)
    assert start_of(home.rules, "safe", store) == str(done.folder / "model")
    assert [listed.name for listed in home.registry.names(home.caller())] == ["small", "safe"]
    assert home.registry.open("safe", home.caller()).weights == str(done.folder / "model")
    store.close()


def test_a_start_is_the_same_stage_for_jobs_with_other_data(home, tmp_path):
    """What the jobs' recipe must keep to: the seed of the start is the server's, not the job's."""
    home.rules = policy(home.start, models={"safe": {"source": str(home.start), "align": ALIGN}})
    store = Store(home.settings.store)
    assert start_recipe(home.rules, "safe")["seed"] == SEED
    assert aligned_stage(home.rules, store).training.seed == SEED
    store.close()


def test_a_model_of_the_policy_that_cannot_be_found_is_not_listed(home):
    home.rules = policy(home.start, models={"lost": {"source": str(home.folder / "nowhere")}})
    assert [listed.name for listed in home.registry.names(home.caller())] == ["small"]
    assert refusal(lambda: home.registry.open("lost", home.caller())).code == "model_not_ready"


def test_whole_weights_are_published_too(home):
    whole = home.folder / "whole"
    shutil.copytree(home.start, whole)
    served = home.registry.open(home.tuned(source=whole).id, home.caller())
    assert served.adapter is None
    assert served.weights == str(home.settings.model("ftjob-1"))
    assert served.base_sha256 == served.sha256
