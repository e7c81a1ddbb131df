# SPDX-License-Identifier: MIT
"""``ocnet doctor``: versions, devices, libraries, and each op's back ends with reasons."""

import argparse
from collections.abc import Mapping

from ocnet.engine import environment
from ocnet.ops import Explanation
from ocnet.ops._extension import Library


def main(argv: list[str]) -> int:
    """Print the report; its exit status is 0 unless the arguments are wrong."""
    parser = argparse.ArgumentParser(
        prog="ocnet doctor",
        description="Print versions, devices, which native libraries loaded, and the back ends.",
    )
    parser.parse_args(argv)
    print("\n\n".join(sections()))
    return 0


def sections() -> list[str]:
    """Return the report, one text per section."""
    return [
        _section("versions", {k: v or "absent" for k, v in environment.versions().items()}),
        _section("devices", environment.devices()),
        _section("tools for a build", {k: v or "absent" for k, v in environment.tools().items()}),
        _section("native libraries", _libraries(environment.libraries())),
        "back ends of oc_attention\n" + _backends(environment.attention_backends()),
    ]


def _section(title: str, facts: Mapping[str, str]) -> str:
    width = max(len(name) for name in facts)
    return "\n".join([title, *(f"  {name:<{width}}  {fact}" for name, fact in facts.items())])


def _libraries(loaded: Mapping[str, Library]) -> dict[str, str]:
    return {
        half: f"not loaded: {library.problem}" if library.problem else f"loaded {library.path}"
        for half, library in loaded.items()
    }


def _backends(explained: Mapping[str, Explanation]) -> str:
    """Say each distinct answer once, with the devices and dtypes it holds for."""
    answers: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for call, told in explained.items():
        answers.setdefault(tuple(told.reasons.items()), []).append(call)
    blocks = []
    for reasons, calls in answers.items():
        kind = calls[0].split()[0]
        dtypes = ", ".join(call.split()[1] for call in calls)
        width = max(len(name) for name, _ in reasons)
        lines = [f"  {kind} tensors ({dtypes})"]
        lines += [f"    {name:<{width}}  {reason}" for name, reason in reasons]
        blocks.append("\n".join(lines))
    return "\n".join(blocks)
