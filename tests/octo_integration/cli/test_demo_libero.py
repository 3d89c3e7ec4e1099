"""The demonstration in LIBERO does what is still to do, in order; its parts are tested where they are."""

from pathlib import Path
from typing import Any

import pytest

from octo_integration.cli import commands, demo_libero
from octo_integration.evaluate.rollout import Rollout, check_rollout
from octo_integration.model.sizes import CONFIGS
from octo_integration.model.tokenizer import load_tokenizer
from octo_integration.train.loop import Outcome

WORDS = (  # of its tasks
    "pick up the black bowl between the plate and the ramekin and place it on the plate",
    "pick up the black bowl from table center and place it on the plate",
    "pick up the black bowl on the ramekin and place it on the plate",
)


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was done, with its config."""
    calls: list[Any] = []

    def collect(config: Any) -> None:
        calls.append(config)
        Path(config.out).mkdir(parents=True)

    def finetune(config: Any) -> Outcome:
        calls.append(config)
        return Outcome(config.optimizer.steps, signals.pop(0) if signals else None, {})

    def evaluate(config: Any) -> int:
        calls.append(config)
        return 0

    monkeypatch.setattr(demo_libero, "collect", collect)
    monkeypatch.setattr(demo_libero, "finetune", finetune)
    monkeypatch.setattr(demo_libero.evaluate, "run", evaluate)
    return calls


signals: list[int] = []


def test_it_goes_on_where_it_was_stopped(done: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["demo", "--simulator", "libero", "--out", str(tmp_path), "--steps", "9", "--lambda-max", "2"]
    signals.append(15)
    assert commands.main(command) == 128 + 15
    assert [type(config).__name__ for config in done] == ["CollectConfig", "FinetuneConfig"]
    assert commands.main(command) == 0
    demonstrations, first, again, acting = done
    assert first == again and type(acting) is demo_libero.evaluate.Options
    assert first.data.path == demonstrations.out and first.data.image_size == demonstrations.image_size
    assert (first.optimizer.steps, first.maps.lambda_max) == (9, 2)
    assert acting.run == first.out and acting.tasks == demonstrations.tasks
    assert acting.execute <= first.data.chunk
    check_rollout(acting.tasks, "none", Rollout("libero"), episodes=acting.episodes)
    longer, more = (line.partition("maps-vla ")[2].split() for line in capsys.readouterr().out.splitlines()[-2:])
    run = commands._parse("finetune", commands.COMMANDS["finetune"], longer[1:])
    assert (run.data, run.instruction_length) == (first.data, first.instruction_length)
    assert longer[0] == "finetune" and run.optimizer.steps > first.optimizer.steps
    assert commands.main(more) == 0 and (done[-1].run, done[-1].tasks) == (run.out, acting.tasks)


def test_there_are_enough_demonstrations_and_their_words_are_read_whole(caplog: pytest.LogCaptureFixture) -> None:
    made = demo_libero.collect_config(Path("x"))
    assert made.tasks is not None and len(made.tasks) == len(WORDS) >= 3 and made.episodes_per_task >= 15
    tiny = CONFIGS["tiny"]
    encode = load_tokenizer(tiny.tokenizer, demo_libero.INSTRUCTION_LENGTH, tiny.prompt, tiny.language.vocabulary)
    tokens, _ = encode(WORDS)
    assert len({tuple(row) for row in tokens}) == len(WORDS) and not caplog.messages
