"""How a search is shown: a line for each trial, with the best so far and the time left."""

from __future__ import annotations

from collections.abc import Sequence

from halfmeg.cli.progress import TrainingDisplay, duration
from halfmeg.cli.show import print_error
from halfmeg.config import RunConfig
from halfmeg.places.place import short_name
from halfmeg.search.lanes import SearchListener
from halfmeg.search.page import best_so_far
from halfmeg.search.record import Trial
from halfmeg.search.state import Search
from halfmeg.training.listen import Listener


class SearchDisplay(SearchListener):
    """Prints a line for each trial, and shows the run under way."""

    def __init__(self, search: Search, display: TrainingDisplay, *, quiet: bool) -> None:
        self.search, self.display, self.quiet = search, display, quiet

    def on_begin(self, configs: Sequence[RunConfig]) -> None:
        """Print what is to be known of the runs before they are trained."""
        self.display.tell(configs)

    def of_run(self, config: RunConfig) -> Listener:
        """Return the display of a run in this process."""
        return Listener() if self.quiet else self.display(config)

    def on_note(self, text: str) -> None:
        """Print it."""
        if not self.quiet:
            print_error(f"halfmeg: {text}")

    def on_trial(self, trial: Trial) -> None:
        """Print how far it has come, the best so far with its interval, and the time left."""
        if self.quiet or trial.config is None:
            return
        self.display.tell(())  # not yet where a cluster trains
        reached = "" if trial.accuracy is None else f" {trial.accuracy:.1%}"
        told = f": {trial.error}" if trial.error else ""
        again = "" if trial.repeats is None else f" (trial {trial.repeats} again)"
        line = (
            f"trial {trial.number}{again}  {short_name(trial.config.model)}  epoch {trial.epochs}/"
            f"{trial.config.epochs}{reached}  {trial.outcome}{told}"
        )
        if (best := best_so_far(self.search)) is not None:
            interval = best[1]
            assert interval.lo is not None
            assert interval.hi is not None
            line += (
                f"  ·  best {interval.mean:.1%} ({100 * interval.lo:.1f} to "
                f"{100 * interval.hi:.1f}%), trial {best[0].number}"
            )
        left = max(0.0, self.search.stored.seconds - self.search.clock.spent())
        print_error(f"{line}  ·  {duration(left)} left")
