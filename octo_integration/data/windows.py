"""Episode -> windows: one sample per step, with the observations before and the actions after."""

from typing import Any

from octo_integration.data.standardize import Episode
from octo_integration.data.tf import tf


def windows(episode: Episode, window: int, chunk: int, later: Any) -> dict[str, Any]:
    """Cuts a standardised episode of N steps into N samples, as Octo does.

    The actions of a sample begin at the first timestep of its window: those from its timestep t on are action[t:].
    Before the first step of the episode its first observation and action are repeated, past the last step the last
    action; the masks say so.

    Args:
      later: f32[N] in [0, 1) tells which of the later steps is each sample's goal (0: the next, almost 1: the last; of
        the last step, it is that step itself); None: there are no goals.

    Returns:
      {"observation": {<key>: [N, window, ...], "timestep_pad_mask": bool[N, window]},
       "task": {"instruction": string[N], with goals <image>: [N, ...]}, "action": f32[N, window - 1 + chunk, A],
       "action_pad_mask": bool[N, window - 1 + chunk, A]}; in both masks True marks what is real.
    """
    length = tf.shape(episode["action"])[0]
    now = tf.range(length)[:, None]
    past = now + tf.range(1 - window, 1)
    acted = now + tf.range(1 - window, chunk)
    observation = {key: tf.gather(value, tf.maximum(past, 0)) for key, value in episode["observation"].items()}
    task = episode["task"]
    if later is not None:
        left = tf.cast(length - 1 - tf.range(length), tf.float32)
        goal = tf.minimum(tf.range(length) + 1 + tf.cast(later * left, tf.int32), length - 1)
        images = {name: value for name, value in episode["observation"].items() if name.startswith("image_primary")}
        task = {**task, **{name: tf.gather(value, goal) for name, value in images.items()}}
    return {
        "observation": {**observation, "timestep_pad_mask": past >= 0},
        "task": task,
        "action": tf.gather(episode["action"], tf.clip_by_value(acted, 0, length - 1)),
        "action_pad_mask": tf.repeat(
            ((acted >= 0) & (acted < length))[..., None], tf.shape(episode["action"])[1], axis=2
        ),
    }
