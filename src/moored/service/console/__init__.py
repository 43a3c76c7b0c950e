# SPDX-License-Identifier: Apache-2.0
"""A small web console: pages for people, made on the server, that work without a script and without a network.

A page in `pages/` reads the request, calls the same parts as the API, and shows what they say.
"""
