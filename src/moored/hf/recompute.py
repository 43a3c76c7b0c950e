# SPDX-License-Identifier: Apache-2.0
"""Less memory for backward: what an activation function puts out is computed again instead of being kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from transformers import TrainingArguments

from moored.hf.hooks import child_name

ACTIVATION_NAMES = ("act_fn", "activation_fn", "act")
"""What feed-forward modules of transformers call their activation function."""

Recipe = tuple[Callable[[Tensor], Tensor], Tensor]
"""A function and the input that it is to be called with again."""


class Recompute:
    """Hooks on feed-forward modules that multiply act(gate) with another branch.

    Autograd keeps both factors of that product, and the input of the activation function as well. Of the three,
    act(gate) is cheap to compute again, and comes out the same bit for bit.

    Args:
        modules: feed-forward modules by name; those without a child of one of `ACTIVATION_NAMES` are left alone.
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self._hooks: list[Any] = []
        self._scopes: list[saved_tensors_hooks] = []
        self._last: tuple[Tensor, Recipe] | None = None
        for module in modules.values():
            if name := child_name(module, ACTIVATION_NAMES):
                act = module.get_submodule(name)
                self._hooks += [
                    module.register_forward_pre_hook(self._enter),
                    act.register_forward_hook(self._note),
                    module.register_forward_hook(self._leave, always_call=True),
                ]

    @staticmethod
    def fits(args: TrainingArguments) -> bool:
        """Whether nothing else decides already what is kept for backward.

        Args:
            args: of the trainer.
        """
        others = (args.gradient_checkpointing, args.torch_compile, getattr(args, "activation_offloading", False))
        return not any(others)

    def _enter(self, module: nn.Module, args: Any) -> None:
        scope = saved_tensors_hooks(self._pack, _unpack)
        scope.__enter__()
        self._scopes.append(scope)

    def _note(self, act: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        if args and args[0].dtype == output.dtype:
            self._last = output, (act.forward, args[0].detach())  # `forward`: without this hook

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self._last = None
        self._scopes.pop().__exit__(None, None, None)

    def _pack(self, kept: Tensor) -> Tensor | Recipe:
        if self._last is None:
            return kept
        output, recipe = self._last
        same = kept.data_ptr() == output.data_ptr() and kept.shape == output.shape and kept.stride() == output.stride()
        return recipe if same else kept

    def remove(self) -> None:
        """Take the hooks away."""
        for hook in self._hooks:
            hook.remove()


def _unpack(kept: Tensor | Recipe) -> Tensor:
    if isinstance(kept, Tensor):
        return kept
    function, argument = kept
    return function(argument)
