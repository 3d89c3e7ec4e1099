"""Checkpoints without θ0: it is the published checkpoint already, so 12 bytes per leaf stand in for it.

python examples/04_checkpoints.py
"""

import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp

import maps_optax as mx

pretrained = {"kernel": jax.random.normal(jax.random.key(0), (256, 256)), "bias": jnp.zeros(256)}
tx = mx.chain(optax.adam(1e-2), mx.spd(1.0))


@jax.jit
def step(params, opt_state, key):
    """One step of anything."""
    grads = jax.tree.map(lambda p: p + 0.1 * jax.random.normal(key, p.shape), params)
    updates, opt_state = tx.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state


params, opt_state = pretrained, tx.init(pretrained)
for i in range(5):
    params, opt_state = step(params, opt_state, jax.random.key(i))

directory = Path(tempfile.mkdtemp()) / "checkpoint"
checkpointer = ocp.StandardCheckpointer()

# Save: what is written has no θ0.
saved = {"params": params, "opt_state": mx.detach_anchor(opt_state)}
checkpointer.save(directory, saved)
checkpointer.wait_until_finished()
print(f"{sum(x.nbytes for x in jax.tree.leaves((params, opt_state))):,} bytes of state,", end=" ")
print(f"{sum(x.nbytes for x in jax.tree.leaves(saved)):,} of them saved")

# Restore: the target to restore into, by shapes alone; then θ0 from the pretrained weights, checked bit by bit.
target = jax.eval_shape(lambda p: {"params": p, "opt_state": mx.detach_anchor(tx.init(p))}, pretrained)
restored = checkpointer.restore(directory, target)
resumed = mx.attach_anchor(restored["opt_state"], pretrained)
same = jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), resumed, opt_state))
print("the state is as it was, bit for bit:", same)

# Other weights are refused, by the name of a leaf.
try:
    mx.attach_anchor(restored["opt_state"], {**pretrained, "bias": pretrained["bias"] + 1e-6})
except ValueError as error:
    refusal = str(error)
    print(refusal)
