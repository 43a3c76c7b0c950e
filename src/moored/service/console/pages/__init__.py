# SPDX-License-Identifier: Apache-2.0
"""The pages: one file per thing that is shown, each with a `router`; `routes/console.py` finds them."""
