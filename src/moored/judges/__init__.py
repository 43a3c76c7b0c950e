# SPDX-License-Identifier: Apache-2.0
"""Judges: one verdict per answer."""
