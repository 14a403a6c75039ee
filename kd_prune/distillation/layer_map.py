"""Layer map: the teacher layer that each student layer is compared with."""

from __future__ import annotations

from collections.abc import Mapping

from kd_prune.errors import ConfigError

Pairs = list[tuple[int, int]]


def layer_pairs(student: int, teacher: int, layer_map: Mapping[int, int] | None = None) -> Pairs:
    """Pair student layers with teacher layers, counted from 1; 0 is the embedding output.

    Without a map the layers are spread evenly: ``l → l · teacher / student``, rounded half up.

    Args:
        student: Number of the student's layers.
        teacher: Number of the teacher's layers.
        layer_map: Student layer → teacher layer; layers that are not in it are not compared.

    Raises:
        ConfigError: The map is empty or names a layer that does not exist, or there is no map and
            the student has no layers, or more than the teacher.

    >>> layer_pairs(2, 6)
    [(1, 3), (2, 6)]
    >>> layer_pairs(2, 3)
    [(1, 2), (2, 3)]
    >>> layer_pairs(2, 6, {2: 5})
    [(2, 5)]
    """
    if layer_map is None:
        if not 0 < student <= teacher:
            raise ConfigError(
                "layer_map",
                None,
                f"{teacher} teacher layers do not spread over {student} student layers",
                "give a layer_map {student layer: teacher layer}",
            )
        return [
            (layer, (2 * layer * teacher + student) // (2 * student))
            for layer in range(1, student + 1)
        ]
    if not layer_map:
        raise ConfigError("layer_map", {}, "compares no layers", "set the term's weight to 0")
    for model, count, layers in (
        ("student", student, layer_map.keys()),
        ("teacher", teacher, layer_map.values()),
    ):
        for layer in layers:
            if not 0 <= layer <= count:
                raise ConfigError(
                    "layer_map",
                    dict(layer_map),
                    f"the {model} has layers 1 … {count} (0 = embeddings), not {layer}",
                    "correct the map, or leave it out to spread the layers evenly",
                )
    return list(layer_map.items())
