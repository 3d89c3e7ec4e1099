"""openpi (π0, π0.5, π0-FAST): AdamW with MAPS as one of its optimizer configs, and where θ0 lies under its FSDP rule.

    config = dataclasses.replace(config, optimizer=MapsAdamW.for_config(config.name))

openpi initialises the optimizer on the trainable parameters it has just loaded, so θ0 is the checkpoint that its weight
loader names; θ0 is part of the train state, and resumes with it.
"""

import dataclasses
import re
from typing import Any, Literal, TypeVar

import jax
import optax

import maps_optax as mx
from octo_integration.model.adapters import with_adapters

_State = TypeVar("_State")

# No λ_max was published for openpi. Each is the lowest of the paper's nearest setting (arXiv 2511.19878, Table 8).
_FAMILIES = {
    r"pi0_fast|paligemma_(?:binning|fast|vq)": 0.5,  # actions are tokens of the language model: MiniVLA-VQ
    r"pi0|pi05|paligemma_diffusion|debug": 1.5,  # actions come from a part of their own: MiniVLA-OFT
}
_LORA, _LORA_LAMBDA_MAX = r"low_mem|lora", 0.8  # OpenVLA-OFT, LoRA


@dataclasses.dataclass(frozen=True)
class MapsAdamW:
    """openpi's AdamW with MAPS behind it; meets its `OptimizerConfig`, and its command line reads the fields.

    SigLIP, its projection and Gemma are held; the action expert, though openpi's base checkpoints have pretrained it,
    the action and state projections, and LoRA adapters are free. The parameters that a LoRA config freezes never reach
    the optimizer.

    Attributes:
      lambda_max: λ of SigLIP's first layer.
      schedule: how λ falls along the stack, as in `mx.maps`.
      max_pull: upper bound of λ·r, as in `mx.maps`.
      anchor_dtype: dtype to keep θ0 in, by default its parameter's; under FSDP bfloat16 needs `anchor_shardings`.
      hold_adapters: hold Gemma's LoRA adapters too, on the product that they add to a kernel (`mx.lora_spd`), each with
        the λ that its kernel has in full fine-tuning. Without it a LoRA config holds SigLIP and its projection alone.
      b1, b2, eps, weight_decay, clip_gradient_norm: openpi's AdamW, with its defaults.
    """

    lambda_max: float = 1.0
    schedule: str = "linear"
    max_pull: float | None = None
    anchor_dtype: Literal["bfloat16", "float32"] | None = None
    hold_adapters: bool = False
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 1e-10
    clip_gradient_norm: float = 1.0

    @classmethod
    def for_config(cls, name: str) -> "MapsAdamW":
        """What to start from for the openpi config of that name, or a name with such a part, like ``my_pi05_run``.

        All families have one stack, `mx.presets.openpi`. λ_max is the paper's lowest for the setting nearest to the
        family, none having been published for openpi: 1.5 for π0 and π0.5, 0.5 for π0-FAST, and 0.8 with the adapters
        held where the name says LoRA (``low_mem``).

        Raises:
          ValueError: the name tells no family.
        """
        for family, lambda_max in _FAMILIES.items():
            if _has(family, name):
                lora = _has(_LORA, name)
                return cls(_LORA_LAMBDA_MAX if lora else lambda_max, hold_adapters=lora)
        raise ValueError(
            f"no family of openpi (pi0, pi05, pi0_fast) is in the config name {name!r}; use MapsAdamW(lambda_max=...)."
        )

    def create(
        self, lr: optax.ScalarOrSchedule, weight_decay_mask: Any = None
    ) -> optax.GradientTransformationExtraArgs:
        """The transformation: clipping, AdamW, MAPS.

        Args:
          lr: learning rate or schedule.
          weight_decay_mask: as of `optax.adamw`.

        Returns:
          A transformation for three-argument `update`, whose state is a tuple of the members' states.

        Raises:
          ValueError: as `mx.maps` does; at `init`, there are no adapters for `hold_adapters`, so switch it off.
        """
        stack = mx.presets.openpi()
        members = [
            optax.clip_by_global_norm(self.clip_gradient_norm),
            optax.adamw(lr, self.b1, self.b2, self.eps, weight_decay=self.weight_decay, mask=weight_decay_mask),
            mx.maps(stack, self.lambda_max, self.schedule, max_pull=self.max_pull, anchor_dtype=self.anchor_dtype),
        ]
        if self.hold_adapters:
            held = with_adapters(stack)
            members.append(
                mx.lora_spd(
                    lambda params: mx.strengths(held, params, self.lambda_max, self.schedule),
                    max_pull=self.max_pull,
                )
            )
        return mx.chain(*members)


def anchor_shardings(state_sharding: _State) -> _State:
    """The shardings of a train state, with θ0 where its parameters are.

    openpi's rule shards what has 4 MiB or more, so a bfloat16 θ0 can be left whole where its float32 parameter is
    split. One line in `init_train_state`, after `fsdp_sharding`:

        state_sharding = anchor_shardings(state_sharding)

    Args:
      state_sharding: an openpi `TrainState` of shardings. Without MAPS in its optimizer it is returned as it is.
    """
    params: Any = state_sharding.params  # type: ignore[attr-defined]
    placed = {jax.tree_util.keystr(path): s for path, s in jax.tree_util.tree_flatten_with_path(params)[0]}

    def place(node: Any) -> Any:
        if not isinstance(node, mx.SPDState):
            return node
        anchor = jax.tree_util.tree_map_with_path(lambda path, _: placed[jax.tree_util.keystr(path)], node.anchor)
        return node._replace(anchor=anchor)

    # Not `dataclasses.replace`, which would make openpi check that the fields hold arrays.
    return jax.tree_util.tree_map(place, state_sharding, is_leaf=lambda node: isinstance(node, mx.SPDState))


def _has(part: str, name: str) -> bool:
    return re.search(rf"(?:^|_)(?:{part})(?:_|$)", name) is not None
