"""Recordings of other forms as RLDS. Nothing here imports tensorflow, h5py, pyarrow or av before it is used."""

from octo_integration.convert.write import ConvertConfig, convert

__all__ = ["ConvertConfig", "convert"]
