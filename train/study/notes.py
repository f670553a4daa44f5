"""What stands under the tables: what was different from the paper, and what the figures do not say."""

from __future__ import annotations

from affserve.train.corpus.affwild2 import TRAIN, VALIDATION, Corpus
from affserve.train.corpus.folds import DEALT_FOLDS
from affserve.train.labels import EXPRESSION, TASKS
from affserve.train.models.temporal_head import TemporalHeadConfig
from affserve.train.provenance import SYNTHETIC
from affserve.train.study.config import STREAM_CONTEXT_FRAMES, STREAM_LOOKAHEAD_FRAMES, StudyConfig


def warnings_of(corpus: Corpus) -> list[str]:
    """Return what nobody must overlook."""
    if corpus.name != SYNTHETIC:
        return []
    return [
        "Generated faces: these figures test the code. They say nothing about people and cannot be compared with the "
        "paper's, which stand beside them only to show the form of the table."
    ]


def notes_of(corpus: Corpus, config: StudyConfig) -> list[str]:
    """Return how the tables were made, one sentence or two a line."""
    return [
        _seeds(config),
        _folds(config),
        _encoders(config),
        _hold_out(corpus, config),
        _stage_1(config),
        _stage_2(config),
        _streams(),
        "Every figure is of the epoch that scored best on the very videos it is reported for, so it flatters a little.",
        "In brackets: the difference to the full model of the same column.",
        "`paper`'s windows leave out videos shorter than a window and the tail of every other.",
    ]


def _seeds(config: StudyConfig) -> str:
    seeds = ", ".join(map(str, config.seeds))
    if len(config.seeds) == 1:
        return f"One seed ({seeds}) of the heads: no spread is known, small differences mean nothing."
    return (
        f"Mean ± standard deviation (n - 1) over seeds {seeds} of the heads; the encoder has one seed, so the spread "
        "does not hold what another fine-tuning would change. The paper gives one figure each and no spread."
    )


def _folds(config: StudyConfig) -> str:
    return (
        f"Fold 0 is the official split; folds 1 to {DEALT_FOLDS} deal the recordings of training and validation set "
        "together, balanced by frames, with the same people on the same side for all tasks as far as names tell. The "
        "paper's folds were other ones."
    )


def _encoders(config: StudyConfig) -> str:
    if config.encoder_per_fold:
        return (
            "Each fold has an encoder of its own that never saw the fold's validation videos. Heads of different folds "
            "read different features, so there is no ensemble of them."
        )
    return (
        "One encoder, fine-tuned on fold 0's training set, serves all folds: the default, because it is a fifth of "
        "the work and lets the folds' heads be one ensemble. It has been shown most faces that folds 1 to 4 validate "
        "on, so only fold 0 is an honest figure; `--encoder-per-fold` makes the others honest too. The ensemble's row "
        "flatters for another reason: its members of folds 1 to 4 trained on fold 0's validation videos."
    )


def _hold_out(corpus: Corpus, config: StudyConfig) -> str:
    if config.hold_out == "any":
        return "No stage trains on a video that any task validates on: fewer training videos than the paper had."
    shared = _trained_and_validated(corpus)
    text = "A task's training set leaves out only what the task itself validates on, as in the challenge"
    if not shared:
        return f"{text}; here no video is in the training set of one task and the validation set of another."
    return (
        f"{text}: {shared} videos that the encoder learned expressions from are validation videos of another task. "
        "`--hold-out any` leaves them out."
    )


def _trained_and_validated(corpus: Corpus) -> int:
    trained = set(corpus.videos(EXPRESSION, TRAIN))
    return len(trained & {video for task in TASKS.values() for video in corpus.videos(task, VALIDATION)})


def _stage_1(config: StudyConfig) -> str:
    encoder = config.encoder
    weights = f"the weights {encoder.pretrained!r}" if encoder.pretrained else "random weights"
    labels = ", ".join(TASKS[key].title for key in encoder.tasks)
    frames = "every frame" if encoder.frame_step == 1 else f"one frame in {encoder.frame_step}"
    return (
        f"Stage 1: {encoder.architecture} from {weights}, {_epochs(encoder.epochs)} on the labels of {labels}, batch "
        f"{encoder.batch}, learning rate {encoder.lr:g}, {frames}. Without fine-tuning: the "
        "same before the first step. The paper: CLIP ViT-Base from CLIP's weights on the expressions, batch 256, "
        "learning rate 0.0001."
    )


def _stage_2(config: StudyConfig) -> str:
    def sizes(head: TemporalHeadConfig) -> str:
        return f"TCN {head.tcn_channels}, Transformer {head.layers} × {head.width}"

    heads = "; ".join(
        f"{name}: {sizes(fit.head)}, {_epochs(fit.passes)}, batch {fit.batch}, learning rate {fit.lr:g}, windows of "
        f"{fit.window} frames every {fit.stride}"
        for name, fit in config.heads.items()
    )
    return (
        f"Stage 2: {heads}. The paper has a head a task, batch 32, learning rate 0.00003, windows of 300 frames every "
        "200, and gives no sizes: the default ones are those of the same authors' earlier configuration."
    )


def _streams() -> str:
    return (
        "A stream answers each frame from it and those before: a causal TCN, and each layer looks at the last "
        f"{STREAM_CONTEXT_FRAMES} frames; late, it has seen {STREAM_LOOKAHEAD_FRAMES} more when it answers. The GRU, "
        "the simplest of them, is two layers of twice the width in place of TCN and Transformer. The paper has none."
    )


def _epochs(count: int) -> str:
    return f"{count} epoch{'s' if count > 1 else ''}"
