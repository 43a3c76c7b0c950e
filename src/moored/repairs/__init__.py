# SPDX-License-Identifier: Apache-2.0
"""Repairs of weights that are already tuned; one paper, one file."""
