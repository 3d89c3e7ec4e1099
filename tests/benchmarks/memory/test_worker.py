"""The two counts of bytes agree: what the shapes say is what is live, and what the compiled step takes."""

import jax

from benchmarks.memory import worker
from octo_integration.config import MapsConfig, MeshConfig, OptimizerConfig
from octo_integration.state import sharding
from tests.octo_integration import micro


def test_live_bytes_are_those_of_the_shapes_and_of_the_programs_arguments():
    machine = micro.machine(OptimizerConfig(), MapsConfig(anchor_dtype="bfloat16"))
    at = sharding.batch_sharding(sharding.make_mesh(MeshConfig(), jax.devices()[:1]))
    samples = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), micro.batch(0))
    step = machine.step.lower(machine.like, samples).compile()
    shapes = {
        name: sum(map(worker.shard_bytes, leaves)) for name, leaves in worker.components(machine.like, samples).items()
    }
    live = worker.running(step, machine.tx, machine.like, samples)["live"]
    program, unread = worker.program(step), worker.unread(step, (machine.like, samples))

    others = ("other", "metrics")  # arrays of other tests are among them
    assert {n: x for n, x in live.items() if n not in others} == {n: x for n, x in shapes.items() if n not in others}
    assert shapes["moments"] == 2 * shapes["parameters"] > 4 * shapes["anchor"] > 0
    assert program["arguments"] + unread == sum(shapes.values())
    assert program["donated"] + unread == sum(shapes.values()) - shapes["batch"]
