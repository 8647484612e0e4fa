"""What a run says of itself."""

import io
import re
import time
from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import Progress as Bars
from rich.progress import TextColumn, TimeRemainingColumn

from ivdtool.cli import main
from ivdtool.config import to_toml
from ivdtool.training.loop import TrainingConfig
from ivdtool.training.progress import Progress, _TerminalProgress, terminal_progress

EPOCH = {
    "step": 20.0,
    "loss": 0.5,
    "error": 0.25,
    "found": 0.8,
    "false": 0.05,
    "shifted": 0.1,
    "median_mm": 1.5,
    "seconds": 30.0,
    "waiting_share": 0.012,
}
LINE = (
    "step 20: loss 0.5000, val found 0.800, false 0.050, shifted 0.100, median 1.50 mm; "
    "30 s, 1.2% of them waiting for data\n"
)


def tell(progress: Progress) -> None:
    progress.images(2)
    progress.image()
    progress.image()
    progress.start(10, 40)
    progress.step(11, {"loss": 0.7})
    progress.step(20, EPOCH)


def test_a_line_per_epoch_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with terminal_progress() as progress:
        tell(progress)
        progress.warn("look out")
    assert capsys.readouterr() == (LINE, "Warning: look out\n")


def test_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    tell(Progress())
    assert capsys.readouterr() == ("", "")


def test_bars_and_time_left_on_a_terminal() -> None:
    console = Console(force_terminal=True, width=100, file=io.StringIO())
    columns = TextColumn("{task.description}"), TimeRemainingColumn()
    with Bars(*columns, console=console, auto_refresh=False) as bars:
        progress = _TerminalProgress(bars)
        progress.images(2)
        progress.image()
        assert [(task.completed, task.total) for task in bars.tasks] == [(1, 2)]
        progress.start(10, 40)
        for step in (11, 12, 13):
            time.sleep(0.01)
            progress.step(step, {"loss": 0.7})
        (task,) = bars.tasks
        assert (task.description, task.completed, task.total) == ("training, loss 0.7000", 13, 40)
        assert task.time_remaining is not None


def test_the_command(
    spines: Path, spine_config: TrainingConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings, run = tmp_path / "settings.toml", tmp_path / "run"
    settings.write_text(to_toml(spine_config), encoding="utf-8")
    given = ["--data", str(spines), "-o", str(run), "--device", "cpu"]

    def train(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main(["train", *given, *arguments])
        code = int(caught.value.code or 0)
        return code, *capsys.readouterr()

    code, out, err = train("--config", str(settings), "--steps", "2", "--seed", "5")
    assert (code, err) == (0, "")
    assert re.match(r"step 2: loss \d\.\d{4}, val found ", out)
    assert out.endswith(f"figures: {run / 'metrics.csv'}, {run / 'curves.png'}\n")
    assert "seed = 5" in (run / "config.toml").read_text(encoding="utf-8")
    code, out, err = train("--resume", "-q")
    assert (code, err) == (0, "")
    assert out.startswith(str(run / "last.pt"))
    for wrong in (["--steps", "3"], ["--seed", "0"], ["--deterministic"], ["--init", "x.pt"]):
        code, _, err = train("--resume", *wrong)
        assert code == 2
        assert err.startswith("Error: --resume goes on with the run's own settings; drop ")
    given[3] = str(tmp_path / "tuned")
    code, out, err = train("--init", str(run / "best.pt"), "--steps", "1", "-q")
    assert (code, err) == (0, "")
    assert "seed = 5" in (tmp_path / "tuned" / "config.toml").read_text(encoding="utf-8")
