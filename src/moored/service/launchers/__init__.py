# SPDX-License-Identifier: Apache-2.0
"""Where the process of a job runs: on this machine, on a Ray cluster, under Slurm."""
