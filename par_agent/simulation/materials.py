"""The materials of a scene's objects."""

from __future__ import annotations

from typing import Any


def actor_materials(actor: Any, row: int | None = None) -> list[Any]:
    """SAPIEN's render materials of a ManiSkill actor, each once, in row ``row`` of the environments; None: in all."""
    import sapien

    scenes = [int(number) for number in actor._scene_idxs]
    entities = [entity for entity, scene in zip(actor._objs, scenes, strict=True) if row in (None, scene)]
    materials: dict[int, Any] = {}  # shapes, and an actor's copies in all environments, may share one
    for entity in entities:
        body = entity.find_component_by_type(sapien.render.RenderBodyComponent)
        for shape in body.render_shapes if body is not None else []:
            for part in shape.parts if isinstance(shape, sapien.render.RenderShapeTriangleMesh) else [shape]:
                material = part.material
                materials[id(material)] = material
    return list(materials.values())
