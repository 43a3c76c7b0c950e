# SPDX-License-Identifier: Apache-2.0
"""`generate`: the same text as one prompt at a time, and the model and tokenizer left as they were."""

from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model

from moored.data.chat import prompt_ids
from moored.data.schema import Message
from moored.data.tiny import tiny_model, tiny_rows, tiny_tokenizer
from moored.errors import ConfigError, DataError
from moored.hf.generate import generate
from moored.randomness import named_stream
from moored.sampling import Sampling

NEW = 8


def lively(arch: str = "llama", **config):
    """Weights so large that positions and neighbours show in the answers; those of a fresh model hardly do."""
    return tiny_model(arch, initializer_range=0.4, **config).eval()


def chats(n: int = 10) -> list[list[Message]]:
    """Prompts of very different lengths: the i-th asks i questions."""
    questions = [row.question for row in tiny_rows(n)]
    return [[Message(role="user", content=" ".join(questions[: 1 + i % 4]))] for i in range(n)]


def plain_tokens(model, tokenizer, chat, ends: set[int]) -> list[int]:
    """Greedy decoding in its plainest form: no cache, no padding, the whole text again for every token."""
    ids = prompt_ids(tokenizer, chat)
    start = len(ids)
    for _ in range(NEW):
        with torch.no_grad():
            token = int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
        if token in ends:
            break
        ids.append(token)
    return ids[start:]


def reference(model, tokenizer, chat) -> str:
    tokens = plain_tokens(model, tokenizer, chat, {tokenizer.eos_token_id})
    return tokenizer.decode(tokens, skip_special_tokens=True).strip()


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.mark.parametrize("arch", ["llama", "qwen2", "gemma", "mistral", "phi3", "gpt2"])
def test_equals_plain_decoding_one_prompt_at_a_time(arch, tokenizer):
    model = lively(arch)
    prompts = chats()
    expected = [reference(model, tokenizer, prompt) for prompt in prompts]
    assert generate(model, tokenizer, prompts, max_new_tokens=NEW) == expected


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 100])
def test_the_batch_size_does_not_matter(batch_size, tokenizer):
    model = lively()
    assert generate(model, tokenizer, chats(), max_new_tokens=NEW, batch_size=batch_size) == generate(
        model, tokenizer, chats(), max_new_tokens=NEW
    )


def test_the_order_of_the_prompts_is_kept(tokenizer):
    model, prompts = lively(), chats()
    forward = generate(model, tokenizer, prompts, max_new_tokens=NEW)
    assert generate(model, tokenizer, prompts[::-1], max_new_tokens=NEW) == forward[::-1]
    assert len(set(forward)) > 1


def test_prompts_that_share_nothing_and_prompts_that_are_prefixes(tokenizer):
    model = lively()
    system = Message(role="system", content="Be brief.")
    user = Message(role="user", content="What colour is it?")
    prompts = [[user], [system, user], [user], [user, Message(role="assistant", content="Red."), user]]
    expected = [reference(model, tokenizer, prompt) for prompt in prompts]
    assert generate(model, tokenizer, prompts, max_new_tokens=NEW) == expected


def test_a_sliding_window_shorter_than_the_prompts(tokenizer):
    model = lively("mistral", sliding_window=12)
    prompts = chats()
    expected = [reference(model, tokenizer, prompt) for prompt in prompts]
    assert generate(model, tokenizer, prompts, max_new_tokens=NEW) == expected


def test_rows_stop_at_an_end_token_and_leave_the_others_alone(tokenizer):
    model, prompts = lively(), chats(12)
    free = [plain_tokens(model, tokenizer, prompt, set()) for prompt in prompts]
    everything = set(sum(free, []))
    some = [token for token in sorted(everything) if 0 < sum(token in row for row in free) < len(prompts)]
    assert len(some) > 10
    for end in some:
        model.generation_config.eos_token_id = end
        expected = [
            tokenizer.decode(row[: row.index(end)] if end in row else row, skip_special_tokens=True).strip()
            for row in free
        ]
        assert generate(model, tokenizer, prompts, max_new_tokens=NEW) == expected


def test_a_model_may_name_several_end_tokens(tokenizer):
    model, prompts = lively(), chats(4)
    firsts = [plain_tokens(model, tokenizer, prompt, set())[0] for prompt in prompts]
    model.generation_config.eos_token_id = firsts
    assert generate(model, tokenizer, prompts, max_new_tokens=NEW) == [""] * 4


def test_progress_counts_every_answer(tokenizer):
    seen = []
    generate(tiny_model(), tokenizer, chats(7), max_new_tokens=2, batch_size=3, progress=lambda *a: seen.append(a))
    assert seen == [(i, 7, "generate") for i in range(1, 8)]


def test_no_prompts_no_answers(tokenizer):
    assert generate(tiny_model(), tokenizer, [], max_new_tokens=4) == []


@pytest.mark.parametrize("training", [True, False])
def test_every_modules_own_mode_comes_back(training, tokenizer):
    model = tiny_model().train(training)
    odd = model.model.layers[0].train(not training)
    generate(model, tokenizer, chats(3), max_new_tokens=2)
    assert model.training is training
    assert model.model.layers[1].training is training
    assert odd.training is not training


def test_modes_come_back_after_an_error_too(tokenizer):
    model = tiny_model().train()

    def stop(done, total, what):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(model, tokenizer, chats(3), max_new_tokens=2, progress=stop)
    assert model.training


def test_weights_gradients_and_tokenizer_are_left_alone(tokenizer):
    model = tiny_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    sides = tokenizer.padding_side, tokenizer.truncation_side, tokenizer.pad_token
    generate(model, tokenizer, chats(3), max_new_tokens=2)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert (tokenizer.padding_side, tokenizer.truncation_side, tokenizer.pad_token) == sides


def test_training_goes_on_after_generation(tokenizer):
    model = tiny_model().train()
    generate(model, tokenizer, chats(3), max_new_tokens=2)
    ids = torch.tensor([prompt_ids(tokenizer, chats(1)[0])])
    model(input_ids=ids, labels=ids).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_gradient_checkpointing_and_a_cache_that_is_off(tokenizer):
    expected = generate(tiny_model(), tokenizer, chats(), max_new_tokens=NEW)
    model = tiny_model().train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.config.use_cache = False
    assert generate(model, tokenizer, chats(), max_new_tokens=NEW) == expected
    assert model.is_gradient_checkpointing
    assert model.config.use_cache is False


def test_a_peft_model_answers_like_its_merged_self(tokenizer):
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    model = get_peft_model(tiny_model(), config)
    adapted = generate(model, tokenizer, chats(), max_new_tokens=NEW)
    assert adapted != generate(tiny_model(), tokenizer, chats(), max_new_tokens=NEW)
    assert generate(model.merge_and_unload(), tokenizer, chats(), max_new_tokens=NEW) == adapted


def test_bfloat16(tokenizer):
    answers = generate(tiny_model().to(torch.bfloat16), tokenizer, chats(4), max_new_tokens=NEW)
    assert len(answers) == 4


def test_greedy_whatever_the_generation_config_says(tokenizer):
    expected = generate(tiny_model(), tokenizer, chats(), max_new_tokens=NEW)
    model = tiny_model()
    model.generation_config.update(do_sample=True, temperature=5.0, repetition_penalty=3.0)
    assert generate(model, tokenizer, chats(), max_new_tokens=NEW) == expected


@pytest.mark.parametrize(("field", "value"), [("max_new_tokens", 0), ("batch_size", 0)])
def test_bad_parameters(field, value, tokenizer):
    with pytest.raises(ConfigError, match=field):
        generate(tiny_model(), tokenizer, chats(1), **{"max_new_tokens": 2, field: value})


def test_a_prompt_that_does_not_fit_is_named(tokenizer):
    prompts = [*chats(1), [Message(role="user", content="word " * 600)]]
    with pytest.raises(DataError, match="prompt 2 .* 512 positions"):
        generate(tiny_model(), tokenizer, prompts, max_new_tokens=2)


HOT = Sampling(temperature=0.7, top_p=0.9, seed=3)


def drawn_plainly(model, tokenizer, chat, sampling: Sampling, again: int = 0) -> str:
    """Sampling in its plainest form: the whole text for every token, a loop over the sorted vocabulary."""
    ids = prompt_ids(tokenizer, chat)
    stream, start = named_stream(f"{tuple(ids)} {again}", sampling.seed), len(ids)
    for _ in range(NEW):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0, -1].double()
        likely = sorted(enumerate((logits / sampling.temperature).softmax(-1).tolist()), key=lambda pair: -pair[1])
        nucleus, mass = [], 0.0
        for token, share in likely:
            nucleus.append((token, share))
            mass += share
            if mass >= sampling.top_p:
                break
        left = float(torch.rand((), generator=stream, dtype=torch.float64)) * mass
        for token, share in nucleus:  # noqa: B007 (the last one, should rounding leave something)
            left -= share
            if left < 0:
                break
        if token == tokenizer.eos_token_id:
            break
        ids.append(token)
    return tokenizer.decode(ids[start:], skip_special_tokens=True).strip()


def test_drawn_answers_equal_plain_sampling_one_prompt_at_a_time(tokenizer):
    model, prompts = lively(), chats()  # four questions, over and over
    expected = [drawn_plainly(model, tokenizer, prompt, HOT, again=i // 4) for i, prompt in enumerate(prompts)]
    assert generate(model, tokenizer, prompts, max_new_tokens=NEW, sampling=HOT) == expected
    assert expected != [reference(model, tokenizer, prompt) for prompt in prompts]


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_a_drawn_answer_does_not_depend_on_its_batch(batch_size, tokenizer):
    model, prompts = lively(), chats(4)
    whole = generate(model, tokenizer, prompts, max_new_tokens=NEW, sampling=HOT)
    backwards = generate(model, tokenizer, prompts[::-1], max_new_tokens=NEW, sampling=HOT, batch_size=batch_size)
    assert backwards == whole[::-1]


def test_a_prompt_that_is_asked_again_gets_another_answer_and_another_seed_another(tokenizer):
    model, prompt = lively(), chats()[1]
    one, two = generate(model, tokenizer, [prompt, prompt], max_new_tokens=NEW, sampling=HOT)
    assert one == drawn_plainly(model, tokenizer, prompt, HOT)
    assert two == drawn_plainly(model, tokenizer, prompt, HOT, again=1)
    assert one != two
    other = replace(HOT, seed=4)
    assert generate(model, tokenizer, [prompt], max_new_tokens=NEW, sampling=other) not in ([one], [two])


def test_drawing_leaves_every_other_random_stream_alone(tokenizer):
    model = lively()
    before = torch.get_rng_state()
    generate(model, tokenizer, chats()[:2], max_new_tokens=2, sampling=HOT)
    assert torch.equal(before, torch.get_rng_state())


def test_a_small_temperature_is_greedy(tokenizer):
    model, prompts = lively(), chats()
    cold = Sampling(temperature=1e-4)
    greedy = generate(model, tokenizer, prompts, max_new_tokens=NEW)
    assert generate(model, tokenizer, prompts, max_new_tokens=NEW, sampling=cold) == greedy


@pytest.mark.parametrize("sampling", [None, HOT])
def test_every_answer_is_told_once_as_soon_as_it_is_there(sampling, tokenizer):
    told = {}
    answers = generate(
        lively(), tokenizer, chats(), max_new_tokens=NEW, sampling=sampling, batch_size=3, found=told.__setitem__
    )
    assert [told[i] for i in range(len(answers))] == answers


@pytest.mark.parametrize(("name", "value"), [("temperature", 0.0), ("top_p", 0.0), ("top_p", 1.1), ("seed", -1)])
def test_sampling_names_the_value_that_is_wrong(name, value):
    with pytest.raises(ConfigError, match=f"`{name}`"):
        Sampling(**{name: value})
