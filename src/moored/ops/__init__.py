# SPDX-License-Identifier: Apache-2.0
"""Tensor maths without classes: the equations of the papers."""
