# SPDX-License-Identifier: MIT
"""The ``ocnet`` command line: arguments in, ``ocnet.engine`` does the work."""
