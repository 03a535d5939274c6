"""Write the JSON schemas that editors use to complete and check YAML files: python -m sweeps.schema (make schemas)

A YAML file names its schema in its first line, `# yaml-language-server: $schema=../../schemas/linear.json`. The schemas
know keys, types, choices and ranges; only the commands check how keys depend on each other.
"""

from __future__ import annotations

import json
from typing import Any, get_origin

from runtime import PROJECT, files
from runtime.config import Config
from runtime.config_keys import types_of
from sweeps import stages
from sweeps.checkpoints import PRETRAIN
from sweeps.study import Study

FOLDER = PROJECT / "schemas"


def main() -> None:
    for name, schema in schemas().items():
        files.write_text(FOLDER / f"{name}.json", json.dumps(schema, ensure_ascii=False) + "\n")
        print(FOLDER / f"{name}.json")


def schemas() -> dict[str, dict[str, Any]]:
    """Return the schema of each listed stage's config by the stage's name, and that of `study`."""
    listed = {name: stage for name, stage in stages.STAGES.items() if stage.config_class}
    by_name = {name: schema_of(stage.schema()) for name, stage in listed.items()}
    study = schema_of(Study)
    # The keys of `set`, `grid` and `controls` are those of the pretraining's config.
    keys = {"propertyNames": dotted_keys(stages.STAGES[PRETRAIN].schema())}
    part = study["$defs"]["PretrainPart"]["properties"]
    part["set"] |= keys
    part["grid"] |= keys
    part["controls"]["additionalProperties"] |= keys
    return by_name | {"study": study}


def schema_of(config: type[Config]) -> dict[str, Any]:
    """Return the schema of a file: no key is required, because a `base:` file may set it."""
    schema = config.model_json_schema()
    schema["properties"]["base"] = {"type": "string", "description": "a file that is read before this one"}
    for section in (schema, *schema.get("$defs", {}).values()):
        section.pop("required", None)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | schema


def dotted_keys(config: type[Config]) -> dict[str, Any]:
    """Return the schema of a dotted key: a field, a whole section, or anything inside an open mapping."""
    types = types_of(config)
    parts = [key.split(".") for key in types]
    sections = {".".join(part[:end]) for part in parts for end in range(1, len(part))}
    names = sorted({*types, *sections} - {key for key in {*types, *sections} if key.split(".")[0] == "machine"})
    inside = [f"^{key.replace('.', '[.]')}[.]" for key, kind in types.items() if get_origin(kind) is dict]
    return {"anyOf": [{"enum": names}, *({"pattern": pattern} for pattern in inside)]}


if __name__ == "__main__":
    main()
