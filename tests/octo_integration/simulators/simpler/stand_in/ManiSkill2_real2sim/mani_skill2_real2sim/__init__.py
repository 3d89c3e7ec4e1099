from pathlib import Path

ASSET_DIR = Path(__file__).parents[1] / "data"
