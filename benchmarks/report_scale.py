"""The tables of how cost grows with work."""

from __future__ import annotations

from collections.abc import Iterator

from affserve.benchmarks.report_format import Measured, bar_lines, fit_lines, median_text, table

SERVED = ("frames_per_s", "times_as_fast_as_one")


def length_section(measured: Measured) -> Iterator[str]:
    """Time and memory by length of the video."""
    rows = [
        (
            row["frames"],
            median_text(row["times_s"]),
            f"{row['ms_per_frame']:.2f}",
            row["client_peak_mib"],
            row["server_peak_mib"],
        )
        for row in measured["rows"]
    ]
    yield from _detector(measured)
    header = ("frames of the video", "seconds [95 %]", "ms per frame", "client peak, MiB", "server peak, MiB")
    yield from table(header, rows)
    yield from fit_lines(measured, "a frame", "s", 1000, "ms")
    yield from bar_lines(measured)


def _detector(measured: Measured) -> Iterator[str]:
    """Write what found the faces; earlier results do not tell."""
    if detector := measured.get("detector"):
        yield f"Faces found with {detector}."
        yield ""


def clients_section(measured: Measured) -> Iterator[str]:
    """One server and many clients."""
    rows = [
        (row["clients"], median_text(row["times_s"]), row["frames_per_s"], row["slowest_to_median_client"])
        for row in measured["rows"]
    ]
    header = ("clients", "seconds until all are done [95 %]", "frames/s together", "slowest / median client")
    yield from table(header, rows)
    yield from fit_lines(measured, f"a client of {measured['frames_each']} frames", "s", 1, "s")


def servers_section(measured: Measured) -> Iterator[str]:
    """One client and many servers."""
    rows = [
        (
            row["servers"],
            row["threads_each"],
            median_text(row["times_s"]),
            row["frames_per_s"],
            row["times_as_fast_as_one"],
        )
        for row in measured["rows"]
    ]
    yield from table(("servers", "threads each", "seconds [95 %]", "frames/s", "times one server"), rows)


def faces_section(measured: Measured) -> Iterator[str]:
    """More faces in a frame."""
    rows = [
        (row["faces"], row["rows_per_frame"], row["people"], f"{row['ms_per_frame']:.2f}") for row in measured["rows"]
    ]
    yield from _detector(measured)
    yield from table(("faces drawn", "rows per frame", "people", "ms per frame"), rows)
    yield from fit_lines(measured, "a face", "ms", 1, "ms")
