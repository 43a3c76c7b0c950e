# SPDX-License-Identifier: Apache-2.0
"""Other people's evaluation tools: our tasks under theirs, and their results in our records."""
