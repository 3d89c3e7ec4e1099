import pytest

from octo_integration.data import DataConfig


@pytest.mark.parametrize("field", ["chunk", "window", "image_size", "batch_size", "shuffle_buffer"])
def test_sizes_below_one_are_refused(field: str) -> None:
    with pytest.raises(ValueError, match=f"^data.{field} is 0; give a number of at least 1.$"):
        DataConfig(**{field: 0})


def test_unknown_normalisation_is_refused() -> None:
    with pytest.raises(ValueError, match="there are mean_std, bounds"):
        DataConfig(normalisation="minmax")  # type: ignore[arg-type]
