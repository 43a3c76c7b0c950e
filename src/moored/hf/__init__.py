# SPDX-License-Identifier: Apache-2.0
"""The only code that knows the insides of transformers, TRL and PEFT."""
