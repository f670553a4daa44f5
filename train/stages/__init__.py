"""The paper's two stages: a fine-tuned encoder, and a head over its features.

Read frames, finetune, fit.
"""
