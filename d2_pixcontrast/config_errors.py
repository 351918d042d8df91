"""What a config file or a command line got wrong, and the way out; yacs says the first alone."""

import os
import re
from collections.abc import Iterator

import yaml
from fvcore.common.config import BASE_KEY

from .compat import CfgNode
from .plugins import VARIABLE as PLUGINS
from .spelling import did_you_mean

# How a value of each type is written, as YAML and on a command line.
_WRITTEN = {
    "bool": "write True or False",
    "int": "write a whole number",
    "float": "write a number with a point, such as 1.0",
    "tuple": """write ("one",) or (1, 2), with brackets and comma, in '' on a command line""",
    "list": """write ["one"] or [1, 2], with brackets, in '' on a command line""",
}


def with_way_out(cfg: CfgNode, text: str) -> str:
    """The message of an error of yacs, and after it what may help, where something is known.

    Args:
        cfg: with all keys.
        text: the message.
    """
    return text + _way_out(cfg, text)


def _way_out(cfg: CfgNode, text: str) -> str:
    if found := re.search(r"Non-existent (?:config )?key: (\S+)", text):
        hint = did_you_mean(found[1], _keys(cfg), 0.75)
        return f"{'; ' if hint else ' '}{hint}(keys of a plugin are there when {PLUGINS} names it)"
    if "odd length" in text:
        return "; a blank stands between KEY and VALUE"
    if found := re.search(r"Type mismatch \(<class '(\w+)'>", text):
        return f"; {_WRITTEN[found[1]]}" if found[1] in _WRITTEN else ""
    return ""


def check_doubled_keys(path: str) -> None:
    """YAML keeps the last of two equal keys, and the first would be lost without a word.

    Args:
        path: a config that has been read; the files of its ``_BASE_`` are looked at, too.

    Raises:
        ValueError: a block has a key twice; the message names it, the lines and the file.
    """
    with open(path, encoding="utf-8") as file:
        root = yaml.compose(file, Loader=yaml.SafeLoader)
    _check_blocks(root, path)
    for base in _bases(root):
        # Relative to the file that names it; what is no local file has been read by other means.
        file = os.path.join(os.path.dirname(path), os.path.expanduser(base))
        if os.path.isfile(file):
            check_doubled_keys(file)


def _bases(root: yaml.Node | None) -> list[str]:
    for key, value in root.value if isinstance(root, yaml.MappingNode) else []:
        if key.value == BASE_KEY:
            return [n.value for n in value.value] if value.id == "sequence" else [value.value]
    return []


def _check_blocks(root: yaml.Node | None, path: str) -> None:
    nodes, seen = [root], set()
    while nodes:
        node = nodes.pop()
        if not isinstance(node, yaml.MappingNode) or id(node) in seen:
            continue
        seen.add(id(node))  # aliases lead to one node from many places
        lines: dict[str, int] = {}
        for key, value in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in lines and name != "<<":  # of which YAML merges all
                raise ValueError(
                    f"{name} is there twice, in lines {lines[name]} and {line} of {path}; merge "
                    "the two"
                )
            lines[name] = line
            nodes.append(value)


def _keys(cfg: CfgNode, prefix: str = "") -> Iterator[str]:
    for key, value in cfg.items():
        yield prefix + key
        if isinstance(value, CfgNode):
            yield from _keys(value, f"{prefix}{key}.")
