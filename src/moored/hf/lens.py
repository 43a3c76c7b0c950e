# SPDX-License-Identifier: Apache-2.0
"""The logit lens: read any layer's hidden states as the model reads its last ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from moored.errors import NotYetSupported
from moored.hf.hooks import body, child_name, decoder_layers, in_evaluation, own_model
from moored.hf.reader import Reader

NORM_NAMES = ("norm", "ln_f", "final_layer_norm", "final_layernorm", "norm_f")
"""What decoders of transformers call the norm behind their last layer."""


def final_norm(model: Any) -> nn.Module:
    """The norm between the last decoder layer and the output layer.

    It is looked for beside the list of layers, and must turn the last layer's output into the decoder's.

    Args:
        model: a causal language model, adapters included.

    Raises:
        NotYetSupported: no such norm, or more than a norm stands there.
    """
    last, layer = list(decoder_layers(model).items())[-1]
    beside = model.get_submodule(".".join(last.split(".")[:-2]))
    name = child_name(beside, NORM_NAMES)
    norm = beside.get_submodule(name) if name else None
    if norm is None or not _closes(norm, layer, model):
        raise NotYetSupported(
            f"the last hidden states of {type(own_model(model)).__name__} are not its last layer's output and a norm "
            f"(looked for {', '.join(NORM_NAMES)}), so its other layers cannot be read through them"
        )
    return norm


def _closes(norm: nn.Module, layer: nn.Module, model: Any) -> bool:
    """Whether the norm takes the last layer's output to the decoder's."""
    ids = torch.arange(4, device=next(model.parameters()).device).unsqueeze(0)
    reader = Reader({"layer": layer, "body": body(model)})
    try:
        with torch.no_grad(), in_evaluation(model), reader.reading() as read:
            own_model(model)(input_ids=ids, use_cache=False)
            shown = norm(read["layer"])
    finally:
        reader.remove()
    return shown.shape == read["body"].shape and torch.allclose(shown, read["body"], rtol=1e-2, atol=1e-2)
