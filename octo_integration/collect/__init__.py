"""Simulators as a source of demonstrations and frames. Nothing here imports one or tensorflow before it is used."""

from octo_integration.collect.demonstrations import CollectConfig, collect
from octo_integration.collect.frames import render_frames

__all__ = ["CollectConfig", "collect", "render_frames"]
