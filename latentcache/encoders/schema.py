"""The JSON schema of configurations, with the keys of every kind of encoder."""

from __future__ import annotations

from typing import Any

from latentcache.config.presets import PRESETS
from latentcache.config.sections import Config
from latentcache.encoders import KINDS, builtin
from latentcache.encoders.batching import Batching
from latentcache.encoders.tiled import Tiling

DRAFT = "https://json-schema.org/draft/2020-12/schema"


def config_schema() -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of a configuration."""
    schema = Config.model_json_schema()
    tiling = Tiling.model_json_schema(ref_template="#/$defs/{model}")
    defs = {**schema.get("$defs", {}), **tiling.pop("$defs", {}), "Tiling": tiling}
    batch = Batching.model_json_schema()["properties"]["batch"]
    kinds = []
    for kind in KINDS:
        own = builtin(kind).Config.model_json_schema(ref_template=f"#/$defs/{kind}.{{model}}")
        defs |= {f"{kind}.{name}": inner for name, inner in own.pop("$defs", {}).items()}
        own["properties"] |= {
            "kind": {"const": kind, "description": "The kind of encoder."},
            "batch": batch,
            "tiling": {"anyOf": [{"$ref": "#/$defs/Tiling"}, {"type": "null"}]},
        }
        own["required"] = sorted({*own.get("required", ()), "kind"})
        defs[f"encoder.{kind}"] = own
        kinds.append({"$ref": f"#/$defs/encoder.{kind}"})
    plugin = {
        "type": "object",
        "description": "An encoder of your own, by the dotted name of its module.",
        "properties": {"kind": {"type": "string", "pattern": "[.:]"}},
        "required": ["kind"],
    }
    encoder = schema["properties"]["encoder"]
    schema["properties"]["encoder"] = {
        "title": "Encoder",
        "description": encoder["description"],
        "oneOf": [*kinds, plugin],
    }
    defs["ClipsConfig"] = {"anyOf": [defs["ClipsConfig"], *_presets(defs["ClipsConfig"])]}
    return {"$schema": DRAFT, **schema, "$defs": defs, "title": "latentcache configuration"}


def _presets(plain: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the schema of `clips` with each preset: its keys, and the plain ones in place of its own."""
    found = []
    for name, model in PRESETS.items():
        own = model.model_json_schema()
        properties = {**plain["properties"], **own["properties"], "preset": {"const": name}}
        required = sorted({*own.get("required", ()), "preset"})
        found.append({**own, "properties": properties, "required": required})
    return found
