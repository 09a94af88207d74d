"""What a training run shows: a progress bar on a terminal, a line an epoch everywhere."""

from __future__ import annotations

from types import TracebackType

__all__ = ["TrainProgress"]


class TrainProgress:
    """A bar with loss, learning rate and time left over all steps of a run.

    Args:
        epochs: Number of epochs.
        steps: Steps of one epoch.
        first: First epoch, when a run is resumed.
        hidden: Show nothing: another process does.
    """

    def __init__(self, epochs: int, steps: int, first: int = 0, hidden: bool = False):
        from rich import progress as rich

        self.epochs, self.steps, self.hidden = epochs, steps, hidden
        self._bar = rich.Progress(
            rich.TextColumn("epoch {task.fields[epoch]}"),
            rich.BarColumn(),
            rich.MofNCompleteColumn(),
            rich.TextColumn("loss {task.fields[loss]:.4f}  lr {task.fields[lr]:.1e}  left"),
            rich.TimeRemainingColumn(),
            transient=True,
        )
        self._moves = not hidden and self._bar.console.is_interactive  # in a pipe it would leave an empty line
        self._task = self._bar.add_task(
            "", total=epochs * steps, completed=first * steps, epoch=f"{first + 1}/{epochs}", loss=0.0, lr=0.0
        )

    def __enter__(self) -> TrainProgress:
        if self._moves:
            self._bar.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._moves:
            self._bar.stop()

    def step(self, epoch: int, step: int, loss: float, lr: float) -> None:
        """Shows where a run is; all counts from 0."""
        done = epoch * self.steps + step + 1
        self._bar.update(self._task, completed=done, epoch=f"{epoch + 1}/{self.epochs}", loss=loss, lr=lr)

    def epoch(self, epoch: int, loss: float, scores: dict[str, float]) -> None:
        """Prints the line of an epoch."""
        if self.hidden:
            return
        tail = f"  val loss {scores['loss']:.4f}  val macro AUC {scores['macro_auc']:.4f}" if scores else ""
        self._bar.console.print(f"epoch {epoch + 1}/{self.epochs}  loss {loss:.4f}{tail}", highlight=False)
