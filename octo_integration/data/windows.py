"""Episode -> windows: one sample per step, with the observations before and the actions after."""

from typing import Any

from octo_integration.data._tf import tf
from octo_integration.data.standardize import Episode


def windows(episode: Episode, window: int, chunk: int, later: Any) -> dict[str, Any]:
    """Cuts a standardised episode of N steps into N samples, as Octo does.

    Before the first step the first observation is repeated, past the last step the last action;
    the masks say so.

    Args:
      later: f32[N] in [0, 1) tells which of the later steps is each sample's goal (0: the next, almost 1: the last; of
        the last step, it is that step itself); None: there are no goals.

    Returns:
      {"observation": {<key>: [N, window, ...], "timestep_pad_mask": bool[N, window]},
       "task": {"instruction": string[N], with goals <image>: [N, ...]}, "action": f32[N, chunk, A],
       "action_pad_mask": bool[N, chunk, A]}; in both masks True marks what is real.
    """
    length = tf.shape(episode["action"])[0]
    now = tf.range(length)[:, None]
    past = now + tf.range(1 - window, 1)
    future = now + tf.range(chunk)
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
        "action": tf.gather(episode["action"], tf.minimum(future, length - 1)),
        "action_pad_mask": tf.repeat((future < length)[..., None], tf.shape(episode["action"])[1], axis=2),
    }
