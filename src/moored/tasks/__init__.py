# SPDX-License-Identifier: Apache-2.0
"""Tasks: rows, prompt, judge and metric under one version."""
