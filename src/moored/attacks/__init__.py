# SPDX-License-Identifier: Apache-2.0
"""Attacks: the data that an uploader could send."""
