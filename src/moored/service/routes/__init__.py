# SPDX-License-Identifier: Apache-2.0
"""The surface: one file per resource, each with a `router` whose paths are whole ("/v1/files"); `app.py` finds them."""
