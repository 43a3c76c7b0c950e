# SPDX-License-Identifier: Apache-2.0
"""Studies: align, attack, fine-tune, repair, judge, as resumable stages."""
