"""Episode -> windows: one sample per step, with the observations before and the actions after."""

from typing import Any

from octo_integration.data._tf import tf
from octo_integration.data.standardize import Episode


def windows(episode: Episode, window: int, chunk: int) -> dict[str, Any]:
    """Cuts a standardised episode of N steps into N samples, as Octo does.

    Before the first step the first observation is repeated, past the last step the last action;
    the masks say so.

    Returns:
      {"observation": {<key>: [N, window, ...], "timestep_pad_mask": bool[N, window]},
       "task": {"instruction": string[N]}, "action": f32[N, chunk, A],
       "action_pad_mask": bool[N, chunk, A]}; in both masks True marks what is real.
    """
    length = tf.shape(episode["action"])[0]
    now = tf.range(length)[:, None]
    past = now + tf.range(1 - window, 1)
    future = now + tf.range(chunk)
    observation = {key: tf.gather(value, tf.maximum(past, 0)) for key, value in episode["observation"].items()}
    return {
        "observation": {**observation, "timestep_pad_mask": past >= 0},
        "task": episode["task"],
        "action": tf.gather(episode["action"], tf.minimum(future, length - 1)),
        "action_pad_mask": tf.repeat((future < length)[..., None], tf.shape(episode["action"])[1], axis=2),
    }
