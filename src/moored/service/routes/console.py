# SPDX-License-Identifier: Apache-2.0
"""The pages of the console, beside the API; none of them is part of its surface."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from fastapi import APIRouter

from moored.service.console import pages

router = APIRouter()

for _found in iter_modules(pages.__path__):
    router.routes += import_module(f"{pages.__name__}.{_found.name}").router.routes
