"""YAML that cannot run code, repeat a key or include itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from ext_common.errors import ConfigError

BASE_KEY = "_BASE_"


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice in one block."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Compose a block. Checked here, before merge keys (``<<``) put inherited keys in."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen: dict[tuple[str, str], int] = {}
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag.endswith(":merge"):
                continue
            key = (key_node.tag, key_node.value)
            line = key_node.start_mark.line + 1
            if key in seen:
                raise ConfigError(
                    f"key {key_node.value!r} is given twice, in lines {seen[key]} and {line}",
                    where=str(node.start_mark.name),
                    fix="keep one of the two",
                )
            seen[key] = line
        return node


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read one YAML file of plain values.

    Args:
        path: the file; its top level must be a mapping (an empty file is an empty mapping).

    Raises:
        ConfigError: no such file, not YAML, an object tag, a key given twice, or a value that is
            not what it looks like (a date 2024-13-01).
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError("no such file", where=str(path), fix="check the path and the folder")
    with path.open(encoding="utf-8-sig") as stream:
        try:
            content = yaml.load(stream, Loader=_StrictLoader)  # noqa: S506 - a SafeLoader
        except yaml.constructor.ConstructorError as error:
            raise ConfigError(
                f"{error.problem} at {_place(error)}",
                where=str(path),
                fix="only plain YAML values are read: no object tags",
            ) from None
        except yaml.YAMLError as error:
            problem = getattr(error, "problem", None) or "not valid YAML"
            raise ConfigError(f"{problem} at {_place(error)}", where=str(path)) from None
        except UnicodeDecodeError as error:
            raise ConfigError(f"not UTF-8 text: {error}", where=str(path)) from None
        except ValueError as error:
            raise ConfigError(
                f"a value cannot be read: {error}", where=str(path), fix="put it in quotes"
            ) from None
        except RecursionError:
            raise ConfigError("blocks are nested too deeply", where=str(path)) from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(
            f"expected KEY: VALUE lines, found a {type(content).__name__}", where=str(path)
        )
    return content


def read_yaml_with_base(path: str | Path, _chain: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Read a YAML file and, below it, what its ``_BASE_`` names (one file or a list of files).

    Args:
        path: the file. A relative ``_BASE_`` is relative to the folder of the file that names it.

    Raises:
        ConfigError: as :func:`read_yaml`, and for a chain of bases that comes back to itself.
    """
    path = Path(path).expanduser()
    resolved = path.resolve()
    if resolved in _chain:
        cycle = " -> ".join(str(p) for p in (*_chain[_chain.index(resolved) :], resolved))
        raise ConfigError(f"{BASE_KEY} comes back to itself: {cycle}", where=str(path))
    content = read_yaml(path)
    merged: dict[str, Any] = {}
    for base in _base_names(content.pop(BASE_KEY, []), path):
        base_path = Path(base).expanduser()
        if not base_path.is_absolute():
            base_path = path.parent / base_path
        _merge(read_yaml_with_base(base_path, (*_chain, resolved)), merged, str(path), "")
    _merge(content, merged, str(path), "")
    return merged


def _base_names(bases: object, path: Path) -> list[str]:
    names = [bases] if isinstance(bases, str) else bases
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise ConfigError(
            f"{BASE_KEY} is {bases!r}", where=str(path), fix="give a file or a list of files"
        )
    return names


def _merge(source: dict[str, Any], target: dict[str, Any], where: str, prefix: str) -> None:
    for key, value in source.items():
        full = f"{prefix}{key}"
        if isinstance(value, dict) and key in target:
            if not isinstance(target[key], dict):
                raise ConfigError(f"{full} is a value in the base and a block here", where=where)
            # an alias (*name) may have put the same block in another place, which must stay
            target[key] = dict(target[key])
            _merge(value, target[key], where, f"{full}.")
        else:
            target[key] = value


def _place(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    return f"line {mark.line + 1}, column {mark.column + 1}" if mark else "an unknown line"
