# SPDX-License-Identifier: Apache-2.0
"""Metrics: verdicts to one number with an interval."""
