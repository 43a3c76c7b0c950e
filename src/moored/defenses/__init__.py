# SPDX-License-Identifier: Apache-2.0
"""Defences that act while a model is trained; one paper, one file."""
