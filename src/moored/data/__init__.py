# SPDX-License-Identifier: Apache-2.0
"""Data sets: rows, loading, chat rendering, synthetic sets."""
