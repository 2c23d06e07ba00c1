"""A cache of ids has no latents that are a condition: what is asked of its encoder is refused alike."""

from __future__ import annotations

from typing import Any

import pytest

from latentcache.config.fields import parse_field
from latentcache.errors import ConfigError
from latentcache.planning.fields.describe import describe_field
from tests.tools.synthetic import make_manifest, make_spec


@pytest.mark.parametrize(
    "field",
    [
        {"kind": "visual", "of": "first"},
        {"kind": "visual", "of": "first_then_zeros"},
        {"kind": "visual", "of": "vace", "masks": "mask"},
        {"kind": "view"},
    ],
)
def test_conditions_of_an_encoder_of_ids_are_refused_with_what_there_is(
    field: dict[str, Any],
) -> None:
    spec = make_spec(dtype="uint16", stored="ids", exactness="exact")
    manifest = make_manifest(spec=spec, buckets={"5x32x32": 2})
    with pytest.raises(ConfigError, match=r"gives ids.*Use kind: raw.*image tower in `encoder`"):
        describe_field(parse_field("first", field), manifest)
