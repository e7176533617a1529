"""Reads one YAML file of a project within limits, and refuses what YAML allows but no project needs.

What does not belong here: which keys there are (`project`).
"""

import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from pipelines.steps.config.problems import shown, shown_path
from pipelines.steps.errors import ConfigError

MAX_BYTES = 256 * 1024
MAX_DEPTH = 50
MAX_NODES = 10_000
"""Keys, values and lists, each alias counted as all that it stands for."""
CHARACTERS_PER_NODE = 100
"""A longer text counts as several nodes: an alias repeats it, too."""

ANY_KEY = "*"
VALUES_AS_WRITTEN = (("label", "event"), ("signals", ANY_KEY, "event"))
"""Sections whose names and values keep their text: the type of their column decides what they mean."""


_TAGS_OF_TEXTS = frozenset(f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool"))


class _Loader(yaml.SafeLoader):
    """YAML whose days stay text: PyYAML raises a bare ValueError for the 31st of February."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_yaml(path: Path) -> object:
    """The document of a file; None where it is empty.

    Raises:
        ConfigError: It is no YAML, too large, nested too deeply, or says a key twice.
    """
    try:
        content = _content(path)
        _check_size(path, content)
        loader = _Loader(content)
        node = loader.get_single_node()
        if node is None:
            return None
        for key, first, second in _duplicate_keys(node):
            raise ConfigError(
                f"{shown_path(path)}: `{key}` is there twice",
                found=f"line {first.start_mark.line + 1}: {_source(first)}, "
                f"line {second.start_mark.line + 1}: {_source(second)}",
                expected="each key once",
                remedy="take one of the two out",
            )
        document = loader.construct_document(node)
    except (yaml.YAMLError, ValueError, OSError) as error:
        raise ConfigError(
            f"{shown_path(path)} cannot be read as YAML",
            found=" ".join(str(error).split()),
            expected="a YAML file in UTF-8",
            remedy="correct the line named: often an indentation, a tab, or an unquoted `:` or `{`",
        ) from error
    for keys in VALUES_AS_WRITTEN:
        _keep_texts(document, node, keys)
    return document


def _content(path: Path) -> bytes:
    if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for
        raise ConfigError(
            f"{shown_path(path)} is no file",
            found="a folder" if path.is_dir() else "a pipe, socket or device",
            expected="a YAML file in UTF-8",
            remedy="take it out of the directory, or give it another ending",
        )
    with path.open("rb") as stream:
        content = stream.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ConfigError(
            f"{shown_path(path)} is too large",
            found=f"more than {MAX_BYTES:,} bytes",
            expected=f"at most {MAX_BYTES:,} bytes",
            remedy="take out what is no configuration",
        )
    return content


def _check_size(path: Path, content: bytes) -> None:
    """Counts nodes and depth from the events alone: building the nodes of a hostile file may not end."""
    open_nodes: list[tuple[str | None, int]] = []  # anchor, and nodes counted when it began
    sizes: dict[str | None, int] = {}  # anchor → nodes
    nodes = 0
    for event in yaml.parse(content, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            nodes += 1
            open_nodes.append((event.anchor, nodes - 1))
        elif isinstance(event, yaml.ScalarEvent):
            size = 1 + len(event.value) // CHARACTERS_PER_NODE
            nodes += size
            sizes[event.anchor] = size
        elif isinstance(event, yaml.AliasEvent):
            if any(anchor == event.anchor for anchor, _ in open_nodes):
                raise ConfigError(
                    f"{shown_path(path)} holds an alias to what it is part of",
                    found=f"*{event.anchor}{_line(event)}",
                    expected="aliases to what has ended before them",
                    remedy="write the value out",
                )
            nodes += sizes.get(event.anchor, 1)
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_nodes.pop()
            sizes[anchor] = nodes - before
        if len(open_nodes) > MAX_DEPTH or nodes > MAX_NODES:
            is_deep = len(open_nodes) > MAX_DEPTH
            raise ConfigError(
                f"{shown_path(path)} is nested too deeply"
                if is_deep
                else f"{shown_path(path)} holds too much",
                found=f"more than {MAX_DEPTH if is_deep else MAX_NODES:,} "
                f"{'levels' if is_deep else 'entries'}{_line(event)}",
                expected=f"at most {MAX_DEPTH} levels and {MAX_NODES:,} entries, aliases written out",
                remedy="write it flatter"
                if is_deep
                else "take out what is no configuration, or some aliases",
            )


def _line(event: yaml.Event) -> str:
    return f" in line {event.start_mark.line + 1}" if event.start_mark else ""


def _duplicate_keys(node: yaml.Node, path: str = "") -> Iterator[tuple[str, yaml.Node, yaml.Node]]:
    """Key path and both values of each key that a mapping has twice; PyYAML would take the last."""
    if isinstance(node, yaml.SequenceNode):
        for position, item in enumerate(node.value):
            yield from _duplicate_keys(item, f"{path}[{position}]")
    if isinstance(node, yaml.MappingNode):
        first_values: dict[str, yaml.Node] = {}
        for key_node, value_node in node.value:
            key = f"{path}.{key_node.value}".lstrip(".")
            if key in first_values:
                yield key, first_values[key], value_node
            first_values[key] = value_node
            yield from _duplicate_keys(value_node, key)


def _source(node: yaml.Node) -> str:
    return (
        shown(node.value)
        if isinstance(node, yaml.ScalarNode)
        else f"a {type(node).__name__.removesuffix('Node').lower()}"
    )


def _keep_texts(document: object, node: yaml.Node, keys: Sequence[str]) -> None:
    """Puts the texts of a section back where YAML has made a number or a bool of them."""
    key, *below = keys
    if not isinstance(document, dict):
        return
    sections = _values(node)
    for name in sections if key == ANY_KEY else [key]:
        if below and name in sections:
            _keep_texts(document.get(name), sections[name], below)
        elif name in sections and isinstance(made := document.get(name), dict):
            document[name] = {
                column: value.value if value.tag in _TAGS_OF_TEXTS else made.get(column)
                for column, value in _values(sections[name]).items()
            }


def _values(node: yaml.Node) -> dict[str, yaml.Node]:
    """Key → value of a mapping, those merged into it (`<<`) included: building the document has done that."""
    return {key.value: value for key, value in node.value} if isinstance(node, yaml.MappingNode) else {}
