"""What of the API is built, as a page: `python -m perdure.frontend.coverage > docs/api-coverage.md`."""

from __future__ import annotations

import sys

from perdure.frontend.rpc import COMPATIBLE_VERSION
from perdure.frontend.server import IMPLEMENTED, OPERATOR_SERVICE, WORKFLOW_SERVICE

_HEAD = f"""# API coverage

Generated from the code; do not edit. Every method of both services is registered: one that is not built answers
`UNIMPLEMENTED` with its name. The API is that of Temporal {COMPATIBLE_VERSION}.
"""


# What "yes" alone would hide.
_NOTES = {
    "PollNexusTaskQueue": "for workers that poll it: it waits and answers empty, as nothing makes Nexus tasks yet"
}


def page() -> str:
    parts = [_HEAD]
    for service in (WORKFLOW_SERVICE, OPERATOR_SERVICE):
        built = IMPLEMENTED[service.full_name]
        methods = [method.name for method in service.methods]
        parts.append(f"\n## {service.name}: {len(built)} of {len(methods)}\n\n| method | built |\n|---|---|\n")
        for name in methods:
            note = f" ({_NOTES[name]})" if name in _NOTES else ""
            parts.append(f"| {name} | {'yes' if name in built else 'no'}{note} |\n")
    return "".join(parts)


if __name__ == "__main__":
    sys.stdout.write(page())
