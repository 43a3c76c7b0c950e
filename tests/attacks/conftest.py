# SPDX-License-Identifier: Apache-2.0
"""Two tiny models for attacks that look at them."""

import pytest
import torch

from moored.data.tiny import tiny_model, tiny_tokenizer


@pytest.fixture(scope="session")
def pair(tmp_path_factory):
    """Folders of an aligned model and of its base: random weights, and a little more noise."""
    root = tmp_path_factory.mktemp("models")
    model = tiny_model()
    model.save_pretrained(root / "base")
    draws = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.02 * torch.randn(weight.shape, generator=draws)
    model.save_pretrained(root / "aligned")
    tiny_tokenizer().save_pretrained(root / "aligned")
    return root / "aligned", root / "base"
