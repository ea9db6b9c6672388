"""``models``: the presets as a table."""

import dataclasses
from typing import Any

from pipeline.encoders.presets import PRESETS


def to_json() -> dict[str, Any]:
    """Every preset as plain JSON types."""
    return {
        "models": [dataclasses.asdict(preset) | {"licence": preset.licence} for preset in PRESETS.values()]
    }


def lines() -> list[str]:
    """The same as text."""
    width = max(map(len, PRESETS))
    lines = [f"{'name':<{width}} {'dim':>5} {'parameters':>13}  {'mpp':>4}  licence"]
    for p in PRESETS.values():
        gated = ", gated" if p.gated else ""
        lines.append(f"{p.name:<{width}} {p.dim:>5} {p.params:>13,}  {p.mpp:>4g}  {p.licence}{gated}")
        lines += [f"{'':<{width}} access {terms.access.says}" for terms in p.terms if terms.adds_access]
        lines += [f"{'':<{width}} {terms.outputs.says}" for terms in p.terms if terms.names_outputs]
        if p.note:
            lines.append(f"{'':<{width}} {p.note}")
    return lines
