"""The versions of what is written for others to read. Caches are keyed by all of them.

A reader refuses another number, naming both and the command that mends it.
"""

from __future__ import annotations

# Of a library: functions and their arguments, the state's meaning, the metadata's layout.
ABI_VERSION = 5
# Of a launch plan.
PLAN_VERSION = 1
# Of a saved state.
SESSION_VERSION = 1
# Of a folder that runs elsewhere.
PACKAGE_VERSION = 1

VERSIONS = {"abi": ABI_VERSION, "plan": PLAN_VERSION, "session": SESSION_VERSION, "package": PACKAGE_VERSION}
