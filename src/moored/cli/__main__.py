# SPDX-License-Identifier: Apache-2.0
"""`python -m moored.cli`."""

import sys

from moored.cli import main

sys.exit(main())
