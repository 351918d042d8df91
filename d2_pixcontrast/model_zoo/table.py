"""Which checkpoints belong to which configs: a table that users write."""

import os
import re
from pathlib import Path
from typing import NamedTuple

import yaml

TABLE_VARIABLE = "PIXCONTRAST_MODEL_ZOO"

_FORM = "{config: {url: FILE or URL, sha256: 64 hexadecimal digits}}"


class Checkpoint(NamedTuple):
    """A trained model.

    Attributes:
        url: absolute path or URL.
        sha256: of the file, in hexadecimal.
    """

    url: str
    sha256: str


def read_table() -> dict[str, Checkpoint]:
    """The table that $PIXCONTRAST_MODEL_ZOO names, a YAML or JSON file; empty where it is unset.

    It maps a config, as :func:`~d2_pixcontrast.model_zoo.get_config_file` takes it, to a file::

        CamVid-SemanticSegmentation/deeplabv3plus_mobilenetv2_ce_cpu.yaml:
          url: model_final_0a1b2c3d.pth    # relative to the table, absolute, or a URL
          sha256: 0a1b2c3d...

    Raises:
        ValueError: the file is missing or has another form.
    """
    name = os.environ.get(TABLE_VARIABLE)
    if not name:
        return {}
    path = Path(name)
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{TABLE_VARIABLE}: cannot read {path}: {reason}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{TABLE_VARIABLE}: {path} has to be {_FORM}")
    return {config: _entry(path, config, entry) for config, entry in data.items()}


def _entry(table: Path, config: str, entry: object) -> Checkpoint:
    if (
        not isinstance(entry, dict)
        or entry.keys() != {"url", "sha256"}
        or not re.fullmatch("[0-9a-fA-F]{64}", str(entry["sha256"]))
    ):
        raise ValueError(f"{TABLE_VARIABLE}: {table}: the entry of {config} has to be {_FORM}")
    url = str(entry["url"])
    if "://" not in url:
        url = str(table.absolute().parent / url)
    return Checkpoint(url, str(entry["sha256"]).lower())
