# SPDX-License-Identifier: Apache-2.0
"""Answers from weights in this process.

One thread has the models. In each round it accepts what has come in, reads the new prompts of each model side by side,
lets them join those of the same model that are being answered, and makes one step with every model that has something
to say. So a long answer delays nobody, and an answer does not depend on what else is asked but for rounding.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from moored.errors import DataError
from moored.service.problems import ApiProblem, wrong
from moored.service.question import Answering, Chance, Charge, Finish, Piece, Question
from moored.service.registry import Served
from moored.service.weights import Base, Weights

if TYPE_CHECKING:
    from moored.hf.continuation import Continuation
    from moored.hf.drawing import Draw
    from moored.hf.speech import Heard, Speech

log = logging.getLogger("moored.service")

ROWS = 32
"""Answers that are written at a time."""
WAITING = 256
"""Questions that wait for it."""


@dataclass(eq=False)
class _Asked:
    """A question on its way."""

    served: Served
    question: Question
    charge: Charge
    answering: Answering = field(init=False)
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True


@dataclass(eq=False)
class _Row:
    """One answer of a question."""

    asked: _Asked
    base: Base
    index: int
    ids: Sequence[int]
    limit: int
    draw: Draw | None
    speech: Speech
    taken: int = 0
    waiting: list[Chance] = field(default_factory=list)
    """Of tokens whose text is not certain yet."""

    @property
    def voice(self) -> tuple[Base, str | None]:
        """What has to be in place to write it: a base, and an adapter on it."""
        served = self.asked.served
        return self.base, served.sha256 if served.adapter is not None else None


class LocalEngine:
    """Answers from weights in this process.

    Args:
        most_bytes: of weights in memory; None: half of what the machine's device has.
        rows: answers that are written at a time, at least 1.
    """

    def __init__(self, *, most_bytes: int | None = None, rows: int = ROWS):
        self._weights = Weights(most_bytes)
        self._most_rows = rows
        self._inbox: deque[_Asked] = deque()
        self._forgotten: deque[str] = deque()
        self._rows: deque[_Row] = deque()
        self._spoken: list[tuple[tuple[Base, str | None], Continuation[_Row]]] = []
        self._news = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False

    async def ask(self, served: Served, question: Question, charge: Charge) -> Answering:
        """See `Engine.ask`."""
        asked = _Asked(served, question, charge)
        asked.answering = Answering(question.n, asked.cancel)
        with self._news:
            if self._closed or len(self._inbox) >= WAITING:
                raise ApiProblem(503, "The server is too busy to answer now; try again later.", code="overloaded")
            self._inbox.append(asked)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="moored-engine", daemon=True)
                self._thread.start()
            self._news.notify()
        await asked.answering.begin()
        return asked.answering

    def unload(self, name: str) -> None:
        """See `Engine.unload`."""
        with self._news:
            self._forgotten.append(name)
            self._news.notify()

    def close(self) -> None:
        """See `Engine.close`."""
        with self._news:
            self._closed = True
            self._news.notify()
        if self._thread is not None:
            self._thread.join()

    def _work(self) -> None:
        import torch

        from moored.service.priority import behind_requests

        behind_requests()
        with torch.inference_mode():
            while self._awake():
                try:
                    self._forget()
                    self._accept()
                    self._read()
                    self._write()
                except Exception as error:
                    log.exception("the engine failed")
                    self._fail_all(error)
        self._fail_all(ApiProblem(503, "The server is going down.", code="overloaded"))
        self._weights.close()

    def _awake(self) -> bool:
        """Wait until there is something to do; False when the engine is closed."""
        with self._news:
            while not (self._closed or self._inbox or self._forgotten or self._rows or self._spoken):
                self._news.wait()
            return not self._closed

    def _forget(self) -> None:
        """Drop the models that may answer no more, and what they were saying."""
        while self._forgotten:
            name = self._forgotten.popleft()
            gone = [row for row in self._all_rows() if row.asked.served.name == name]
            self._end(gone, ApiProblem(503, f"The model `{name}` is not served any more.", "model"))
            self._weights.forget(name, self._busy())

    def _accept(self) -> None:
        """From questions to rows, in the order in which they came, as far as there is room for their models."""
        while self._inbox and len(self._rows) < self._most_rows:
            asked = self._inbox[0]
            try:
                if not asked.cancelled and not self._accepted(asked):
                    return
            except ApiProblem as problem:
                asked.answering.fail(problem)
            except DataError as error:
                asked.answering.fail(wrong(str(error), "messages" if asked.question.messages else "prompt"))
            with self._news:
                self._inbox.popleft()

    def _accepted(self, asked: _Asked) -> bool:
        from moored.hf.drawing import draws
        from moored.hf.speech import Speech
        from moored.service.prompting import fitted, prompt_of

        question = asked.question
        base = self._weights.take(asked.served, self._busy())
        if base is None:
            return False
        ids = prompt_of(base.tokenizer, question, asked.served.serving, base.vocabulary)
        limit = fitted(question, len(ids), base.positions)
        asked.charge(len(ids), limit * question.n)
        asked.answering.accept(len(ids))
        decode = _decoder(base.tokenizer)
        for index, draw in enumerate(draws([ids] * question.n, sampling_of(question))):
            speech = Speech(decode, question.stop, bare=bool(question.messages))
            self._rows.append(_Row(asked, base, index, ids, limit, draw, speech))
        return True

    def _read(self) -> None:
        """The prompts of waiting rows, those of one model side by side; they join what their model is saying."""
        from moored.hf.continuation import Continuation

        room = self._most_rows - sum(len(spoken.live) for _, spoken in self._spoken)
        fresh = [self._rows.popleft() for _ in range(min(room, len(self._rows)))]
        for voice in dict.fromkeys(row.voice for row in fresh):
            rows = [row for row in fresh if row.voice == voice and not row.asked.cancelled]
            if not rows:
                continue
            model = voice[0].speak_as(voice[1])
            new = Continuation(model, [row.ids for row in rows], rows, max(row.limit for row in rows))
            self._spoken.append((voice, new))
            self._step(voice, new)
            if new.live and any(each.join(new) for same, each in self._spoken[:-1] if same == voice):
                self._spoken.pop()

    def _write(self) -> None:
        """One token more for everybody."""
        self._spoken = [(voice, spoken) for voice, spoken in self._spoken if spoken.live]
        for voice, spoken in self._spoken:
            self._step(voice, spoken)
        self._spoken = [(voice, spoken) for voice, spoken in self._spoken if spoken.live]

    def _step(self, voice: tuple[Base, str | None], spoken: Continuation[_Row]) -> None:
        spoken.drop([row for row in spoken.live if row.asked.cancelled])
        if not spoken.live:
            return
        voice[0].speak_as(voice[1])
        found: dict[_Row, Chance] = {}

        def choose(logits: Any, rows: Sequence[_Row]) -> Any:
            from moored.hf.drawing import chosen

            tokens = chosen(logits, [row.draw for row in rows])
            found.update(_chances(logits, tokens, rows))
            return tokens

        spoken.drop([row for row, token in spoken.step(choose) if self._told(row, token, found.get(row))])

    def _told(self, row: _Row, token: int, chance: Chance | None) -> bool:
        """Pass a token on; whether it was the last."""
        row.taken += 1
        finish: Finish | None = None
        if token in row.base.ends:
            finish, heard = "stop", row.speech.end()
        else:
            row.waiting += [chance] if chance is not None else []
            heard = row.speech.hear(token)
            if heard.stopped:
                finish = "stop"
            elif row.taken >= row.limit:
                finish, heard = "length", _both(heard, row.speech.end())
        told, row.waiting = row.waiting[: heard.tokens], row.waiting[heard.tokens :]
        piece = Piece(index=row.index, text=heard.text, chances=tuple(told), finish=finish)
        row.asked.answering.put(piece, 1)
        return finish is not None

    def _all_rows(self) -> list[_Row]:
        return [*self._rows, *(row for _, spoken in self._spoken for row in spoken.live)]

    def _busy(self) -> set[Base]:
        return {row.base for row in self._all_rows()}

    def _end(self, rows: Iterable[_Row], error: Exception) -> None:
        """Some rows do not go on."""
        gone = set(rows)
        for asked in dict.fromkeys(row.asked for row in gone):
            asked.answering.fail(error)
        self._rows = deque(row for row in self._rows if row not in gone)
        for _, spoken in self._spoken:
            spoken.drop([row for row in spoken.live if row in gone])

    def _fail_all(self, error: Exception) -> None:
        problem = error if isinstance(error, ApiProblem) else _failed()
        rows = self._all_rows()
        self._spoken, self._rows = [], deque()
        with self._news:
            inbox, self._inbox = list(self._inbox), deque()
        for asked in dict.fromkeys([*(row.asked for row in rows), *inbox]):
            asked.answering.fail(problem)


def sampling_of(question: Question) -> Any:
    """How answers are drawn; None takes the likeliest token each time."""
    from moored.sampling import Sampling

    if question.temperature == 0 or question.top_p == 0:
        return None
    return Sampling(temperature=question.temperature, top_p=question.top_p, seed=question.seed % 2**64)


def _both(first: Heard, second: Heard) -> Heard:
    from moored.hf.speech import Heard

    return Heard(text=first.text + second.text, tokens=first.tokens + second.tokens, stopped=second.stopped)


def _decoder(tokenizer: Any) -> Any:
    return lambda tokens: str(tokenizer.decode(tokens, skip_special_tokens=True))


def _chances(logits: Any, tokens: Any, rows: Sequence[_Row]) -> dict[_Row, Chance]:
    """Of the rows that want to know."""
    import torch

    from moored.ops.chances import chances
    from moored.service.prompting import bytes_of

    curious = [number for number, row in enumerate(rows) if row.asked.question.chances is not None]
    if not curious:
        return {}
    index = torch.tensor(curious, device=logits.device)
    most = max(rows[number].asked.question.chances or 0 for number in curious)
    taken, others, theirs = chances(logits[index], tokens[index], most)
    found = {}
    for number, token, logprob, ids, logprobs in zip(
        curious, tokens[index].tolist(), taken.tolist(), others.tolist(), theirs.tolist(), strict=True
    ):
        row = rows[number]
        tokenizer, k = row.base.tokenizer, row.asked.question.chances or 0
        top = [
            Chance(token=tokenizer.decode([other]), bytes=bytes_of(tokenizer, other), logprob=value)
            for other, value in list(zip(ids, logprobs, strict=True))[:k]
        ]
        own = tokenizer.decode([token])
        found[row] = Chance(token=own, bytes=bytes_of(tokenizer, token), logprob=logprob, top=tuple(top))
    return found


def _failed() -> ApiProblem:
    return ApiProblem(
        500, "The model failed while answering; the server's log says why.", headers={"x-should-retry": "false"}
    )
