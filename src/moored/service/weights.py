# SPDX-License-Identifier: Apache-2.0
"""Weights in memory: one base model for each start, and the adapters on it. Used by one thread alone."""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from collections.abc import Collection
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from moored.errors import MooredError
from moored.service.problems import ApiProblem
from moored.service.registry import Served

log = logging.getLogger("moored.service")

_BROKEN = (MooredError, SafetensorError, OSError, ValueError, RuntimeError, KeyError)
"""What libraries raise of weights that do not load, or do not fit into memory."""


class Base:
    """A model in memory, with the adapters that were put on it.

    Args:
        served: one of those that it is loaded for.
    """

    def __init__(self, served: Served):
        from moored.hf.device import precision
        from moored.hf.generate import answering, end_tokens, positions_of
        from moored.hf.loaders import load_model, load_tokenizer

        self.model: Any = load_model(served.weights, dtype=precision())
        self.tokenizer: Any = load_tokenizer(served.start)
        self.ends = end_tokens(self.model, self.tokenizer)
        self.positions = positions_of(self.model)
        embeddings: Any = self.model.get_input_embeddings()
        self.vocabulary = int(embeddings.num_embeddings)
        self._peft: Any = None
        self._adapters: OrderedDict[str, int] = OrderedDict()
        self._active: str | None = None
        self._own_bytes = self._counted()
        self._ready = ExitStack()
        self._ready.enter_context(answering(self.model))

    @property
    def bytes(self) -> int:
        """What it takes with its adapters."""
        return self._own_bytes + sum(self._adapters.values())

    @property
    def adapters(self) -> list[str]:
        """By the hash of what they are part of, least lately used first."""
        return list(self._adapters)

    def add(self, served: Served) -> None:
        """Put an adapter on, if it is not there yet.

        Args:
            served: with an adapter on this base.

        Raises:
            ApiProblem: its bytes are not those that passed.
        """
        name = served.sha256
        if name in self._adapters:
            self._adapters.move_to_end(name)
            return
        from peft import PeftModel

        before = self._counted()
        if self._peft is None:
            self._peft = PeftModel.from_pretrained(self.model, str(served.adapter), adapter_name=name)
        else:
            self._peft.load_adapter(str(served.adapter), adapter_name=name)
        self._peft.eval()
        self._active = ""  # loading one may make it the active one
        self._adapters[name] = self._counted() - before
        try:
            served.confirm()
        except ApiProblem:
            self.remove(name)
            raise

    def remove(self, name: str) -> None:
        """Take an adapter off.

        Args:
            name: of `adapters`.
        """
        if self._adapters.pop(name, None) is None:
            return
        self._active = ""
        if self._adapters:
            self._peft.set_adapter(
                self.adapters[-1], inference_mode=True
            )  # PEFT keeps the name of a deleted active one
            self._peft.delete_adapter(name)
        else:
            self.model, self._peft = self._peft.unload(), None

    def speak_as(self, adapter: str | None) -> Any:
        """The model with one adapter, or with none.

        Args:
            adapter: of `adapters`; None for the base itself.
        """
        if self._peft is None:
            return self.model
        if adapter != self._active:
            if adapter is None:
                self._peft.base_model.disable_adapter_layers()
            else:
                self._peft.base_model.enable_adapter_layers()
                self._peft.set_adapter(adapter, inference_mode=True)
            self._active = adapter
        return self._peft

    def close(self) -> None:
        """Let go of it."""
        self._ready.close()

    def _counted(self) -> int:
        return sum(weight.nbytes for weight in self.model.parameters())


class Weights:
    """The bases in memory, up to a limit; the least lately used go first.

    Args:
        most_bytes: of all; None: half of what this machine's device has.
    """

    def __init__(self, most_bytes: int | None = None):
        self._most = most_bytes
        self._bases: OrderedDict[str, Base] = OrderedDict()
        self._hashes: dict[str, set[str]] = {}

    def take(self, served: Served, busy: Collection[Base]) -> Base | None:
        """The base of a model, with its adapter on; None if there is no room until a busy one is done.

        Args:
            served: what may answer.
            busy: bases that are in use.

        Raises:
            ApiProblem: it cannot be loaded on this machine, or its bytes are not those that passed.
        """
        base = self._bases.get(served.base_sha256)
        if base is None:
            if not self._room_for(served, busy):
                return None
            base = self._loaded(served)
        self._bases.move_to_end(served.base_sha256)
        self._hashes.setdefault(served.name, set()).add(served.sha256)
        if served.adapter is not None:
            try:
                base.add(served)
            except _BROKEN as error:
                raise _unloadable(served, error) from error
        return base

    def forget(self, name: str, busy: Collection[Base]) -> None:
        """Take a model's adapter, or a base of its own, out of memory.

        Args:
            name: of the model.
            busy: bases that are in use; a base that is stays.
        """
        for sha256 in self._hashes.pop(name, ()):
            for base in self._bases.values():
                base.remove(sha256)
            if sha256 in self._bases and self._bases[sha256] not in busy:
                self._bases.pop(sha256).close()

    def close(self) -> None:
        """Let go of all."""
        for base in self._bases.values():
            base.close()
        self._bases.clear()

    def _loaded(self, served: Served) -> Base:
        try:
            base = Base(served)
        except _BROKEN as error:
            raise _unloadable(served, error) from error
        try:
            served.confirm()
        except ApiProblem:
            base.close()
            raise
        self._bases[served.base_sha256] = base
        return base

    def _room_for(self, served: Served, busy: Collection[Base]) -> bool:
        """Make room; adapters and bases that are idle go, least lately used first."""
        most, wanted = self._limit(), _on_disk(served.weights)
        for name, base in list(self._bases.items()):
            if self._used() + wanted <= most:
                break
            if base not in busy:
                self._bases.pop(name).close()
                del base
        if self._used() + wanted <= most:
            return True
        if self._bases:
            return False
        log.error("%s takes %d bytes, and the engine may use %d", served.name, wanted, most)
        raise ApiProblem(
            503,
            f"The model `{served.name}` is larger than the memory that this server may use for models.",
            "model",
            "model_unavailable",
            headers={"x-should-retry": "false"},
        )

    def _used(self) -> int:
        return sum(base.bytes for base in self._bases.values())

    def _limit(self) -> int:
        if self._most is None:
            import torch

            from moored.hf.device import device_for

            device = device_for(None, "Weights")
            whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
            if device.type == "cuda":
                whole = torch.cuda.get_device_properties(device).total_memory
            self._most = whole // 2
        return self._most


def _on_disk(weights: str) -> int:
    """About what a model will take; 0 of a hub id, which is not known before it is loaded."""
    folder = Path(weights)
    return sum(file.stat().st_size for file in folder.glob("*.safetensors")) if folder.is_dir() else 0


def _unloadable(served: Served, error: Exception) -> ApiProblem:
    log.error("%s cannot be loaded: %s", served.name, error)
    return ApiProblem(
        503,
        f"The model `{served.name}` cannot be loaded on this server; its log says why.",
        "model",
        "model_unavailable",
        headers={"x-should-retry": "false"},
    )
