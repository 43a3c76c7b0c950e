# SPDX-License-Identifier: Apache-2.0
"""Answers that outlive an interruption: kept in a file as they come, and not asked for again."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from moored.data.schema import Prompts
from moored.errors import DataError
from moored.progress import Found

Ask = Callable[[Prompts, Found], list[str]]
"""Answers some prompts, and may tell each (number, answer) as soon as it has it."""


@dataclass(frozen=True, kw_only=True)
class Transcript:
    """A file of answers, one JSON object per line.

    The first line says whose answers they are; each other line has an answer and what identifies its prompt: a digest
    of the chat, and how often that chat was asked before. So a file serves when more prompts are asked, and in any
    order. A last line that was cut off is asked again.

    Args:
        path: created with the first answer.
        of: what the answers depend on beside the prompts: weights, tokens per answer, how they are drawn.
    """

    path: Path
    of: str

    def answers(self, prompts: Prompts, ask: Ask) -> list[str]:
        """One answer per prompt, in their order: from the file, and the others from `ask`, written as they come.

        Args:
            prompts: chats that end with a user turn.
            ask: gets the prompts that have no answer yet.

        Raises:
            DataError: the file holds answers of something else, or is not a transcript.
        """
        keys, known = _keys(prompts), self.read()
        missing = [i for i, key in enumerate(keys) if key not in known]
        if missing:
            with self._opened() as file:

                def keep(number: int, answer: str) -> None:
                    known[keys[missing[number]]] = answer
                    file.write(json.dumps({"prompt": keys[missing[number]], "answer": answer}) + "\n")
                    file.flush()

                for number, answer in enumerate(ask([prompts[i] for i in missing], keep)):
                    if keys[missing[number]] not in known:  # not told before
                        keep(number, answer)
        return [known[key] for key in keys]

    def _opened(self) -> TextIO:
        """The file behind its last whole line; what a kill cut off is dropped."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = self.path.open("a+", encoding="utf-8")
        file.seek(0)
        whole = file.read().rpartition("\n")[0]
        file.truncate(len(whole.encode()) + bool(whole))
        if not whole:
            file.write(json.dumps({"of": self.of}) + "\n")
        return file

    def read(self) -> dict[str, str]:
        """The answers in the file by prompt; none if there is no file.

        Raises:
            DataError: see `answers`.
        """
        if not self.path.is_file():
            return {}
        try:
            whole = self.path.read_text(encoding="utf-8").rpartition("\n")[0]
            head, *lines = [json.loads(line) for line in whole.splitlines()] or [{"of": self.of}]
            of, known = head["of"], {line["prompt"]: line["answer"] for line in lines}
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{self.path} is not a transcript ({error}); name another file or delete it") from error
        if of != self.of:
            raise DataError(f"{self.path} holds answers of {of}, not of {self.of}; name another file or delete it")
        return known


def _keys(prompts: Prompts) -> list[str]:
    """What identifies each prompt: its digest, and its number among equal ones."""
    asked: Counter[str] = Counter()
    keys = []
    for prompt in prompts:
        digest = hashlib.sha256(json.dumps([dict(turn) for turn in prompt]).encode()).hexdigest()[:16]
        keys.append(f"{digest} {asked[digest]}")
        asked[digest] += 1
    return keys
