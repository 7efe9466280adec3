"""The materials of a scene's objects."""

from __future__ import annotations

from typing import Any


def actor_materials(actor: Any, row: int | None = None) -> list[Any]:
    """SAPIEN's render materials of a ManiSkill actor, each once, in row ``row`` of the environments; None: in all."""
    import sapien

    entities = actor._objs if row is None else [actor._objs[row]] if row < len(actor._objs) else []
    materials: dict[int, Any] = {}  # shapes, and an actor's copies in all environments, may share one
    for entity in entities:
        body = entity.find_component_by_type(sapien.render.RenderBodyComponent)
        for shape in body.render_shapes if body is not None else []:
            parts = shape.parts if isinstance(shape, sapien.render.RenderShapeTriangleMesh) else [shape]
            materials |= {id(part.material): part.material for part in parts}
    return list(materials.values())
