# SPDX-License-Identifier: Apache-2.0
"""`LocalEngine` and the weights in its memory, without HTTP."""

import asyncio
import shutil

import pytest

from moored.data.tiny import tiny_tokenizer
from moored.service.engine import LocalEngine
from moored.service.problems import ApiProblem
from moored.service.prompting import bytes_of
from moored.service.question import Question
from moored.service.weights import Weights
from service.tuned import Home, policy, write_model

CHAT = ({"role": "user", "content": "What colour is the lamp?"},)


def free(*_):
    return None


@pytest.fixture
def home(tmp_path):
    made = Home(tmp_path)
    yield made
    made.database.close()


async def answer(engine, served, charge=free, **options):
    asked = await engine.ask(served, Question(messages=CHAT, **{"temperature": 0, "max_tokens": 8} | options), charge)
    return "".join([piece.text async for piece in asked])


def opened(home, *names):
    return [home.registry.open(name, home.caller()) for name in names]


def three(home):
    for name in ("b", "c"):
        write_model(home.folder / name, seed=ord(name))
    names = ("small", "b", "c")
    home.rules = policy(home.start, models={name: {"source": str(home.folder / name)} for name in names[1:]})
    return opened(home, *names)


def size(served):
    from moored.service.weights import Base

    base = Base(served)
    base.close()
    return base.bytes


def test_the_least_lately_used_base_goes_first(home):
    a, b, c = three(home)
    weights = Weights(2 * size(a) + 100_000)
    bases = [weights.take(served, ()) for served in (a, b)]
    assert weights.take(a, ()) is bases[0]
    assert weights.take(c, ())
    assert weights.take(a, ()) is bases[0]
    assert weights.take(b, ()) is not bases[1]


def test_a_base_that_answers_stays_and_another_waits_for_it(home):
    a, b, _ = three(home)
    weights = Weights(size(a) + 100_000)
    busy = weights.take(a, ())
    assert weights.take(b, {busy}) is None
    assert weights.take(a, {busy}) is busy
    assert weights.take(b, ()) is not None
    with pytest.raises(ApiProblem, match="larger than the memory"):
        Weights(1000).take(a, ())


def test_models_that_do_not_fit_side_by_side_answer_one_after_the_other(home):
    a, b, c = three(home)

    async def all_at_once(engine):
        return await asyncio.gather(*(answer(engine, served) for served in (a, b, c, a, b, c)))

    small, large = LocalEngine(most_bytes=size(a) + 100_000), LocalEngine()
    one, other = asyncio.run(all_at_once(small)), asyncio.run(all_at_once(large))
    assert one == other
    assert len(set(one)) == 3
    assert (len(small._weights._bases), len(large._weights._bases)) == (1, 3)
    small.close()
    large.close()


def test_adapters_come_and_go_without_a_trace(home):
    first, second = home.tuned(1), home.tuned(2)
    base, one, two = opened(home, "small", first.id, second.id)
    engine = LocalEngine()

    async def story():
        before = await answer(engine, base)
        alone = await answer(engine, one)
        assert alone != before
        assert await answer(engine, two) not in (alone, before)
        for name in (first.id, second.id):
            engine.unload(name)
        assert await answer(engine, base) == before
        (held,) = engine._weights._bases.values()
        assert held.adapters == []
        assert await answer(engine, two) != before
        assert await answer(engine, one) == alone
        engine.unload(second.id)
        assert await answer(engine, one) == alone
        assert held.adapters == [one.sha256]
        assert await answer(engine, base) == before

    asyncio.run(story())
    engine.close()


def test_bytes_that_change_while_they_are_loaded_are_refused(home):
    model = home.tuned()
    (served,) = opened(home, model.id)
    file = home.settings.home / model.folder / "adapter_config.json"
    file.write_text(file.read_text() + " ")
    engine = LocalEngine()
    with pytest.raises(ApiProblem, match="safety gate"):
        asyncio.run(answer(engine, served))
    assert all(base.adapters == [] for base in engine._weights._bases.values())
    engine.close()


def test_a_model_that_is_unloaded_stops_in_the_middle(home):
    model = home.tuned()
    (served,) = opened(home, model.id)
    engine = LocalEngine()

    async def story():
        question = Question(messages=CHAT, max_tokens=400, n=4)
        asked = await engine.ask(served, question, free)
        async for _ in asked:
            engine.unload(model.id)

    with pytest.raises(ApiProblem, match="not served any more"):
        asyncio.run(story())
    assert engine._all_rows() == []
    engine.close()


def test_a_charge_that_is_refused_costs_nothing(home):
    (served,) = opened(home, "small")
    seen, engine = [], LocalEngine()

    def charge(prompt, most):
        seen.append((prompt, most))
        raise ApiProblem(429, "no")

    with pytest.raises(ApiProblem, match="no"):
        asyncio.run(answer(engine, served, charge, n=3))
    assert seen == [(17, 24)]
    assert not engine._all_rows()
    engine.close()


def test_broken_weights_fail_one_question_and_not_the_engine(home):
    broken = home.folder / "broken"
    shutil.copytree(home.start, broken)
    (broken / "model.safetensors").write_bytes(b"x" * 100)
    home.rules = policy(home.start, models={"bad": {"source": str(broken)}})
    bad, good = opened(home, "bad", "small")
    engine = LocalEngine()

    async def story():
        with pytest.raises(ApiProblem, match="cannot be loaded"):
            await answer(engine, bad)
        return await answer(engine, good)

    assert asyncio.run(story())
    engine.close()


def test_what_goes_wrong_in_a_batch_does_not_end_the_engine(home, monkeypatch):
    from moored.hf.continuation import Continuation

    (served,) = opened(home, "small")
    engine, step = LocalEngine(), Continuation.step

    def failing(self, choose):
        raise RuntimeError("out of memory")

    async def story():
        monkeypatch.setattr(Continuation, "step", failing)
        with pytest.raises(ApiProblem, match="failed while answering"):
            await answer(engine, served)
        monkeypatch.setattr(Continuation, "step", step)
        return await answer(engine, served)

    assert asyncio.run(story())
    engine.close()


def test_who_is_being_answered_when_the_engine_closes_is_told(home):
    (served,) = opened(home, "small")
    engine = LocalEngine()

    async def story():
        asked = await engine.ask(served, Question(messages=CHAT, max_tokens=400, n=8), free)
        async for _ in asked:
            await asyncio.to_thread(engine.close)

    with pytest.raises(ApiProblem, match="going down"):
        asyncio.run(story())
    with pytest.raises(ApiProblem, match="too busy"):
        asyncio.run(answer(engine, served))


def test_more_answers_than_rows_are_written_in_turns(home):
    (served,) = opened(home, "small")
    few, many = LocalEngine(rows=3), LocalEngine()

    async def texts(engine):
        asked = await engine.ask(served, Question(messages=CHAT, max_tokens=6, n=10, seed=4), free)
        found = [""] * 10
        async for piece in asked:
            found[piece.index] += piece.text
        return found

    assert asyncio.run(texts(few)) == asyncio.run(texts(many))
    few.close()
    many.close()


def test_the_bytes_of_tokens_are_those_of_the_text():
    tokenizer = tiny_tokenizer()
    for text in ("It is red. 🙂 naïve\n", " two  spaces", "日本"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert b"".join(bytes_of(tokenizer, token) for token in ids) == text.encode()
