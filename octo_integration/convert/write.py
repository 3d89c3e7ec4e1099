"""Recordings of other forms as an RLDS data set: one episode after the other, several at once, each checked."""

import dataclasses
import io
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import quote

import numpy as np
from tqdm import tqdm

import maps_optax
from octo_integration.collect import resume
from octo_integration.collect.parallel import parallel_map
from octo_integration.common import limits
from octo_integration.common.limits import check_limits
from octo_integration.convert.episode import Episode, Key, Reader, target
from octo_integration.convert.folders import NPZ, ROBOMIMIC
from octo_integration.convert.lerobot import LEROBOT
from octo_integration.data.mapping import to_json
from octo_integration.data.proposal import Leaf, propose

READERS: dict[str, Reader] = {"lerobot": LEROBOT, "hdf5": ROBOMIMIC, "npz": NPZ}
# 4:4:4: half the colour resolution would smear what is a few pixels large.
ENCODINGS: dict[str, dict[str, Any]] = {"jpeg": {"quality": 95, "subsampling": 0}, "png": {}}
MAY_CHANGE = {"out", "workers", "dry_run", "skip"}  # of what was begun
UNTOLD = "no instruction"
TOLD, NAMED = 3, 50  # episodes whose faults are told, and whose names are, in one line
SHOWN = 12  # names of fields


@dataclasses.dataclass(frozen=True)
class ConvertConfig:
    """Writes recordings as an RLDS data set, which finetune reads: a LeRobot data set (v2.1, v3.0), a folder of HDF5
    files as robomimic and LIBERO have them (data/demo_0/actions, data/demo_0/obs/...), or a folder of .npz episodes.

    maps-vla convert --source my_lerobot_set --out data/arm/1.0.0 --dry-run
    maps-vla convert --source my_lerobot_set --out data/arm/1.0.0 --workers 4

    The same command goes on where it was stopped. What is wrong with an episode is said by its name, before anything
    is written where it is not its pictures; --skip leaves it out.
    """

    source: str
    """Directory with meta/info.json (LeRobot), with .hdf5 or .h5 files, or with .npz files of one episode each."""
    out: str
    """Directory to make; it will hold dataset_info.json and is what data.path takes."""
    images: Literal["jpeg", "png"] = "jpeg"
    """How images are stored: jpeg (quality 95), or png, which keeps every pixel and takes several times the room."""
    instruction: str = ""
    """What episodes without an instruction of their own are told."""
    skip: tuple[str, ...] = ()
    """Episodes to leave out, by the names that messages give them."""
    turn_images: bool = False
    """Turns all images by 180 degrees; the HDF5 files that LIBERO publishes need it."""
    workers: int = 2
    """Processes."""
    dry_run: bool = False
    """Writes nothing: examines all episodes, and prints which field becomes what, and the first step."""

    def __post_init__(self) -> None:
        """Refuses numbers that make no sense."""
        check_limits(self, {"workers": limits.AT_LEAST_1})


class Field(NamedTuple):
    """What the first episode decides of a source's field: an image's shape [H, W, 3], or a vector's [n]."""

    path: str
    kind: str
    shape: tuple[int, ...]


class Plan(NamedTuple):
    """What a config comes to: the reader's name, {name: key} of the episodes and {source's field: what it becomes}."""

    kind: str
    episodes: dict[str, Key]
    fields: dict[str, Field]
    left_out: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class _Job:
    config: ConvertConfig
    plan: Plan  # without its episodes
    name: str
    key: Key
    file: Path


def convert(config: ConvertConfig) -> Path:
    """Writes the data set, reads it back and compares it bit for bit with what was to be written.

    Returns:
      The directory, for DataConfig.path.

    Raises:
      FileExistsError: it is there already.
      FileNotFoundError, ValueError: the source cannot be read, or an episode is not fit for use; names it.
      OSError: the disk is full; converted episodes are kept beside `out`.
      ChildProcessError: a worker died.
    """
    from octo_integration.collect.writer import check_new, new_dataset  # tensorflow, which the workers do without
    from octo_integration.convert.rlds import check_same, digest, rlds_features

    out = Path(config.out)
    check_new(out)
    plan = plan_of(config)
    examine(config, plan)
    options = dataclasses.asdict(config) | {"fields": plan.fields, "version": maps_optax.__version__}
    parts = {name: value for name, value in options.items() if name not in MAY_CHANGE}
    digests: list[str] = []
    untold: list[str] = []
    with new_dataset(
        out,
        name=out.parent.name if out.name.replace(".", "").isdigit() else out.name,
        description=f"Converted by maps-vla convert from {plan.kind}.",
        features=rlds_features(plan.fields, config.images),
        splits=("train",),
        expected_bytes=sum(file.stat().st_size for file in Path(config.source).rglob("*") if file.is_file()),
        check=lambda directory: check_same(directory, digests),
    ) as add:
        with resume.parts(out, parts) as folder:
            shared = plan._replace(episodes={})
            jobs = [
                _Job(config, shared, name, key, folder / f"{quote(name, safe='')}.json")
                for name, key in plan.episodes.items()
            ]
            missing = [job for job in jobs if not job.file.exists()]
            if len(missing) < len(jobs):
                print(f"{len(jobs) - len(missing)} of {len(jobs)} episodes are converted already", flush=True)
            for _ in parallel_map(_write, missing, workers=config.workers, label="convert", unit="episode"):
                pass
            for job in jobs:
                example = resume.read(job.file)
                digests.append(digest(example))
                untold += [] if all(step["language_instruction"] for step in example["steps"]) else [job.name]
                add({"train": [example]})
    if untold:
        print(f"{len(untold)} episodes have steps with {UNTOLD}, {untold[0]} the first; --instruction gives one.")
    return out


def plan_of(config: ConvertConfig) -> Plan:
    """What will be converted, and how; the first episode decides.

    Raises:
      FileNotFoundError, ValueError: as `convert`.
    """
    source = Path(config.source)
    if not source.is_dir():
        raise FileNotFoundError(f"convert: there is no directory {source}; give one with recordings.")
    kind = next((name for name, reader in READERS.items() if reader.finds(source)), None)
    if kind is None:
        raise ValueError(
            f"convert: {source} has no meta/info.json (LeRobot), no .hdf5 or .h5 and no .npz files; give the directory "
            "that has."
        )
    episodes = dict(READERS[kind].episodes(source))
    for name in config.skip:
        if name not in episodes:
            near = ", ".join([*episodes][:3])
            raise ValueError(f"convert: skip names {name!r}, but {source} has no such episode; it has {near}, ...")
        del episodes[name]
    if not episodes:
        raise ValueError(f"convert: {source} has no episodes; give a directory that has.")
    name, key = next(iter(episodes.items()))
    with READERS[kind].opened(source, key) as first:
        return Plan(kind, episodes, _fields(first, f"{source}: {name}"), first.left_out)


def _fields(episode: Episode, name: str) -> dict[str, Field]:
    found = {field: Field(target(field), "vector", _size(values)) for field, values in episode.vectors.items()}
    for field, pictures in episode.images.items():
        frame = next(pictures.read(), None)
        if frame is None:
            raise ValueError(f"convert: {name}: {field} has no frame; --skip this episode.")
        found[field] = Field(target(field), "image", frame.shape)
    paths = [field.path for field in found.values()]
    names = [*found, *episode.left_out]
    there = ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
    if "action" not in paths:
        raise ValueError(f"convert: {name} has no action or actions, but {there}; name it so.")
    for needed in ("image", "vector"):
        if not any(f.kind == needed and f.path != "action" for f in found.values()):
            what = {"image": "camera", "vector": "state"}[needed]
            raw = "; states are a simulator's: let robomimic or LIBERO render what a robot sees of them"
            raise ValueError(
                f"convert: {name} has no {what} beside the action, but {there}; a model needs one"
                f"{raw if 'states' in episode.left_out else ''}."
            )
    for path in paths:
        if paths.count(path) > 1:
            twice = " and ".join(field for field, use in found.items() if use.path == path)
            raise ValueError(f"convert: {name}: {twice} would both become {path}; rename one.")
    return found


def _size(values: np.ndarray) -> tuple[int, ...]:
    return values.shape[1:] or (1,)


def _write(job: _Job) -> None:
    """Writes an episode's part. Runs in a worker."""
    with READERS[job.plan.kind].opened(Path(job.config.source), job.key) as episode:
        example = example_of(episode, job.plan.fields, job.name, job.config)
    resume.write(job.file, example)


def example_of(episode: Episode, fields: Mapping[str, Field], name: str, config: ConvertConfig) -> dict[str, Any]:
    """The RLDS record of an episode: steps, images encoded, and its name.

    Raises:
      ValueError: a field is missing, of another length or shape, empty, or not finite; names episode and field.
    """
    check(episode, fields, name)
    columns: dict[str, list[Any]] = {}
    for field, use in fields.items():
        if use.kind == "image":
            columns[use.path] = list(_encoded(episode, field, use, name, config))
        else:
            columns[use.path] = list(_exact(episode.vectors[field], field, name).reshape(-1, *use.shape))
    last = len(columns["action"]) - 1
    told = episode.instruction
    instructions = [told] * (last + 1) if isinstance(told, str) else told
    steps = [
        {
            "observation": {
                path.removeprefix("observation/"): values[t] for path, values in columns.items() if path != "action"
            },
            "action": columns["action"][t],
            "language_instruction": instructions[t].strip() or config.instruction,
            "is_first": t == 0,
            "is_last": t == last,
            "is_terminal": t == last,
        }
        for t in range(last + 1)
    ]
    return {"steps": steps, "episode_metadata": {"source": name}}


def examine(config: ConvertConfig, plan: Plan) -> None:
    """Looks at all of every episode but its pictures: seconds or minutes, where what follows may take hours.

    Raises:
      ValueError: some are not fit for use; names them, in one line.
    """
    bad: dict[str, str] = {}
    for name, key in tqdm(plan.episodes.items(), desc="examine", unit="episode", leave=False):
        try:
            with READERS[plan.kind].opened(Path(config.source), key) as episode:
                check(episode, plan.fields, name)
        except ValueError as error:
            bad[name] = str(error)
    if len(bad) == 1:
        raise ValueError(*bad.values())
    if bad:
        said = [text.removeprefix("convert: ").rsplit("; ", 1)[0] for text in bad.values()]
        more = f"; and {len(said) - TOLD} more" if len(said) > TOLD else ""
        names = " ".join(map(shlex.quote, [*bad][:NAMED])) + (" ..." if len(bad) > NAMED else "")
        raise ValueError(
            f"convert: {len(said)} of {len(plan.episodes)} episodes are not fit for use: "
            f"{'; '.join(said[:TOLD])}{more}; repair them, or leave them out: --skip {names}"
        )


def check(episode: Episode, fields: Mapping[str, Field], name: str) -> None:
    """Raises ValueError where an episode is not as the first one was, or cannot be learnt from; reads no picture."""
    remedy = "repair it, or leave it out by --skip."
    lengths = {field: len(values) for field, values in episode.vectors.items() if field in fields}
    lengths |= {field: pictures.number for field, pictures in episode.images.items() if field in fields}
    for field, use in fields.items():
        found = episode.vectors if use.kind == "vector" else episode.images
        if field not in found:
            why = f" that can be used ({episode.left_out[field]})" if field in episode.left_out else ""
            raise ValueError(f"convert: {name} has no {field}{why}, which the first episode has; {remedy}")
        shape = _size(episode.vectors[field]) if use.kind == "vector" else episode.images[field].shape
        if shape is not None and shape != use.shape:
            raise ValueError(
                f"convert: {name}: {field} is of shape {shape}, in the first episode {use.shape}; {remedy}"
            )
    if not isinstance(episode.instruction, str):
        lengths["instruction"] = len(episode.instruction)
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{count} {field}" for field, count in lengths.items())
        raise ValueError(f"convert: {name} has steps of different numbers: {told}; {remedy}")
    if not all(lengths.values()):
        raise ValueError(f"convert: {name} has no steps; leave it out by --skip.")
    for field, values in episode.vectors.items():
        if field in fields and not np.isfinite(values).all():
            step, *entry = map(int, np.argwhere(~np.isfinite(values))[0])
            at = f"step {step}: {field}{entry or ''}"
            raise ValueError(f"convert: {name}, {at} is {values[(step, *entry)]}; {remedy}")
        if field in fields:
            _exact(values, field, name)


def _exact(values: np.ndarray, field: str, name: str) -> np.ndarray:
    """As float32, which integers must fit into and floats may be rounded to."""
    floats = values.astype(np.float32)
    if not np.isfinite(floats).all() or (values.dtype.kind in "iu" and (floats != values).any()):
        raise ValueError(
            f"convert: {name}: {field} has numbers that float32 does not hold; scale it, or leave it out by --skip."
        )
    return floats


def _encoded(episode: Episode, field: str, use: Field, name: str, config: ConvertConfig) -> Iterator[bytes]:
    for step, frame in enumerate(episode.images[field].read()):
        if frame.shape != use.shape:
            raise ValueError(
                f"convert: {name}, step {step}: {field} is of shape {frame.shape}, in the first episode {use.shape}; "
                "leave it out by --skip."
            )
        yield encode(frame[::-1, ::-1] if config.turn_images else frame, config.images)


def encode(image: np.ndarray, encoding: str) -> bytes:
    """uint8[H, W, 3] as JPEG or PNG."""
    import PIL.Image

    buffer = io.BytesIO()
    PIL.Image.fromarray(np.ascontiguousarray(image)).save(buffer, encoding.upper(), **ENCODINGS[encoding])
    return buffer.getvalue()


def describe(config: ConvertConfig, plan: Plan) -> str:
    """What --dry-run prints: every field, the mapping that finetune will take, and the first step."""
    with READERS[plan.kind].opened(Path(config.source), next(iter(plan.episodes.values()))) as first:
        frames = {field: next(first.images[field].read()) for field, use in plan.fields.items() if use.kind == "image"}
        values = {field: first.vectors[field][0] for field, use in plan.fields.items() if use.kind == "vector"}
        told = first.instruction if isinstance(first.instruction, str) else next(iter(first.instruction), "")
    width = max(map(len, [*plan.fields, *plan.left_out]))
    lines = [f"{config.source}: {plan.kind}, {len(plan.episodes)} episodes", "", "fields:"]
    for field, use in plan.fields.items():
        form = f"{config.images}{list(use.shape)}" if use.kind == "image" else f"float32{list(use.shape)}"
        lines.append(f"  {field:<{width}}  -> steps/{use.path}  {form}")
    lines += [f"  {field:<{width}}  left out: {why}" for field, why in plan.left_out.items()]
    leaves = {use.path: Leaf(use.kind, use.shape[0]) for use in plan.fields.values()}
    lines += ["", "mapping:", to_json(propose(leaves | {"language_instruction": Leaf("text", 0)})), "first step:"]
    for field, value in values.items():
        lines.append(f"  {field:<{width}}  {np.array2string(np.atleast_1d(value), precision=3, max_line_width=200)}")
    for field, frame in frames.items():
        lines.append(f"  {field:<{width}}  mean colour {np.round(frame.mean((0, 1))).astype(int).tolist()}")
    lines.append(f"  {'instruction':<{width}}  {told or config.instruction or UNTOLD}")
    return "\n".join(lines)
