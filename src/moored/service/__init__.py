# SPDX-License-Identifier: Apache-2.0
"""The fine-tuning service: OpenAI's API on one's own machines, where nothing unsafe gets served.

Its parts, and what each may know of the others, are in `design/006-service.md`.
"""
