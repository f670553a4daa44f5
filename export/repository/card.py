"""The model card: `README.md` of a repository, for people and for model hubs. It tells what the manifest knows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from affserve.export.repository.inspection import SERVED_BY, closest
from affserve.export.repository.manifest import Manifest
from affserve.train.provenance import SYNTHETIC, UNTAUGHT

CARD_FILE = "README.md"
TASKS = {
    "valence_arousal": "valence and arousal in [-1, 1]",
    "expression": "the probability of each expression",
    "action_units": "the probability of each facial action unit",
}
SCORED = {"valence_arousal": "mean CCC", "valence": "CCC", "arousal": "CCC", "expression": "macro F1"}
HEAD = """---
library_name: affserve
license: other  # to be filled in
tags: [facial-expression-recognition, valence-arousal, action-units, triton]
---
# Affect from face videos

"""
LIMITS = """## Limits

The numbers say how people who labelled the training data would describe a face, not what a person feels, and a model
errs more on people unlike those it learnt from. It is for research with people who agreed to it, not for decisions
about a person. Laws restrict it: the EU forbids inferring emotions at work and in education (AI Act, Article 5).

## Licence

To be filled in by who shares it; the data and the weights that it started from come under their owners' terms.
"""


def model_card(manifest: Manifest) -> bytes:
    """Return the card of the version that is served."""
    record = manifest.versions[manifest.served]
    return (HEAD + "\n".join(_body(manifest.served, record)) + "\n\n" + LIMITS).encode()


def _body(version: int, record: Any) -> Iterator[str]:
    answers = "; ".join(f"{TASKS[key]} ({', '.join(names)})" for key, names in record.labels.items() if key in TASKS)
    yield f"Triton model repository of affserve, version {version}. It answers for every frame of a person: {answers}."
    yield f"Frames are face crops of 224 x 224 px, RGB, judged in windows of up to {record.window_frames} frames."
    yield "`affserve infer VIDEO --repository FOLDER` runs it, `affserve serve FOLDER` serves it."
    yield f"\n## Training\n\nTrained on {record.trained_on}."
    if SYNTHETIC in record.trained_on:
        yield "**These are drawn faces: the answers mean nothing for people.**"
    if names := list(dict.fromkeys(name for head in record.heads for name in head.get("data", {}).get(UNTAUGHT, ()))):
        yield f"**It saw no label of {', '.join(names)}: what it answers for these means nothing.**"
    yield "\n| model | scores on people it was not trained on | fingerprint | data |\n|---|---|---|---|"
    for name, one in (("encoder", record.encoder), *(("head", head) for head in record.heads)):
        yield f"| {name} | {_scores(one)} | {one['fingerprint']} | {_data(one.get('data', {}))} |"
    yield "\nIn brackets: 95 % intervals over people; `affserve evaluate` measures anew."
    yield "\n## Parity\n\nEvery file was compared with PyTorch at export; the comparison closest to its limit:\n"
    yield "| file | precision | for | |\n|---|---|---|---|"
    for artefact in record.artefacts:
        compared = closest(artefact.parity) if artefact.parity else "compared when it is served"
        served = SERVED_BY.get((artefact.use, artefact.engine), artefact.use)
        yield f"| `{artefact.path}` | {artefact.precision} | {served} | {compared} |"
    yield from (f"\n{note}" for note in record.notes)


def _scores(one: Mapping[str, Any]) -> str:
    ends = {name: f" [{low:.3f}, {high:.3f}]" for name, (low, high) in one.get("intervals", {}).items()}
    scored = one.get("metrics", {}).items()
    told = (f"{name} {SCORED.get(name, 'mean F1')} {value:.3f}{ends.get(name, '')}" for name, value in scored)
    return ", ".join(told) or "none recorded"


def _data(data: Mapping[str, Any]) -> str:
    told = {name: " ".join(value) if isinstance(value, list) else value for name, value in data.items()}
    return ", ".join(f"{name} {value}" for name, value in told.items()) or "not recorded"
