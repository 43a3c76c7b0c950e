# SPDX-License-Identifier: Apache-2.0
"""Public data sets by name: where they are, how their rows read, licence and version."""
