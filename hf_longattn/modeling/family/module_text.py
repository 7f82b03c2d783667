"""The module of a family without a file, as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .definition import base_package, long_prefix

SOURCE = '''\
"""{prefix}{stem}: the models of {config} with long attention; {positions}.

Made from what the base's class shows.
"""

from {module} import {config}

from ..modeling.classes import Family
from ..modeling.family.long_config import {kind}
{names}

class {prefix}{config}({kind}, {config}):
    """{config} with {fields}."""

    model_type = "long_{model_type}"
{attributes}

FAMILY = Family({prefix}{config}{arguments})
'''


def module_text(model_type: str, facts: Mapping[str, Any]) -> str:
    """The module of a family, as text.

    Args:
        model_type: the base's.
        facts: of the family, as ``families.json`` stores them.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    config = CONFIG_MAPPING_NAMES[model_type]
    tables = [", ".join(f"{name}={value!r}" for name, value in table.items()) for table in facts.get("position_tables", ())]
    positions = "".join(f"PositionTable({table}), " for table in tables)
    absent = "no_positions" in facts
    arguments = [f"position_tables=({positions.strip()})" if tables else "no_positions=True" if absent else "rope=True"]
    arguments += [f"{name}={tuple(facts[name])!r}" for name in ("inner", "classes") if name in facts]
    arguments += [f"attention=AttentionNames(head_dim={facts['head_dim']!r})"] if "head_dim" in facts else []
    fields = "``long_attention``"
    if facts["kind"] == "LongEncoderDecoderConfig":
        fields += ", ``decoder_long_attention`` and ``max_decoder_position_embeddings``"
    further = ["AttentionNames"] * ("head_dim" in facts) + ["PositionTable"] * bool(tables)
    return SOURCE.format(
        prefix=long_prefix(model_type),
        stem=config.removesuffix("Config"),
        config=config,
        positions="positions in a table" if tables else "no positions" if absent else "rotary positions",
        module=facts.get("module", usual_config_module(model_type)),
        kind=facts["kind"],
        names=f"from ..modeling.family.definition import {', '.join(further)}\n" if further else "",
        fields=fields,
        model_type=model_type,
        attributes="".join(f"    {name} = {value!r}\n" for name, value in facts["attributes"].items()),
        arguments="".join(f", {argument}" for argument in arguments),
    )


def usual_config_module(model_type: str) -> str:
    """The module in which transformers usually has the config class of a model type."""
    package = base_package(model_type)
    return f"{package}.configuration_{package.rpartition('.')[2]}"
