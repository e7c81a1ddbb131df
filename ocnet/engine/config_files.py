# SPDX-License-Identifier: MIT
"""Configs as files: YAML with dotted overrides, one level of base, errors in one sentence."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import jsonargparse
import yaml

from ocnet.engine.config import RunConfig

_BASE = "base"


def parse_config(args: Sequence[str], prog: str = "config") -> RunConfig:
    """Build a config from command-line arguments.

    A config file may have a key ``base``, the path of another one from its own folder, which is read
    first and has no base itself.

    Args:
        args: ``--config file.yaml`` and ``--<section>.<key>=<value>``; later ones win. ``--help``
            and ``--print_config`` print and exit.
        prog: name of the program in the help text.

    Returns:
        The config, all defaults filled in.

    Raises:
        FileNotFoundError: the config file does not exist.
        ValueError: a key is unknown or missing, or a value does not fit; one sentence.
    """
    words = _with_contents(args)
    parser = jsonargparse.ArgumentParser(
        prog=prog,
        exit_on_error=False,
        description="Train a network. Options come from a YAML file and from the command line.",
    )
    parser.add_argument("--config", action="config", help="YAML file with the sections below")
    parser.add_class_arguments(RunConfig)
    try:
        values = parser.parse_args(words).as_dict()
    except argparse.ArgumentError as error:
        raise ValueError(_in_one_sentence(str(error))) from error
    config: RunConfig = _build(RunConfig, values)
    return config


def load_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a config file.

    Args:
        path: YAML file.
        overrides: ``<section>.<key>=<value>``, without dashes.

    Returns:
        The config, all defaults filled in.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: a key is unknown or missing, or a value does not fit; one sentence.
    """
    return parse_config(["--config", str(path), *(f"--{item}" for item in overrides)])


def save_config(config: RunConfig, path: Path) -> None:
    """Write a config, all defaults spelled out; ``load_config`` reads the same config back.

    Args:
        config: what to write.
        path: YAML file to write.
    """
    path.write_text(yaml.safe_dump(asdict(config), sort_keys=False), encoding="utf-8")


def differences(one: RunConfig, other: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Return the keys in which two configs differ.

    Args:
        one: a config.
        other: another.

    Returns:
        Dotted key to the two values.
    """
    left, right = _flatten(asdict(one)), _flatten(asdict(other))
    return {
        key: (left.get(key), right.get(key))
        for key in left | right
        if left.get(key) != right.get(key)
    }


def _flatten(section: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in section.items():
        if isinstance(value, dict) and value:
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _with_contents(args: Sequence[str]) -> list[str]:
    """Check the names of all keys, and put the contents of config files in the place of their names.

    Values are left to the parser; but of an unknown key it says less, and of a section that is
    no section nothing.
    """
    words: list[str] = []
    rest = iter(args)
    for word in rest:
        name, equals, value = word.partition("=")
        if name == "--config":
            content = _read(Path(value if equals else next(rest, "")))
            words.append(f"--config={yaml.safe_dump(content)}")
            continue
        words.append(word)
        key = name.removeprefix("--")
        if name.startswith("--") and key not in ("help", "print_config"):
            # One key of a file: nested mappings, the innermost value of no interest.
            nested: Any = _ANYTHING
            for part in reversed(key.split(".")):
                nested = {part: nested}
            _check_section(nested, RunConfig, "")
    return words


def _read(path: Path) -> dict[str, Any]:
    """Return the content of a config file, laid over that of its base."""
    content = _read_one(path)
    name = content.pop(_BASE, None)
    if name is None:
        return content
    if not isinstance(name, str):
        raise ValueError(f"config: base of {path} must be the path of a config, got {name}")
    base_path = path.parent / name
    base = _read_one(base_path)
    if _BASE in base:
        raise ValueError(f"config: base of {path} must have no base itself, got {base_path}")
    return _merge(base, content)


def _read_one(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"config: --config must name a file, got {path}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(
            f"config: {path} must be YAML, got {' '.join(str(error).split())}"
        ) from error
    _check_section(content, RunConfig, "", also=(_BASE,))
    checked: dict[str, Any] = content
    return checked


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        before = merged.get(key)
        if isinstance(before, dict) and isinstance(value, dict):
            merged[key] = _merge(before, value)
        else:
            merged[key] = value
    return merged


_ANYTHING = object()


def _check_section(content: Any, section: type, prefix: str, also: Sequence[str] = ()) -> None:
    if content is _ANYTHING:
        return
    where = prefix.removesuffix(".") if prefix else "the file"
    if not isinstance(content, dict):
        raise ValueError(f"config: {where} must be a section with keys, got {content}")
    types = get_type_hints(section)
    for key, value in content.items():
        if key in also:
            continue
        if key not in types:
            raise ValueError(
                f"config: {prefix}{key} must be a known key ({', '.join(types)}), got an unknown one"
            )
        if is_dataclass(types[key]):
            _check_section(value, types[key], f"{prefix}{key}.")


def _build(section: Any, values: Mapping[str, Any]) -> Any:
    """Make the frozen dataclasses of checked values."""
    types = get_type_hints(section)
    return section(
        **{
            key: _build(kind, values[key]) if is_dataclass(kind) else values[key]
            for key, kind in types.items()
        }
    )


def _in_one_sentence(message: str) -> str:
    """Turn what the parser says of a value into a sentence of this package."""
    missing = re.search(r"arguments are required: (.*)", message)
    if missing:
        return f"config: {missing[1]} must be given, got nothing"
    wrong = re.search(
        r'key "([\w.]+)".*Given value: (.*)|key "([\w.]+)".*Got value: (.*)', message, re.S
    )
    if wrong:
        key, value = (wrong[1], wrong[2]) if wrong[1] else (wrong[3], wrong[4])
        return f"config: {key} must be {_expected(key)}, got {value}"
    return f"config: {' '.join(message.split())}"


def _expected(key: str) -> str:
    """Return in words what type the value of a dotted key has."""
    kind: Any = RunConfig
    for part in key.split("."):
        if not is_dataclass(kind):
            break
        kind = get_type_hints(kind)[part]
    members = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    return " or ".join(
        " or ".join(get_args(member))
        if get_origin(member) is Literal
        else _TYPE_NAMES.get(member, str(member))
        for member in members
    )


_TYPE_NAMES: Mapping[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    type(None): "null",
    dict[str, Any]: "a section of options",
    list[str]: "a list of texts",
    list[float]: "a list of numbers",
    list[int]: "a list of whole numbers",
    dict[int, int]: "a section of whole numbers",
}
