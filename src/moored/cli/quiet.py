# SPDX-License-Identifier: Apache-2.0
"""Keep the libraries' bars and advice off the screen; a library user's own settings stay untouched."""

from __future__ import annotations

import os
import warnings

_SETTINGS = {
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def quiet() -> None:
    """Silence the libraries for this process; call it before they are imported. What the user has set wins."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    if not os.environ.get("PYTHONWARNINGS"):
        warnings.simplefilter("ignore")
