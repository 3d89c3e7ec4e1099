"""This project's own model, `octo_integration.model`."""

from maps_optax._layers import LayerStack

_TOWERS = ("dinov2", "siglip", "clip", "stem")
_FREE = (r"readout/", r"action_head/", r"proprio_projector/", r"task_projector/", r"image_source/", r".*lora_[ab]$")


def vla(variant: str = "paper") -> LayerStack:
    """The stack of `octo_integration`'s VLA: towers → T5 → bridge → language; readouts, heads, proprio, LoRA free.

    A model has some of the modules: DINOv2, SigLIP, CLIP or a convolutional stem see, T5 may read the instruction.
    Their blocks are stacked leaves (`blocks/...`) or leaves of their own (`blocks_3/...`).

    Args:
      variant: ``"paper"`` follows the formula, ``"released"`` the script of the paper's authors; see `prismatic`.

    Raises:
      ValueError: another variant.
    """
    blocks = {
        name: {rf"{name}/blocks/": "stacked", rf"{name}/blocks_(\d+)/": "block"}
        for name in (*_TOWERS, "t5", "language")
    }
    if variant == "paper":
        modules = {
            **{
                name: {
                    **blocks[name],
                    rf"{name}/norm/": "last",
                    rf"{name}/": "first",
                }
                for name in (*_TOWERS, "t5")
            },
            "bridge": {r"bridge/": "first"},
            "language": {
                **blocks["language"],
                r"language/(?:norm|lm_head)/": "last",
                r"language/embed/": "first",
            },
        }
        free: tuple[str, ...] = _FREE
    elif variant == "released":
        rest = rf"(?:{'|'.join(_TOWERS)}|t5|bridge|language)/"
        modules = {**blocks, "unnumbered": {rest: "first"}}
        free = (*_FREE, r".*/bias$")
    else:
        raise ValueError(f"presets.vla: variant is {variant!r}; use 'paper' or 'released'.")
    return LayerStack(
        modules,
        free=free,
        optional=(*free, *(pattern for rules in modules.values() for pattern in rules)),
        tail=1 if variant == "released" else 0,
    )
