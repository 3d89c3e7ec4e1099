"""LoRA adapters, held or free.

An adapter has no pretrained value, but what it adds to its kernel is how far that has gone from its own. MAPS holds
this product, with the strength that the kernel has in full fine-tuning.
"""

import jax
from flax.traverse_util import flatten_dict, unflatten_dict

import maps_optax as mx
from octo_integration.config import FinetuneConfig, MapsConfig
from octo_integration.model.adapters import with_adapters
from octo_integration.state import lora
from octo_integration.state.methods import maps as of_kernels
from octo_integration.state.methods.common import Hold, Tree

HELD = {
    "product": "what each adds to its kernel",
    "init": "each factor at its start",
    "zero": "each factor at zero",
}


def held(config: FinetuneConfig, layers: mx.LayerStack, shapes: Tree) -> Hold:
    """MAPS on the adapters of `shapes`, each with the strength of its kernel; kernels without adapters are layers too.

    Their anchors are small: they stay on the device, and checkpoints keep them.
    """
    maps = config.maps
    strengths = flatten_dict(mx.strengths(with_adapters(layers), shapes, maps.lambda_max, maps.schedule))
    adapted = {"/".join((*path[:-1], "kernel")) for path in flatten_dict(lora.adapters(shapes))}
    slices = mx.slices(layers, lora.base(shapes), maps.schedule)
    return Hold(
        label=f"LoRA ({maps.adapters}), {of_kernels.label(maps)}",
        table=_table(maps, layers, shapes),
        slices=[s if s.path in adapted else s._replace(ratio=0.0) for s in slices],
        lambda_max=maps.lambda_max,
        after=mx.lora_spd(
            unflatten_dict({path: strengths[path] for path in flatten_dict(lora.split(shapes)[0])}),
            scale=config.lora.alpha / config.lora.rank,
            treatment=maps.adapters,
            max_pull=maps.max_pull,
        ),
        measured=True,
    )


def free(full: Hold, layers: mx.LayerStack, shapes: Tree) -> Hold:
    """What a method is to adapters that it does not hold.

    Args:
      full: the method's own, of the trained parameters, none of which is pretrained; its members stay in the optimizer,
        whose state a checkpoint names, and hold nothing.
    """
    slices = [s._replace(ratio=0.0) for s in mx.slices(layers, lora.base(shapes))]
    return full._replace(label="LoRA", slices=slices, lambda_max=0.0, anchored=False, anchor_memory="device")


def _table(maps: MapsConfig, layers: mx.LayerStack, shapes: Tree) -> str:
    table: dict[tuple[int, str, str], tuple[int, int, float]] = {}
    for s in mx.slices(with_adapters(layers), shapes, maps.schedule):
        if s.position is not None and s.path.endswith(lora.ADAPTERS):
            key = (s.position, s.module, s.block)
            count, size, _ = table.get(key, (0, 0, 0.0))
            table[key] = (count + s.path.endswith("lora_b"), size + s.size, maps.lambda_max * s.ratio)
    lines = [f"{'module':<10}{'layer':>7}{'adapters':>10}{'parameters':>12}{'λ':>10}"]
    for (_, module, block), (count, size, strength) in sorted(table.items()):
        lines.append(f"{module:<10}{block:>7}{count:>10}{size:>12}{strength:>10.4f}")
    held = [(count, size) for count, size, strength in table.values() if strength > 0]
    trained, frozen = (sum(leaf.size for leaf in jax.tree.leaves(part)) for part in lora.split(shapes))
    lines.append(
        f"held: {sum(count for count, _ in held)} adapters, {HELD[maps.adapters]}; "
        f"free: {trained - sum(size for _, size in held)} parameters; frozen: {frozen}"
    )
    return "\n".join(lines)
