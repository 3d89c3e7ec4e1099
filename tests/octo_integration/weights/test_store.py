import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open

from octo_integration.weights import store
from octo_integration.weights.store import load_params, save_params


def tree(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "tower": {
            "blocks": {"kernel": rng.normal(size=(3, 4, 5)).astype(np.float32)},
            "scale": np.float32(rng.normal()),
        },
        "head": {"bias": rng.normal(size=7).astype(np.float32)},
        "count": np.arange(3, dtype=np.int32),
    }


def shapes(params):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert jax.tree.map(lambda x: x.dtype.name, a) == jax.tree.map(lambda x: x.dtype.name, b)


def test_round_trip_keeps_every_bit_and_names_leaves_by_path(tmp_path):
    path = tmp_path / "made" / "w.safetensors"
    save_params(path, jax.tree.map(jnp.asarray, tree()), {"seed": "0"})
    assert_same(load_params(path, shapes(tree())), tree())
    with safe_open(path, "np") as file:
        assert set(file.keys()) == {"tower/blocks/kernel", "tower/scale", "head/bias", "count"}
        assert file.metadata() == {"seed": "0"}
    assert [p.name for p in path.parent.iterdir()] == ["w.safetensors"]


def test_a_transposed_array_is_stored_in_its_own_order(tmp_path):
    params = {"w": np.arange(6, dtype=np.float32).reshape(2, 3).T}
    save_params(tmp_path / "w.safetensors", params)
    assert_same(load_params(tmp_path / "w.safetensors", params), params)


def test_bfloat16_rounds_once_and_leaves_integers_alone(tmp_path):
    first, second = tmp_path / "1.safetensors", tmp_path / "2.safetensors"
    save_params(first, tree(), dtype=jnp.bfloat16)
    with safe_open(first, "np") as file:
        assert file.get_tensor("head/bias").dtype == jnp.bfloat16
        assert file.get_tensor("count").dtype == np.int32
    loaded = load_params(first, shapes(tree()))
    assert loaded["head"]["bias"].dtype == np.float32
    np.testing.assert_allclose(loaded["head"]["bias"], tree()["head"]["bias"], rtol=2**-8)
    save_params(second, loaded, dtype=jnp.bfloat16)
    assert_same(load_params(second, shapes(tree())), loaded)


def test_fresh_modules_may_be_absent_and_keep_their_values(tmp_path):
    path, like = tmp_path / "w.safetensors", tree(1)
    pretrained = {name: leaf for name, leaf in tree().items() if name != "head"}
    save_params(path, pretrained)
    assert_same(load_params(path, like, fresh=["head"]), {**pretrained, "head": like["head"]})
    with pytest.raises(ValueError, match="missing: head/bias"):
        load_params(path, like)
    with pytest.raises(ValueError, match="head/bias is not in the file and has no value"):
        load_params(path, shapes(like), fresh=["head"])


def test_fresh_modules_that_are_there_are_read(tmp_path):
    path = tmp_path / "w.safetensors"
    save_params(path, tree())
    assert_same(load_params(path, tree(1), fresh=["head"]), tree())


def test_a_fresh_module_is_all_there_or_not_at_all(tmp_path):
    path, like = tmp_path / "w.safetensors", {"head": {"a": np.ones(1), "b": np.ones(1)}}
    save_params(path, {"head": {"a": np.zeros(1)}})
    with pytest.raises(ValueError, match="missing: head/b"):
        load_params(path, like, fresh=["head"])


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.pop("count"), "missing: count"),
        (lambda t: t.update(extra=np.ones(2)), "unused: extra"),
        (
            lambda t: t["head"].update(bias=np.ones(6, np.float32)),
            r"of another shape: head/bias \[6\] \(the model has \[7\]\)",
        ),
        (lambda t: t.update(count=np.ones(3, np.float32)), "count is float32, the model has int32"),
        (
            lambda t: t.update({f"x{i}": np.ones(1) for i in range(9)}),
            "unused: x0, x1, x2, x3, x4 and 4 more",
        ),
    ],
)
def test_what_does_not_fit_is_named_in_one_line(tmp_path, change, message):
    path, params = tmp_path / "w.safetensors", tree()
    change(params)
    save_params(path, params)
    with pytest.raises(ValueError, match=message) as caught:
        load_params(path, tree())
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
def test_values_that_are_not_finite_are_refused(tmp_path, dtype):
    params = tree()
    params["tower"]["blocks"]["kernel"][2, 1, 0] = np.nan
    save_params(tmp_path / "w.safetensors", params, dtype=dtype)
    with pytest.raises(ValueError, match="w.safetensors: tower/blocks/kernel has NaN or infinite values"):
        load_params(tmp_path / "w.safetensors", shapes(tree()))


def test_no_file_and_damaged_files(tmp_path):
    path = tmp_path / "w.safetensors"
    with pytest.raises(FileNotFoundError, match="there are no weights"):
        load_params(path, tree())
    save_params(path, tree())
    content = path.read_bytes()
    for damaged in (content[:-5], content[:20], b"", b"not a safetensors file at all"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="no safetensors file, or damaged"):
            load_params(path, tree())


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    save_params(path, tree())

    def half(tensors, file, metadata):
        file.write_bytes(b"half")
        raise store.SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr(store, "save_file", half)
    with pytest.raises(OSError, match="No space left on device; make room"):
        save_params(path, tree(1))
    assert_same(load_params(path, tree()), tree())
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]
