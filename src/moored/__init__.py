# SPDX-License-Identifier: Apache-2.0
"""Fine-tune language models without losing their safety alignment."""

__version__ = "0.1.0"
