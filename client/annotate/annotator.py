"""One video of a corpus to its results, wherever both are: an idempotent unit of work.

A video that is done, of the same state, options and model, is left; any other is analysed aside, and its files appear
whole, the record of what they were made from last.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from affserve.client.annotate.places import Results, is_address, opened
from affserve.client.client import AffectClient
from affserve.client.infer.output_paths import OutputPaths
from affserve.client.infer.run_record import ModelRecord
from affserve.client.infer.work import Analyst, Outcome, WorkSettings
from affserve.client.results.metadata import metadata_path
from affserve.client.video.source import FrameSource, Progress
from affserve.train.errors import OutputError, VideoError


@dataclass(frozen=True, kw_only=True)
class CorpusSettings(WorkSettings):
    """What is asked of every video of a corpus."""

    results: Results

    def analyst(self, client: AffectClient, model: ModelRecord) -> Analyst:
        """Return who does the work."""
        return Annotator(self, client, model)


class Annotator(Analyst):
    """Analyses videos that may have to be fetched, into places that may have to be sent to."""

    _settings: CorpusSettings

    def analyse(
        self, source: FrameSource | Path | str, outputs: OutputPaths, progress: Progress | None = None
    ) -> Outcome:
        """Analyse a video; outputs: below the folder of all results."""
        name = str(source)
        with tempfile.TemporaryDirectory(prefix="affserve-") as scratch:
            try:
                own = self._own(outputs, Path(scratch))
                path = Path(name)
                if is_address(name):
                    path = Path(scratch) / "video" / path.name
                    if self._done_or_fetched(name, path, own):
                        return Outcome(path=name, outputs=outputs)
                outcome = super().analyse(path, own, progress)
                if outcome.summary is not None:
                    self._send(own, outputs)
            except (VideoError, OutputError) as error:
                return Outcome(path=name, outputs=outputs, error=str(error))
            except OSError as error:  # of a store
                return Outcome(path=name, outputs=outputs, error=f"{name} cannot be fetched: {error}")
        return replace(outcome, path=name, outputs=outputs)

    def _own(self, outputs: OutputPaths, scratch: Path) -> OutputPaths:
        """Return where results are on disk, those of an earlier run included."""
        results = self._settings.results
        rows, features = outputs.rows, outputs.features
        if results.is_here:
            kept = results.path(str(features)) if features else None
            return replace(outputs, rows=results.path(str(rows)), features=kept)
        if self._settings.resume:
            for name in (rows, metadata_path(rows)):
                results.fetch(str(name), scratch / name.name)
            if features and results.has(str(features)):
                (scratch / features.name).touch()  # that it is there is enough
        return replace(outputs, rows=scratch / rows.name, features=scratch / features.name if features else None)

    def _done_or_fetched(self, source: str, path: Path, own: OutputPaths) -> bool:
        """Say whether a video of a store is done; fetch it if not."""
        fs, remote = opened(source)
        info = fs.info(remote)
        path.parent.mkdir()
        # A file of that size and time and without content is compared: whether it is done does not depend on more.
        path.touch()
        os.truncate(path, info["size"])
        changed = info.get("mtime") or info.get("LastModified") or info.get("created") or 0
        times = (0, float(getattr(changed, "timestamp", lambda: changed)()))
        os.utime(path, times)
        if self._is_done(path, own):
            return True
        fs.get_file(remote, str(path))
        os.utime(path, times)
        return False

    def _send(self, own: OutputPaths, outputs: OutputPaths) -> None:
        """Put the files of a result into a store, the one that says that it is whole last."""
        if self._settings.results.is_here:
            return
        folder = outputs.rows.parent
        for file in (own.features, own.rows, metadata_path(own.rows)):
            if file and file.exists():
                self._settings.results.put(file, str(folder / file.name))
