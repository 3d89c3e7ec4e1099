"""This project's own model, `octo_integration.model`."""

from maps_optax._layers import LayerStack


def vla() -> LayerStack:
    """The stack of `octo_integration`'s VLA: DINOv2 → SigLIP → bridge → language; readouts, heads and proprio free."""

    def tower(name: str) -> dict[str, str]:
        return {
            rf"{name}/(?:patch_embed/|pos_embed$|cls_token$|register_tokens$)": "first",
            rf"{name}/blocks/": "stacked",
            rf"{name}/norm/": "last",
        }

    return LayerStack(
        {
            "dinov2": tower("dinov2"),
            "siglip": tower("siglip"),
            "bridge": {r"bridge/": "first"},
            "language": {
                r"language/embed/": "first",
                r"language/blocks/": "stacked",
                r"language/norm/": "last",
            },
        },
        free=(r"readout/", r"action_head/", r"proprio_projector/"),
    )
